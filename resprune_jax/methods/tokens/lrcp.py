"""LRCP: the tokens farthest from the image's low-rank principal subspace."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.methods.spectrum import spectrum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lrcp(Method):
    """Residual of every token to the principal subspace of all of them, in one shot.

    As described in the abstract; the share of energy and centring are not published.

    Attributes:
        share: the subspace has the least rank that holds this share of the tokens' energy.
        centred: whether the tokens' mean is taken off first.
    """

    share: float = field(default=0.9, metadata={"range": (0, 1)})
    centred: bool = field(default=False, metadata={"static": True})

    source = "arXiv 2605.15621, as described in the abstract"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """The energy outside the subspace."""
        made = spectrum(image.embeddings, image.valid, centred=self.centred)
        total = jnp.cumsum(made.values)
        # The directions before which the share was not reached make the subspace.
        outside = (total - made.values) >= self.share * total[-1]
        return jnp.sum(jnp.where(outside, made.energies, 0), axis=1)
