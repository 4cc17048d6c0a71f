"""VisionZip: the class token, what it attends to, and the rest merged into a few of its own."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches
from resprune_jax.relevance import cosines


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionZip(Method):
    """CLS, D - 1 dominant tokens by its attention, and C contextual ones, before the projector.

    D + C is the budget, 5/32 of it contextual (rounded half up), as in all published ones: 192 =
    162 + 30, 128 = 108 + 20, 64 = 54 + 10. The tokens that are not dominant stand in a row; every
    s-th of them is a contextual one, and each other goes to the contextual one with the largest
    cosine of keys (mean over heads). The LLM sees CLS, the dominant tokens in image order, the
    contextual ones. Newline tokens take no part. The authors choose tile by tile on LLaVA-NeXT;
    here one choice is made over the whole image, and CLS is the base tile's.

    Attributes:
        combine: of a contextual token and those that went to it: "sum" adds their mean to it, as
            the released code does; "mean" is the mean of them all.
    """

    combine: Literal["sum", "mean"] = field(default="sum", metadata={"static": True})

    nested = False
    needs = frozenset({"features", "saliency", "class_features", "encoder_keys"})
    merges = "features"
    sequence = "listed"
    source = "dvlab-research/VisionZip @ 3151f6d"

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        x, keys = image.features, image.encoder_keys
        assert x is not None and keys is not None
        assert image.saliency is not None and image.class_features is not None
        size, there = len(x), patches(image)
        contextual = (10 * limit + 32) // 64
        dominant = limit - contextual
        ranked = jnp.argsort(jnp.where(there, -image.saliency, jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        leading = there & (rank < dominant - 1)
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

        at = jnp.where(leading, jnp.cumsum(leading), jnp.where(target, dominant + number, keep))
        order = jnp.full(keep, size, jnp.int32)
        order = order.at[at].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
        own = image.class_features[jnp.argmax(there)].astype(jnp.float32)
        listed = jnp.where((order < size)[:, None], rows[jnp.minimum(order, size - 1)], own)
        return Merged(order, listed, dominant + jnp.sum(target, dtype=jnp.int32))
