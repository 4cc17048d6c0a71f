"""SVD-Prune: the tokens with the highest statistical leverage."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method, highest
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.methods.spectrum import spectrum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SvdPrune(Method):
    """Squared row norms of the leading left singular vectors, as many as tokens are kept.

    As described in the abstract. The rank is capped at the numerical one.
    """

    nested = False
    source = "arXiv 2604.11530, as described in the abstract"

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        made = spectrum(image.embeddings, image.valid)
        leading = (jnp.arange(made.values.size) < limit) & (made.values > 0)
        leverage = jnp.sum(jnp.where(leading, jnp.square(made.vectors), 0), axis=1)
        return highest(leverage, image.valid, keep)
