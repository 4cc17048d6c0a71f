"""What methods share that rank tokens by the attention which the vision tower gives them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, get_args

import jax

from resprune_jax.choices import Attention
from resprune_jax.errors import one_of
from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import VisualTokens

INSTEAD = (
    "there is no class token; set attention=received to rank by the attention that each token"
    " receives from all of its picture"
)
"""What to do on a tower like SigLIP's or Qwen's."""


@dataclass(frozen=True)
class ByAttention(Method):
    """A method that ranks tokens by attention in the block that feeds the projector.

    A subclass reads it with `attention_of`, and names what it needs beside it in `reads`.

    Attributes:
        attention: "class", what the class token gives, as all these methods were published; or
            "received", what all tokens of the same picture give (the mean of the attention's column
            over queries and heads), for towers without a class token too. Ports of such methods to
            Qwen rank by that (VisionZip's, vLLM's).
        reads: see `Method.needs`, without that attention.
    """

    attention: Attention = field(default="class", kw_only=True, metadata={"static": True})

    reads: ClassVar[frozenset[str]] = frozenset()
    instead: ClassVar[Mapping[str, str]] = MappingProxyType({"saliency": INSTEAD})

    def __post_init__(self) -> None:
        """Refuse an unknown kind of attention."""
        one_of("attention", self.attention, get_args(Attention))

    @property
    def needs(self) -> frozenset[str]:
        """See `Method.needs`."""
        return self.reads | {"received" if self.attention == "received" else "saliency"}

    def attention_of(self, image: VisualTokens) -> jax.Array:
        """The attention by which the tokens of one image are ranked, (N,) float32."""
        found = image.received if self.attention == "received" else image.saliency
        assert found is not None
        return found
