"""PyramidDrop: drops at several layers by the attention of the next one."""

from dataclasses import dataclass, field, replace
from typing import Self

import jax
import jax.numpy as jnp

from resprune_jax.costs import ratio_for_average
from resprune_jax.errors import CallError, shown
from resprune_jax.methods.decoder.base import DecoderMethod, Drop, inside, listed, stages
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(DecoderMethod):
    """After each of `layers` the tokens stay that the last prompt token would look at most.

    Scores are the attention of the last prompt token in the next layer, of that layer's own norm,
    queries and keys, mean over heads. `keep` is the average over the layers: the counts fall by one
    ratio from stage to stage, as its author advises, which is solved for; `fractions` gives them
    instead. Counts are cut to whole numbers, as released, at least 1. Position ids count up anew
    behind every stage, and the answer goes on from each segment's own.

    Attributes:
        layers: layers that have run before each stage; [8, 16, 24] as released average at least a
            quarter of the tokens, smaller budgets take [2, 8, 16].
        fractions: of the tokens at first, kept by each stage; released: 0.5, 0.25, 0.125.
    """

    layers: tuple[int, ...] = field(default=(8, 16, 24), metadata={"static": True})
    fractions: tuple[float, ...] | None = field(default=None, metadata={"static": True})

    needs = frozenset({"next_attention"})
    positions = "reindex"
    nested = False
    source = "Cooperx521/PyramidDrop @ 6444f30, arXiv 2410.17247"

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        super().__post_init__()
        object.__setattr__(self, "layers", ascending(self.layers))
        if self.fractions is None:
            return
        given = listed("fractions", self.fractions)
        if len(given) != len(self.layers) or not all(
            0 < later <= earlier <= 1 for earlier, later in zip((1, *given), given, strict=False)
        ):
            raise CallError(
                f"fractions fall from 1 to above 0, one for each of {len(self.layers)} layers, got"
                f" {shown(self.fractions)}"
            )
        if self.keep_average is not None:
            raise CallError("fractions and keep_average both say how many tokens stay: drop one")
        object.__setattr__(self, "fractions", given)

    @property
    def budgeted(self) -> bool:
        """See `Method.budgeted`."""
        return super().budgeted or self.fractions is not None

    def drops(self, tokens: int, keep: int, layers: int) -> tuple[Drop, ...]:
        """See `DecoderMethod.drops`."""
        places = stages(self.layers, layers, self.depth)
        at = [inside(place, layers, type(self).__name__) for place, _ in places]
        if self.fractions is not None:
            fractions = [self.fractions[which] for _, which in places]
        else:
            target = keep if self.keep_average is None else self.keep_average
            ratio = ratio_for_average(min(target, tokens), tokens, at, layers)
            fractions = [ratio ** (i + 1) for i in range(len(at))]
        counts = [max(1, int(fraction * tokens)) for fraction in fractions]
        return tuple(Drop(place, count) for place, count in zip(at, counts, strict=True))

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """Attention of the last prompt token in the next layer."""
        assert image.layer is not None and image.layer.next_attention is not None
        return jnp.mean(image.layer.next_attention, axis=0)

    def rule(self) -> Self:
        """See `DecoderMethod.rule`."""
        return replace(super().rule(), fractions=None)


def ascending(layers: object) -> tuple[int, ...]:
    """Layers of a list, each behind the one before.

    Raises:
        CallError: something else.
    """
    found = listed("layers", layers, least=0)
    if list(found) != sorted({int(layer) for layer in found}):
        raise CallError(f"layers are whole numbers that ascend, got {shown(layers)}")
    return found
