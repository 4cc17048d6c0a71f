"""VisionZip: the class token, what it attends to, and the rest merged into a few of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Merged
from resprune_jax.methods.encoder.base import INSTEAD, ByAttention
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches
from resprune_jax.relevance import cosines


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionZip(ByAttention):
    """CLS, D - 1 dominant tokens by its attention, and C contextual ones, before the projector.

    D + C is the budget, 5/32 of it contextual (rounded half up), as in all published ones: 192 =
    162 + 30, 128 = 108 + 20, 64 = 54 + 10. The tokens that are not dominant stand in a row; every
    s-th of them is a contextual one, and each other goes to the contextual one with the largest
    cosine of keys (mean over heads). The LLM sees CLS, the dominant tokens in image order, the
    contextual ones. Newline tokens take no part. The authors choose tile by tile on LLaVA-NeXT;
    here one choice is made over the whole image, and CLS is the base tile's.

    With `attention="received"` no class token enters, on any tower: all D dominant tokens are
    patches. Rows are made in front of the projector, so each token has to be one patch there, which
    it is not on LLaVA-OneVision (sums of projected patches) and Qwen (four patches a token; the
    authors' port to Qwen has not been read).

    Attributes:
        combine: of a contextual token and those that went to it: "sum" adds their mean to it, as
            the released code does; "mean" is the mean of them all.
    """

    combine: Literal["sum", "mean"] = field(default="sum", metadata={"static": True})

    nested = False
    reads = frozenset({"features", "encoder_keys"})
    merges = "features"
    sequence = "listed"
    instead: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "encoder_keys": "it merges in front of the projector, where tokens of this model are"
            " not single patches",
            "class_features": INSTEAD,
            "saliency": INSTEAD,
        }
    )
    source = "dvlab-research/VisionZip @ 3151f6d"

    @property
    def needs(self) -> frozenset[str]:
        """See `Method.needs`: the class token only where it enters."""
        return super().needs | ({"class_features"} if self.attention == "class" else set())

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        x, keys = image.features, image.encoder_keys
        assert x is not None and keys is not None
        size, there = len(x), patches(image)
        first = 1 if self.attention == "class" else 0  # rows of the class token
        contextual = (10 * limit + 32) // 64
        dominant = limit - contextual
        ranked = jnp.argsort(jnp.where(there, -self.attention_of(image), jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        leading = there & (rank < dominant - first)
        others = there & ~leading
        place = jnp.cumsum(others) - 1
        stride = jnp.maximum(1, jnp.sum(others) // jnp.maximum(contextual, 1))
        number = place // stride
        target = others & (place % stride == 0) & (number < contextual)

        nearest = jnp.argmax(jnp.where(target, cosines(keys, keys), -jnp.inf), axis=1)
        goes = (others & ~target)[None] & (nearest[None] == jnp.arange(size)[:, None])  # [N, N]
        wide = x.astype(jnp.float32)
        total = jnp.matmul(goes.astype(jnp.float32), wide, precision="highest")
        count = jnp.sum(goes, axis=1, dtype=jnp.float32)[:, None]
        if self.combine == "sum":
            group = wide + total / jnp.maximum(count, 1)
        else:
            group = (wide + total) / (count + 1)
        rows = jnp.where(target[:, None], group, wide)

        in_front = first + jnp.sum(leading, dtype=jnp.int32)
        at = jnp.where(target, in_front + number, keep)
        at = jnp.where(leading, first + jnp.cumsum(leading) - 1, at)
        order = jnp.full(keep, size, jnp.int32)
        order = order.at[at].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
        listed = rows[jnp.minimum(order, size - 1)]
        if first:
            assert image.class_features is not None
            own = image.class_features[jnp.argmax(there)].astype(jnp.float32)
            listed = jnp.where((order < size)[:, None], listed, own)
        return Merged(order, listed, in_front + jnp.sum(target, dtype=jnp.int32))
