"""FastV: one drop in front of layer K, by the attention of the last prompt token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from resprune_jax.methods.decoder.base import SingleDrop
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FastV(SingleDrop):
    """The tokens that the last prompt token looks at most in layer K - 1, mean over heads.

    The authors' variants differ: K = 2 by default, K = 3 in their evaluation (`k=3`).
    """

    needs = frozenset({"attention"})
    source = "pkunlp-icler/FastV @ d165972, arXiv 2403.06764"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """Attention of the last prompt token."""
        assert image.layer is not None and image.layer.attention is not None
        return jnp.mean(image.layer.attention, axis=0)
