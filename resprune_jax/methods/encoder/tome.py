"""ToMe: in every block of the vision tower, the tokens that are most alike are merged."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tome(Method):
    """r tokens go in each block of the vision tower, between its attention and its MLP.

    Tokens at even places of the sequence, CLS at place 0, each look for the most similar one at an
    odd place (cosine of keys, mean over heads); the r most similar pairs become the mean of their
    tokens, weighed by how many patches each stands for. CLS is never merged. The next block's
    sequence is what is left at even places, then what was at odd ones: that is the order of the
    rows, without CLS, in front of the projector.

    The released code has no budgets. Here r is floor((N - T) / L) in each of L blocks and the last
    takes the remainder, so that T rows are left; where that is more than half of its tokens, r is
    the smallest larger number with which it is not (none: all that can go, goes). Fewer than
    N / 2^L rows cannot be made.

    Every prompt of a batch has a budget of its own, so the sequence keeps its length and what was
    merged is masked out; and the tower has run before anything is chosen. So the blocks run twice,
    the second time with a full matrix of scores: this shows what ToMe does to answers and saves
    time in the LLM alone. On LLaVA-NeXT it is refused: merged rows have no place in their tile, so
    that the padding around the picture could not be cut away, and no budget of a tile is stated
    anywhere. Without a class token (SigLIP, Qwen) it is refused too.

    Attributes:
        proportional: add the logarithm of a token's size to the attention that it gets.
        inflect: r falls (-1) or rises (1) from block to block: from r (1 - inflect) to
            r (1 + inflect), rounded down.
    """

    inflect: float = field(default=0.0, metadata={"range": (-1, 1)})
    proportional: bool = field(default=True, metadata={"static": True})

    stage = "encoder"
    nested = False
    needs = frozenset({"entering", "class_entering"})
    merges = "features"
    sequence = "listed"
    instead: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "class_entering": "it merges inside a vision tower with a class token that sees a"
            " picture as one tile, as LLaVA-1.5's"
        }
    )
    source = "facebookresearch/ToMe @ af95e4b, arXiv 2210.09461"

    def least(self, tokens: int, blocks: int) -> int:
        """See `Method.least`."""
        return -(-tokens // 2 ** min(blocks, 31))

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        assert image.entering is not None and image.class_entering is not None
        assert image.blocks is not None
        there = patches(image)
        total = jnp.sum(there, dtype=jnp.int32)
        # The valid tokens come first, behind CLS.
        named = jnp.argsort(~there, stable=True).astype(jnp.int32)
        own = image.class_entering[jnp.argmax(there)]
        x = jnp.concatenate([own[None], image.entering[named]])  # [S, v]
        names = jnp.concatenate([jnp.full(1, -1, jnp.int32), named])
        sizes = jnp.ones(len(x), jnp.float32)
        places, left = jnp.arange(len(x), dtype=jnp.int32), total + 1
        removed = schedule(total, limit, len(image.blocks), len(named), self.inflect)
        for block, r in zip(image.blocks, removed, strict=True):
            bias = jnp.log(sizes) if self.proportional else jnp.zeros_like(sizes)
            added, keys = block.attend(x, jnp.where(places < left, bias, -jnp.inf))
            x = x + added
            source, target = match(jnp.mean(keys.astype(jnp.float32), axis=1), left, r)
            goes = (source[:, None] & (target[:, None] == places)).astype(jnp.float32)  # [S, S]
            held = sizes + goes.T @ sizes
            wide = sizes[:, None] * x.astype(jnp.float32)
            wide += jnp.matmul(goes.T, wide, precision="highest")
            follow = succession(source, left)
            x = (wide / held[:, None]).astype(x.dtype)[follow]
            sizes, names, left = held[follow], names[follow], left - r
            x = x + block.feed(x)
        return Merged(names[1 : keep + 1], x[1 : keep + 1].astype(jnp.float32), left - 1)


def match(metric: jax.Array, left: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The r most similar tokens at even places, each with the most similar at an odd place.

    Args:
        metric: (S, h) float32, CLS first.
        left: () int32, how many are there, at the front.
        r: () int32, at most (left - 1) // 2.

    Returns:
        ((S,) bool, which tokens go; (S,) int32, where each would go.)
    """
    places = jnp.arange(len(metric), dtype=jnp.int32)
    there, odd = places < left, places % 2 == 1
    norm = jnp.sqrt(jnp.sum(metric * metric, axis=1, keepdims=True))
    unit = metric / jnp.where(norm > 0, norm, 1)
    similar = jnp.matmul(unit, unit.T, precision="highest")
    similar = jnp.where(odd & there, similar, -jnp.inf)
    score = jnp.where(there & ~odd & (places > 0), jnp.max(similar, axis=1), -jnp.inf)
    ranked = jnp.argsort(-score, stable=True)
    rank = jnp.zeros(len(metric), jnp.int32).at[ranked].set(places)
    return rank < r, jnp.argmax(similar, axis=1).astype(jnp.int32)


def succession(source: jax.Array, left: jax.Array) -> jax.Array:
    """Which token comes to each place: even ones that stay, then odd ones; all stay if none goes.

    Args:
        source: (S,) bool, which tokens at even places go.
        left: () int32, how many are there, at the front.

    Returns:
        (S,) int32; those that are not there or go come last.
    """
    places = jnp.arange(len(source), dtype=jnp.int32)
    behind = (places % 2 == 1) & jnp.any(source)
    gone = source | (places >= left)
    return jnp.lexsort((places, behind, gone)).astype(jnp.int32)


def schedule(
    tokens: jax.Array, keep: jax.Array, blocks: int, most: int, inflect: float | jax.Array = 0.0
) -> list[jax.Array]:
    """How many tokens each block merges away, so that `keep` are left.

    Args:
        tokens: () int32, CLS not counted; keep: () int32, at least `Tome.least`, at most `tokens`.
        blocks: L.
        most: static, at least `tokens`.
        inflect: see `Tome`.

    Returns:
        L numbers, () int32.
    """
    # The last one, where a block that rises from nothing leaves no other: all that can go.
    constant = jnp.arange(most + 2, dtype=jnp.int32)
    left, counts = jnp.broadcast_to(tokens, constant.shape), []
    for block in range(blocks - 1):
        share = 1 - inflect + 2 * inflect * block / (blocks - 1)
        wanted = jnp.floor(constant * jnp.float32(share) + 1e-3).astype(jnp.int32)
        wanted = wanted.at[-1].set(most)
        counts.append(jnp.minimum(jnp.minimum(wanted, left // 2), left - keep))
        left = left - counts[-1]
    fits = (left - keep <= left // 2) & (constant >= (tokens - keep) // blocks)
    chosen = jnp.argmax(fits)
    return [count[chosen] for count in (*counts, left - keep)]
