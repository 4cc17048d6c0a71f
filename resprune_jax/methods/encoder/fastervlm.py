"""FasterVLM: the tokens that the class token attends to most."""

from dataclasses import dataclass

import jax

from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FasterVLM(ByAttention):
    """Top tokens by CLS attention, mean over heads, of the block that feeds the projector.

    HiRED's rule on LLaVA-1.5 is the same: a sum over heads ranks as their mean does.
    """

    source = "Theia-4869/FasterVLM @ f5d5f12"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """The attention itself."""
        return self.attention_of(image)
