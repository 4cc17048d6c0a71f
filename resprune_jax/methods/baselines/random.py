"""Random tokens: what every method must beat."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Random(Method):
    """Tokens in random order.

    Attributes:
        rng_seed: seed of the random generator, one for all rows, which then draw alike, or (B,) for
            each; a row draws the same in any batch and at any padding.
    """

    rng_seed: int | jax.Array | np.ndarray = field(
        default=0, metadata={"per_row": True, "range": (0, 2**32 - 1)}
    )

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """A number for each place, whatever lies there."""
        key = jax.random.key(jnp.asarray(self.rng_seed, jnp.uint32))
        places = jnp.arange(image.valid.shape[0])
        return jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(places)
