"""LLaVA-PruMerge and PruMerge+: what the class token singles out takes its neighbours in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches
from resprune_jax.relevance import cosines


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PruMerge(Method):
    """The tokens that CLS attends to most, each with its neighbours added, and one row of the rest.

    c is the attention of CLS in the vision tower's block behind the features (the last one in the
    published models), its heads not split. Of T rows, T - 1 are the tokens with the largest c, by
    falling c: x_i + sum of c_j x_j over the 32 other tokens with the most similar keys in that
    block, kept ones too; the weights are not normalised. The last row is the sum of c_j x_j over
    the tokens that were not kept. The repository has no budgets, only the adaptive count, and
    nothing for tiles: on LLaVA-NeXT one choice is made over the whole image, and newline tokens
    take no part. Where the last block feeds the projector, as in the pocket model, there is none
    behind it and the method is refused.

    Attributes:
        count: "fixed", as many tokens as the budget has room for; or "adaptive", those alone whose
            c lies above Q3 + 1.5 IQR, but no more than that.
        neighbours: how many tokens are added to each.
    """

    count: Literal["fixed", "adaptive"] = field(default="fixed", metadata={"static": True})
    neighbours: int = field(default=32, metadata={"static": True, "range": (0, 4096)})

    nested = False
    needs = frozenset({"features", "next_saliency", "next_keys"})
    merges = "features"
    sequence = "listed"
    instead: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("next_keys", "next_saliency"),
            "its vision tower has no class token, or no block behind the one that feeds the"
            " projector",
        )
    )
    source = "42Shawn/LLaVA-PruMerge @ 097c041"
    plus: ClassVar[bool] = False

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        assert image.features is not None
        assert image.next_saliency is not None and image.next_keys is not None
        x, there = image.features.astype(jnp.float32), patches(image)
        size, weight = len(x), jnp.where(there, image.next_saliency, 0)
        total = jnp.sum(there, dtype=jnp.int32)
        ranked = jnp.argsort(jnp.where(there, -weight, jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        place = jnp.cumsum(there, dtype=jnp.int32) - 1

        most = limit - 1
        if self.count == "adaptive":
            most = jnp.minimum(most, outliers(jnp.where(there, weight, jnp.inf), total))
        taken = there & (rank < most)
        sampled = jnp.zeros_like(there)
        if self.plus:
            # One token at least: the released code divides by their share.
            counted = room(rank, place, there, limit, jnp.maximum(most, 1))
            taken = jnp.where(counted > 0, there & (rank < counted), taken)
            sampled = (counted > 0) & ~taken & samples(place, there, jnp.maximum(counted, 1))
        first = jnp.sum(taken, dtype=jnp.int32)
        at = jnp.where(taken, rank, jnp.where(sampled, first + jnp.cumsum(sampled) - 1, keep))
        order = jnp.full(keep, size, jnp.int32)
        order = order.at[at].set(jnp.arange(size, dtype=jnp.int32), mode="drop")

        own = jnp.minimum(order, size - 1)
        similar = cosines(image.next_keys[own], image.next_keys)  # [K, N]
        similar = jnp.where(there & (jnp.arange(size) != own[:, None]), similar, -jnp.inf)
        nearness, nearest = lax.top_k(similar, min(self.neighbours, size))
        added = jnp.where(nearness > -jnp.inf, weight[nearest], 0)
        mixed = jnp.zeros((keep, size)).at[jnp.arange(keep)[:, None], nearest].set(added)
        rest = jnp.where(there & ~taken & ~sampled, weight, 0)
        kept = (order < size)[:, None]
        rows = jnp.matmul(jnp.where(kept, mixed, rest), x, precision="highest")
        rows += jnp.where(kept, x[own], 0)
        return Merged(order, rows, first + jnp.sum(sampled, dtype=jnp.int32) + 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge, and tokens of an even grid: of n tokens, every (n // k // 3)-th for k by attention.

    The rows are the k tokens with the largest c, the samples that are not among them (places 0, s,
    2s, ... below n - 1) in image order, and the row of the rest. k is the largest with which all of
    them are at most T, so there may be a few rows fewer than the budget. A budget that has no room
    for any (up to about 5) is spent as PruMerge spends it.
    """

    plus: ClassVar[bool] = True


def outliers(values: jax.Array, total: jax.Array) -> jax.Array:
    """How many values lie strictly above Q3 + 1.5 (Q3 - Q1), quartiles interpolated linearly.

    Args:
        values: (N,) float, infinite from the `total` smallest on.
        total: () int32.
    """
    ordered = jnp.sort(values)

    def quartile(number: int) -> jax.Array:
        below, part = jnp.divmod(number * jnp.maximum(total - 1, 0), 4)
        low, high = ordered[below], ordered[jnp.minimum(below + 1, jnp.maximum(total - 1, 0))]
        return low + part * 0.25 * (high - low)

    first, third = quartile(1), quartile(3)
    return jnp.sum(jnp.isfinite(values) & (values > third + 1.5 * (third - first)))


def samples(place: jax.Array, there: jax.Array, count: jax.Array) -> jax.Array:
    """Which tokens PruMerge+ adds for `count` by attention, those among these counted too.

    Args:
        place: (N,) int32, the number of each token among those that are there.
        there: (N,) bool.
        count: int32, at least 1; (C, 1) for several.

    Returns:
        (N,) bool, or (C, N).
    """
    total = jnp.sum(there, dtype=jnp.int32)
    stride = jnp.maximum(total // count // 3, 1)
    return there & (place < total - 1) & (place % stride == 0)


def room(
    rank: jax.Array, place: jax.Array, there: jax.Array, limit: jax.Array, most: jax.Array
) -> jax.Array:
    """The most tokens by attention that fit a budget together with their samples and the rest.

    Args:
        rank: (N,) int32 by falling attention; place, there: see `samples`.
        limit: () int32, the rows.
        most: () int32, no more than these.

    Returns:
        () int32, 0 where none fits.
    """
    counts = jnp.arange(1, max(len(rank) // 3, 1) + 1, dtype=jnp.int32)[:, None]  # [C, 1]
    beside = jnp.sum(samples(place, there, counts) & (rank >= counts), axis=1, dtype=jnp.int32)
    own = counts[:, 0]
    # Above a third of all tokens the stride would be 0.
    fits = (own + beside + 1 <= limit) & (own <= most) & (3 * own <= jnp.sum(there))
    return jnp.max(jnp.where(fits, own, 0))
