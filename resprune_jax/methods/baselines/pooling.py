"""Pooling: means over the cells of a coarser grid, the baseline of everything that merges."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pooling(Method):
    """Means over an r x c grid of bins, r c at most the budget, in image order.

    Of all such grids the one with the most bins is taken, among these the one nearest to the
    picture's own shape (of two alike, the one with fewer rows), so 64 gives 8 x 8 and 128 gives
    8 x 16. On LLaVA-NeXT a bin holds tokens of the base tile and of the others; newline tokens
    take no part. A bin stands at the place of its central token.

    Attributes:
        bins: where r does not divide the rows: "adaptive" bins from floor(k n / r) to
            ceil((k + 1) n / r), which may overlap, or "partition", which never do.
    """

    bins: Literal["adaptive", "partition"] = field(default="adaptive", metadata={"static": True})

    nested = False
    needs = frozenset({"coords"})
    merges = "embeddings"
    source = "none: a baseline"

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        assert image.coords is not None
        size, there = len(image.embeddings), patches(image)
        cells = jnp.floor(jnp.where(there[:, None], image.coords, 0)).astype(jnp.int32)
        rows, columns = jnp.max(cells, axis=0) + 1
        high, wide = pooled_grid(rows, columns, limit, size)
        number = jnp.arange(keep)
        inside, middle = jnp.broadcast_to(there, (keep, size)), []
        parts = ((rows, high, number // wide), (columns, wide, number % wide))
        for axis, (length, count, part) in enumerate(parts):
            start, end = part * length // count, (part + 1) * length // count
            if self.bins == "adaptive":
                end = -(-(part + 1) * length // count)
            own = cells[None, :, axis]
            inside &= (own >= start[:, None]) & (own < end[:, None])  # [K, N]
            middle.append((start + end - 1) // 2)
        held = jnp.sum(inside, axis=1, dtype=jnp.float32)
        total = jnp.matmul(
            inside.astype(jnp.float32), image.embeddings.astype(jnp.float32), precision="highest"
        )
        off = [jnp.abs(image.coords[None, :, axis] - middle[axis][:, None]) for axis in (0, 1)]
        distance = jnp.where(inside, off[0] + off[1], jnp.inf)
        # The last of those that are equally near: of the tiles rather than of the base tile.
        central = size - 1 - jnp.argmin(distance[:, ::-1], axis=1)
        return Merged(
            central.astype(jnp.int32), total / jnp.maximum(held, 1)[:, None],
            jnp.minimum(high * wide, limit),
        )  # fmt: skip


def pooled_grid(
    rows: jax.Array, columns: jax.Array, limit: jax.Array, most: int
) -> tuple[jax.Array, jax.Array]:
    """The grid of bins for a budget.

    Args:
        rows: () int32, of the picture; columns: likewise.
        limit: () int32, the most bins.
        most: static, at least `rows`.

    Returns:
        (rows, columns) of bins, int32.
    """
    high = jnp.arange(1, most + 1, dtype=jnp.int32)
    # For so many rows nothing but the widest grid can have the most bins.
    wide = jnp.minimum(columns, limit // high)
    product = jnp.where((high <= rows) & (wide >= 1), high * wide, 0)
    own, other = (high * columns).astype(jnp.float32), (wide * rows).astype(jnp.float32)
    stretch = jnp.maximum(own / other, other / own)
    best = jnp.argmin(jnp.where(product == jnp.max(product), stretch, jnp.inf))
    return high[best], jnp.maximum(wide[best], 1)
