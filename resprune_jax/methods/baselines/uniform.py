"""Evenly spaced tokens: what a method that looks at the picture must beat."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches

Layout = Literal["raster", "rows", "grid"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Uniform(Method):
    """The middles of equal parts of an image's tokens, in raster order or on its grid.

    Any image has those in raster order, of one grid or of many tiles, and the count is exact.

    On the grid they are r evenly spaced rows, r = round(sqrt(T rows / columns)), or as many more as
    T needs, each with evenly spaced columns. A place is taken by the token nearest to it, newline
    tokens aside; where several are as near (frames of a video), by one after the other.

    Attributes:
        layout: "raster"; on the grid "rows", exactly T tokens, which the rows share as evenly as
            they can, or "grid", the same columns in every row and so at most T.
    """

    layout: Layout = field(default="raster", metadata={"static": True})

    nested = False

    @property
    def needs(self) -> frozenset[str]:
        """The grid, where the layout is on it."""
        return frozenset() if self.layout == "raster" else frozenset({"coords"})

    @property
    def by_image(self) -> bool:
        """See `Method.by_image`: on the grids of several images there is no one grid."""
        return self.layout != "raster"

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        if self.layout != "raster":
            return self._on_the_grid(image, keep, limit)
        there = jnp.sum(image.valid, dtype=jnp.int32)
        parts = jnp.maximum(limit, 1)
        whole, rest = there // parts, there % parts
        i = jnp.arange(keep, dtype=jnp.int32)
        # floor((2 i + 1) there / (2 parts)), without a product that int32 might not hold
        rank = i * whole + ((2 * i + 1) * rest + whole * parts) // (2 * parts)
        ranks = jnp.cumsum(image.valid) - 1  # among the tokens that are there
        return jnp.searchsorted(ranks, jnp.minimum(rank, there - 1)).astype(jnp.int32)

    def _on_the_grid(self, image: VisualTokens, keep: int, limit: jax.Array) -> jax.Array:
        """The token nearest to each place, (K,), N from where there is no place or no token."""
        assert image.coords is not None
        there = patches(image)
        size, coords = len(there), jnp.where(there[:, None], image.coords, 0)
        rows, columns = (jnp.floor(jnp.max(coords, axis=0)) + 1).astype(jnp.int32)
        budget = jnp.clip(limit, 1, rows * columns)
        lines = rows_of_grid(rows, columns, budget, size)
        k = jnp.arange(keep, dtype=jnp.int32)
        if self.layout == "grid":
            share = budget // lines
            count, line, part = lines * share, k // share, k % share
        else:
            count, line = budget, -(-(k + 1) * lines // budget) - 1
            start, end = line * budget // lines, (line + 1) * budget // lines
            share, part = end - start, k - start
        places = jnp.stack(
            [(2 * line + 1) * rows // (2 * lines), (2 * part + 1) * columns // (2 * share)], axis=1
        )  # [K, 2]

        def step(k: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            order, left = state
            away = jnp.sum(jnp.abs(coords - places[k]), axis=1)
            away = jnp.where(left, away, jnp.inf)
            nearest = jnp.cumsum(left & (away == jnp.min(away)))
            token = jnp.argmax(nearest == 1 + k % jnp.maximum(nearest[-1], 1))
            token = jnp.where(jnp.any(left), token, size).astype(jnp.int32)
            return order.at[k].set(token), left.at[token].set(False, mode="drop")

        order, _ = lax.fori_loop(0, keep, step, (jnp.zeros(keep, jnp.int32), there))
        return jnp.where(k < count, order, size)


def rows_of_grid(rows: jax.Array, columns: jax.Array, budget: jax.Array, most: int) -> jax.Array:
    """How many rows T evenly spaced tokens have: round(sqrt(T rows / columns)), halves up.

    Args:
        rows: () int32, of the image; columns: likewise.
        budget: () int32, T, at most rows * columns.
        most: static, at least `rows`.

    Returns:
        () int32, at least as many as T needs, at most the image's, at most T.
    """
    number = jnp.arange(1, most + 1, dtype=jnp.float32)
    inside = jnp.square(2 * number - 1) * columns <= 4.0 * budget * rows
    needed = -(-budget // columns)
    wanted = jnp.maximum(jnp.sum(inside, dtype=jnp.int32), needed)
    return jnp.minimum(jnp.minimum(jnp.maximum(wanted, 1), rows), budget)
