"""HiRED: the budget shared out over the tiles by an early block, spent by a late one."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hired(Method):
    """The tokens that each tile's CLS attends to most, as many as the tile's share of the budget.

    On LLaVA-1.5 that is FasterVLM's rule. On LLaVA-NeXT int(T alpha) tokens are the base tile's.
    Its int(P (1 - alpha)) patches (of P) with the most CLS attention in the vision tower's first
    block are marked, and each further tile gets its part of the rest as it has marks in its region
    of the base tile, rounded down. As released, what rounding leaves over and what a tile has no
    tokens for is lost, so fewer tokens than T may stay; here at least one does, the base tile's
    first. The released code spends part of a tile's share on the padding around the picture; here
    padding is no token and takes none. Newline tokens are never kept.

    Attributes:
        alpha: the base tile's part of the budget, 0 to 1.
        regions: of the base tile: "rows", equal runs of its raster order, as the released code
            counts; or "quadrants", the part of the picture that each tile shows.
    """

    alpha: float = field(default=0.5, metadata={"range": (0, 1)})
    regions: Literal["rows", "quadrants"] = field(default="rows", metadata={"static": True})

    nested = False
    by_image = True
    needs = frozenset({"saliency", "early_saliency", "tile"})
    source = "hasanar1f/HiRED @ 502d6dd"

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        assert image.tile is not None and image.saliency is not None
        size, there = len(image.tile), patches(image)
        tile = jnp.where(there, image.tile[:, 0], size)
        shares = self.shares(image, limit)
        # Tile after tile, each by falling attention.
        ranked = jnp.lexsort((-jnp.where(there, image.saliency, 0), tile))
        starts = jnp.searchsorted(tile[ranked], jnp.arange(size))
        at = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        inside = jnp.minimum(tile, size - 1)
        kept = there & (at - starts[inside] < shares[inside])
        listed = jnp.argsort(jnp.where(kept, at, size), stable=True)[:keep]
        return jnp.where(kept[listed], listed, size).astype(jnp.int32)

    def shares(self, image: VisualTokens, limit: jax.Array) -> jax.Array:
        """The budget of every tile.

        Args:
            image: one image.
            limit: () int32, T.

        Returns:
            (N,) int32 by the number of the tile, the base tile's first; 0 for what is no tile.
        """
        assert image.tile is not None and image.early_saliency is not None
        size, there = len(image.tile), patches(image)
        base = there & (image.tile[:, 0] == 0)
        count = jnp.sum(base, dtype=jnp.int32)
        high, wide = (jnp.max(jnp.where(there, image.tile[:, axis], 0)) for axis in (1, 2))
        parts = high * wide
        place = jnp.cumsum(base) - 1
        ranked = jnp.argsort(jnp.where(base, -image.early_saliency, jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        marked = base & (rank < _part(count, 1 - self.alpha))
        if self.regions == "rows":
            region = place * parts // jnp.maximum(count, 1)
        else:
            side = jnp.round(jnp.sqrt(count.astype(jnp.float32))).astype(jnp.int32)  # a square
            row, column = jnp.divmod(place, jnp.maximum(side, 1))
            side = jnp.maximum(side, 1)
            region = (row * high // side) * wide + column * wide // side
        marks = jnp.zeros(size, jnp.int32)
        marks = marks.at[jnp.where(marked, region + 1, size)].add(1, mode="drop")
        own = jnp.minimum(_part(limit, self.alpha), count)
        # Without other tiles there is nothing to share.
        own = jnp.where(parts > 0, own, limit)
        given = (limit - own) * marks // jnp.maximum(jnp.sum(marks), 1)
        given = jnp.minimum(given, count)
        held = jnp.zeros(size, jnp.int32).at[jnp.where(there, image.tile[:, 0], size)].add(
            1, mode="drop"
        )  # fmt: skip
        nothing = (own == 0) & ~jnp.any(jnp.minimum(given, held) > 0)
        return given.at[0].set(jnp.where(nothing, 1, own)).astype(jnp.int32)


def _part(count: jax.Array, share: float | jax.Array) -> jax.Array:
    """int(count share), for shares of up to three decimals."""
    return jnp.floor(count * jnp.float32(share) + 1e-3).astype(jnp.int32)
