"""TRIM: the patches that CLIP finds least, or most, like the prompt, and one mean of the others."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trim(Method):
    """Patches by sign (e_i . t), and behind them the mean of all others, before the projector.

    e_i = W_vis LN_post(x_i) is the patch and t the whole prompt (cut at 77 tokens) in CLIP's space;
    neither is normalised. The budget counts the patches; the mean comes on top of it, where any
    patch is left out. Kept patches stand in image order, the mean is last. Newline tokens take no
    part. The authors' path for LLaVA-NeXT views its tiles as one square; here one choice is made
    over all tiles.

    Attributes:
        sign: -1 keeps the lowest dot products, as the released code does (CLIP's patches are
            anti-aligned with its texts); 1 the highest, as the paper reads.
        adaptive: keep as many as have an outlying score, above Q3 + 1.5 (Q3 - Q1) of the softmax
            over the image's patches, at most the budget. It may be none but the mean.
    """

    sign: float = -1.0
    adaptive: bool = field(default=False, metadata={"static": True})

    nested = False
    needs = frozenset({"features", "clip_patches", "clip_text"})
    clip_text = "prompt"
    merges = "features"
    sequence = "listed"
    beside = 1
    source = "FreedomIntelligence/TRIM @ f5a232d"

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        x, own, text = image.features, image.clip_patches, prompt.clip_text
        assert x is not None and own is not None and text is not None
        size, there = len(x), patches(image)
        product = self.sign * jnp.matmul(own, text[0], precision=lax.Precision.HIGHEST)  # [N]
        count = jnp.minimum(limit, jnp.sum(there, dtype=jnp.int32))
        if self.adaptive:
            scores = jax.nn.softmax(product, where=there)
            count = jnp.minimum(count, outliers(scores, there))
        ranked = jnp.argsort(jnp.where(there, -product, jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        kept = there & (rank < count)
        dropped = there & ~kept

        at = jnp.where(kept, jnp.cumsum(kept) - 1, keep)
        order = jnp.full(keep, size, jnp.int32)
        order = order.at[at].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
        wide, left = x.astype(jnp.float32), jnp.sum(dropped, dtype=jnp.int32)
        mean = jnp.sum(wide, axis=0, where=dropped[:, None]) / jnp.maximum(left, 1)
        rows = jnp.where((order < size)[:, None], wide[jnp.minimum(order, size - 1)], mean)
        return Merged(order, rows, count + (left > 0))


def outliers(scores: jax.Array, valid: jax.Array) -> jax.Array:
    """How many of the valid scores (N,) lie above Q3 + 1.5 (Q3 - Q1), as () int32.

    Quartiles lie between two scores in proportion, as NumPy's percentiles do.
    """
    ordered = jnp.sort(jnp.where(valid, scores, jnp.inf))
    last = jnp.sum(valid) - 1

    def quantile(share: float) -> jax.Array:
        place = share * last
        below = jnp.floor(place).astype(jnp.int32)
        low, high = ordered[below], ordered[jnp.minimum(below + 1, last)]
        return low + (place - below) * (high - low)

    first, third = quantile(0.25), quantile(0.75)
    return jnp.sum(valid & (scores > third + 1.5 * (third - first)), dtype=jnp.int32)
