"""What methods that drop tokens inside the decoder share: the schedule of drops and its budget.

A drop in front of layer K means that the layers from K on (counted from 0) work on what is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import jax

from resprune_jax.arguments import numbers, whole
from resprune_jax.errors import CallError, shown
from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@dataclass(frozen=True)
class Drop:
    """One drop of one prompt.

    Attributes:
        before: K, the first layer that works on what is left.
        kept: visual tokens that stay.
        merged: new tokens that enter for those that go.
    """

    before: int
    kept: int
    merged: int = 0

    @property
    def left(self) -> int:
        """What the layers from K on work on."""
        return self.kept + self.merged


@dataclass(frozen=True, kw_only=True)
class DecoderMethod(Method):
    """A method that drops tokens inside the decoder.

    Its own rule is that of any method, `scores` or `order` of one prompt, asked at every drop: the
    `image` then holds the tokens that are still there, their states as `embeddings`, and in
    `layer` the parts of a `LayerView` that `needs` names; the `prompt` holds the text tokens behind
    the last visual token. `drops` says where and how many; the model's code owns the rest.

    Attributes:
        keep_average: visual tokens a layer, averaged over the layers, that the counts are solved
            for, in place of `keep`.
        depth: layers of the decoder for which layer numbers are stated; on another decoder they
            are scaled (rounded, at least 1, 2 stays 2). 0: they are meant as they are.
    """

    keep_average: float | None = field(default=None, metadata={"static": True})
    depth: int = field(default=32, metadata={"static": True})

    stage = "decoder"
    positions: ClassVar[Literal["original", "reindex"]] = "original"
    """Position ids behind a drop: the tokens' own, or 0, 1, ... again in every segment."""

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        if self.keep_average is not None:
            value = numbers(self.keep_average)
            if not isinstance(value, int | float) or not 0 < value < 10**18:
                raise CallError(
                    f"keep_average is a count of visual tokens above 0, got"
                    f" {shown(self.keep_average)}"
                )
        whole("depth", self.depth, least=0)

    @property
    def budgeted(self) -> bool:
        """See `Method.budgeted`."""
        return self.keep_average is not None

    def drops(self, tokens: int, keep: int, layers: int) -> tuple[Drop, ...]:
        """The schedule of one prompt; the layers in it depend on `layers` alone.

        Args:
            tokens: N, visual tokens of the prompt, at least 1.
            keep: the budget that was asked for, at most N; not read where `budgeted`.
            layers: of the decoder.

        Raises:
            CallError: a budget that the schedule cannot meet.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say where it drops")

    def begin(self, image: VisualTokens, prompt: PromptContext) -> Any:
        """What to remember of one prompt as it enters layer 0; shown as `LayerView.memory`."""
        return None

    def merged(
        self, image: VisualTokens, prompt: PromptContext, kept: jax.Array, room: int
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens that enter for those that go; asked only of a method that `merges`.

        Args:
            image: as in `order`.
            prompt: likewise.
            kept: (N,) bool.
            room: C, static, the most that may enter.

        Returns:
            ((C, d) their states, () int32 how many of them are real).
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it merges")

    def missing(self) -> str:
        """See `Method.missing`."""
        cls = type(self)
        if self.stage != "decoder":
            return f"it is a DecoderMethod, whose stage is decoder, not {self.stage}"
        if self.writes("merge") or self.merges not in ("", "states"):
            return "inside the decoder states are merged: merges is states or empty, see merged"
        if not self.writes("scores", "order", "select"):
            return "it decides nothing: write its scores or its order"
        if cls.drops is DecoderMethod.drops:
            return "it drops nowhere: write its drops, or make it a SingleDrop"
        if self.merges and cls.merged is DecoderMethod.merged:
            return "it merges states and has no merged: write it"
        return ""

    def rule(self) -> Self:
        """The method without what only the host reads, so that budgets share a program."""
        return replace(self, keep_average=None)


@dataclass(frozen=True, kw_only=True)
class SingleDrop(DecoderMethod):
    """A method with one drop: `keep` is the count behind it.

    Attributes:
        k: K, the layer in front of which tokens go.
    """

    k: int = field(default=2, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        super().__post_init__()
        whole("k", self.k)

    def layer(self, layers: int) -> int:
        """K on a decoder of so many layers."""
        return self._inside(scaled(self.k, layers, self.depth), layers)

    def drops(self, tokens: int, keep: int, layers: int) -> tuple[Drop, ...]:
        """See `DecoderMethod.drops`."""
        return (Drop(self.layer(layers), self.wanted(tokens, keep, layers)),)

    def wanted(self, tokens: int, keep: int, layers: int) -> int:
        """Tokens behind the drop: `keep`, or what gives the average."""
        if self.keep_average is None:
            return keep
        return keep_for_average(
            self.keep_average, tokens, self.layer(layers), layers, who=type(self).__name__
        )

    def _inside(self, at: int, layers: int) -> int:
        return inside(at, layers, type(self).__name__)


def keep_for_average(target: float, tokens: int, at: int, layers: int, *, who: str) -> int:
    """What one drop in front of layer `at` keeps so that layers work on `target` tokens on average.

    Args:
        target: visual tokens a layer.
        tokens: N.
        at: K.
        layers: L.
        who: drops.

    Returns:
        The nearest whole number to (target L - K N) / (L - K), at most N.

    Raises:
        CallError: the layers in front of the drop alone cost more.
    """
    exact = (target * layers - at * tokens) / (layers - at)
    if round(exact) < 1:
        least = (at * tokens + layers - at) / layers
        raise CallError(
            f"{who} cannot keep {target:g} of {tokens} visual tokens on average: {at} of {layers}"
            f" layers see them all, so that the average is at least {least:.1f}"
        )
    return min(round(exact), tokens)


def scaled(layer: int, layers: int, depth: int) -> int:
    """A layer number stated for `depth` layers on a decoder of `layers`; halves to the even one."""
    if not depth or layer == 2:
        return layer
    return max(1, round(layer * layers / depth))


def stages(
    numbers: Sequence[int], layers: int, depth: int, *, later: int = 0
) -> list[tuple[int, int]]:
    """Where the drops of a list take place on a decoder of `layers`.

    Args:
        numbers: layers as stated, ascending; each is scaled alone, 2 like any other.
        layers: of the decoder.
        depth: for which they are stated.
        later: added behind scaling: 1 where tokens go from the output of a layer.

    Returns:
        (K, which of the list's drops) ascending. Drops that fall together on a shallow decoder are
        one, the last of them.
    """
    at = [max(1, round(n * layers / depth)) if depth else n for n in numbers]
    found = {place + later: which for which, place in enumerate(at)}
    return sorted(found.items())


def inside(at: int, layers: int, who: str) -> int:
    """`at`, if there is a layer behind it.

    Raises:
        CallError: there is none.
    """
    if not 0 < at < layers:
        raise CallError(
            f"{who} drops tokens in front of layer {at}, and this decoder has layers 0 to"
            f" {layers - 1}"
        )
    return at


def listed(name: str, values: Any, *, least: float = 0) -> tuple[Any, ...]:
    """Numbers of a sequence, or of a text such as 2,8,16.

    Raises:
        CallError: something else, or a number that is not above `least` - 1.
    """
    if isinstance(values, str):
        values = values.split(",")
    try:
        found = tuple(
            value if isinstance(value, int) else float(value) if "." in str(value) else int(value)
            for value in values
        )
    except (TypeError, ValueError):
        found = ()
    if not found or not all(n >= least for n in found):
        raise CallError(f"{name} are numbers such as 2,8,16, got {shown(values)}")
    return found
