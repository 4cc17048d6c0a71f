"""FasterVLM: the tokens that the class token attends to most."""

from dataclasses import dataclass

import jax

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FasterVLM(Method):
    """Top tokens by CLS attention, mean over heads, of the block that feeds the projector.

    HiRED's rule on LLaVA-1.5 is the same: a sum over heads ranks as their mean does.
    """

    needs = frozenset({"saliency"})
    source = "Theia-4869/FasterVLM @ f5d5f12"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """CLS attention."""
        assert image.saliency is not None
        return image.saliency
