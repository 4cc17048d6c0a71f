"""What both versions of SparseVLM share: raters, released counts, and counts between them."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.costs import average_count
from resprune_jax.errors import CallError, shown
from resprune_jax.methods.decoder.base import DecoderMethod, Drop, inside, listed, stages
from resprune_jax.methods.decoder.pdrop import ascending
from resprune_jax.methods.inputs import PromptContext, VisualTokens

RELEASED = 576
"""Visual tokens of the released lists."""


@dataclass(frozen=True, kw_only=True)
class Raters(DecoderMethod):
    """SparseVLM: tokens leave the output of some layers by the attention of the question's raters.

    Raters are the text tokens behind the image that it points to more than to the mean one: softmax
    over the text of inner products of input embeddings, mean over visual tokens. Where none is
    above the mean, all are raters.

    `keep` is the layer average as the authors count it, on 32 layers. Their lists exist for 64, 96,
    128 and 192 of 576 tokens; for other images and budgets each count is the same share of the
    tokens, on a straight line between the lists (our reading). `keep_average` is solved for on the
    tokens that the layers work on.

    Attributes:
        layers: from whose output tokens go.
        keeps: tokens that stay at each, in place of `keep`.
    """

    layers: tuple[int, ...] = field(default=(2, 6, 15), metadata={"static": True})
    keeps: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    nested = False
    lists: ClassVar[Mapping[int, tuple[int, ...]]] = {}

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        super().__post_init__()
        object.__setattr__(self, "layers", ascending(self.layers))
        if self.keeps is None:
            if len(self.layers) != 3:
                raise CallError(f"{len(self.layers)} layers are no released schedule: give keeps")
            return
        given = listed("keeps", self.keeps, least=1)
        if len(given) != len(self.layers) or not all(isinstance(n, int) for n in given):
            raise CallError(
                f"keeps are counts, one for each of {len(self.layers)} layers, got"
                f" {shown(self.keeps)}"
            )
        if self.keep_average is not None:
            raise CallError("keeps and keep_average both say how many tokens stay: drop one")
        object.__setattr__(self, "keeps", given)

    @property
    def budgeted(self) -> bool:
        """See `Method.budgeted`."""
        return super().budgeted or self.keeps is not None

    def drops(self, tokens: int, keep: int, layers: int) -> tuple[Drop, ...]:
        """See `DecoderMethod.drops`."""
        if self.keeps is not None:
            return self._capped(self.keeps, tokens, layers)
        if self.keep_average is None:
            return self._capped(self._between(keep, tokens), tokens, layers)
        budget = self._budget(min(self.keep_average, tokens), tokens, layers)
        return self._capped(self._between(budget, tokens), tokens, layers)

    def _between(self, budget: float, tokens: int) -> list[int]:
        """The lists at a budget that may lie between theirs."""
        share = budget * RELEASED / tokens
        known = [0, *sorted(self.lists), RELEASED]
        rows = [(0,) * 3, *(self.lists[n] for n in known[1:-1]), (RELEASED,) * 3]
        right = min(max(bisect_left(known, share), 1), len(known) - 1)
        part = (share - known[right - 1]) / (known[right] - known[right - 1])
        counts = [a + part * (b - a) for a, b in zip(rows[right - 1], rows[right], strict=True)]
        return [max(1, round(count * tokens / RELEASED)) for count in counts]

    def _capped(self, counts: Sequence[int], tokens: int, layers: int) -> tuple[Drop, ...]:
        """The drops of a list: each leaves at least one token out."""
        made, present = [], tokens
        for place, which in stages(self.layers, layers, self.depth, later=1):
            kept = max(1, min(counts[which], present - 1))
            entering = self.entering(present - kept)
            made.append(Drop(inside(place, layers, type(self).__name__), kept, entering))
            present = made[-1].left
        return tuple(made)

    def entering(self, dropped: int) -> int:
        """How many merged tokens enter for so many that go."""
        return 0

    def _budget(self, target: float, tokens: int, layers: int) -> float:
        """The budget whose schedule averages `target`, by halving."""

        def average(budget: float) -> float:
            drops = self._capped(self._between(budget, tokens), tokens, layers)
            return average_count(tokens, layers, [(d.before, d.left) for d in drops])

        if not average(0) <= target <= tokens:
            raise CallError(
                f"{type(self).__name__} cannot average {target:g} of {tokens} visual tokens on"
                f" {layers} layers: {average(0):.1f} at least"
            )
        low, high = 0.0, float(tokens)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if average(middle) < target else (low, middle)
        return min((low, high), key=lambda budget: abs(average(budget) - target))

    def begin(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """Which text tokens are raters, (M,) bool."""
        logits = jnp.einsum(
            "nd,md->nm", image.embeddings, prompt.text, precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        weights = jax.nn.softmax(jnp.where(prompt.text_valid, logits, -jnp.inf), axis=1)
        weights = jnp.sum(jnp.where(image.valid[:, None], weights, 0), axis=0)  # [M]
        words = jnp.maximum(jnp.sum(prompt.text_valid), 1)
        above = prompt.text_valid & (weights > jnp.sum(weights) / words)
        return jnp.where(jnp.any(above), above, prompt.text_valid)

    def rule(self) -> Self:
        """See `DecoderMethod.rule`."""
        return replace(super().rule(), keeps=None, layers=(2, 6, 15))


def mean_of_raters(attention: jax.Array, raters: jax.Array) -> jax.Array:
    """The mean over raters of (H, M, N): (H, N)."""
    total = jnp.sum(jnp.where(raters[:, None], attention, 0), axis=1)
    return total / jnp.maximum(jnp.sum(raters), 1)
