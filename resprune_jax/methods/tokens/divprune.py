"""DivPrune: tokens as far from one another as can be."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import Merged, Merges, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import unit


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DivPrune(Method):
    """Greedy max-min diversity with the distance 1 - cosine.

    The first token is the one whose nearest neighbour is farthest; then always the token whose
    nearest chosen one is farthest. In float32 and with chosen tokens closed, which the released
    code leaves to the rounding of float16.

    Attributes:
        sort: image order, as released. False is the order of choice, in which the numbers of the
            paper were made, for models that count positions through.
    """

    sort: bool = field(default=True, metadata={"static": True})

    sequence = "listed"
    source = "vbdi/divprune @ 799e2d9"

    @property
    def merges(self) -> Merges:
        """An order of its own takes rows, although each is a token as it is."""
        return "" if self.sort else "embeddings"

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`: the tokens in the order of choice."""
        order = self.order(image, prompt, keep, limit)
        return Merged(order, image.embeddings[order], limit)

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        tokens, valid = unit(image.embeddings), image.valid  # [N, d]
        places = jnp.arange(valid.shape[0])

        def distances(place: jax.Array) -> jax.Array:
            return 1 - jnp.dot(tokens, tokens[place], precision=lax.Precision.HIGHEST)  # [N]

        def nearest_other(place: jax.Array) -> jax.Array:
            return jnp.min(jnp.where(valid & (places != place), distances(place), jnp.inf))

        def pick(distance: jax.Array) -> jax.Array:
            return jnp.argmax(distance).astype(jnp.int32)

        def step(
            k: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            order, distance, chosen = state
            order = order.at[k].set(chosen)
            distance = jnp.minimum(distance, distances(chosen)).at[chosen].set(-jnp.inf)
            return order, distance, pick(distance)

        alone = lax.map(nearest_other, places, batch_size=256)  # one row at a time: no N x N array
        first = pick(jnp.where(valid, alone, -jnp.inf))
        distance = jnp.where(valid, jnp.inf, -jnp.inf)
        order, *_ = lax.fori_loop(0, keep, step, (jnp.zeros(keep, jnp.int32), distance, first))
        return order
