"""VisPruner: some tokens by attention, the others by dropping what repeats itself."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import cosines

ROUND = 8
"""The most tokens that one round drops."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisPruner(ByAttention):
    """int(T r) tokens by CLS attention; of the others, diverse ones until T.

    The others stand in a list, by falling attention. A round compares the even places of the list
    with the odd ones (the largest cosine of the features before the projector) and drops the most
    redundant of the even ones; the surviving even ones, by falling redundancy, and then the odd
    ones are the next list.

    Attributes:
        important: r, the share chosen by attention. 0.5 is the released default; its README takes
            0.75 for 64 tokens of MME.
    """

    important: float = field(default=0.5, metadata={"range": (0, 1)})

    nested = False
    reads = frozenset({"features"})
    source = "Theia-4869/VisPruner @ aefa01a"

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        assert image.features is not None
        attention = self.attention_of(image)
        size = image.valid.shape[0]
        similar = cosines(image.features, image.features)  # [N, N]
        ranked = jnp.argsort(jnp.where(image.valid, -attention, jnp.inf), stable=True)
        first = jnp.floor(limit * jnp.float32(self.important) + 1e-4).astype(jnp.int32)
        places = jnp.arange(size)

        def turn(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            tokens, left = state
            inside = places < left
            even, odd = inside & (places % 2 == 0), inside & (places % 2 == 1)
            among = similar[tokens][:, tokens]  # [N, N], by places of the list
            redundancy = jnp.max(among, axis=1, where=odd[None, :], initial=-jnp.inf)
            worst = jnp.argsort(jnp.where(even, -redundancy, jnp.inf), stable=True)
            rank = jnp.zeros(size, jnp.int32).at[worst].set(places.astype(jnp.int32))
            evens = (left + 1) // 2
            drop = jnp.minimum(jnp.minimum(ROUND, left - (limit - first)), evens)
            to = jnp.where(even, rank - drop, evens - drop + places // 2)
            to = jnp.where(inside & (to >= 0), to, size)  # dropped, or no longer in the list
            return tokens.at[to].set(tokens, mode="drop"), left - drop

        rest = jnp.take(ranked, places + first, mode="fill", fill_value=0)
        there = jnp.sum(image.valid, dtype=jnp.int32)
        rest, _ = lax.while_loop(lambda s: s[1] > limit - first, turn, (rest, there - first))
        at = jnp.arange(keep)
        diverse = jnp.take(rest, jnp.maximum(at - first, 0), mode="clip")
        return jnp.where(at < first, ranked[:keep], diverse)
