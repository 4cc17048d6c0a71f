"""AgilePruner (the paper's AdaPrune row): attention order, thinned by an image's own threshold."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.methods.spectrum import spectrum
from resprune_jax.relevance import unit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AgilePruner(ByAttention):
    """Take the token of the highest attention, close those within a cosine distance, go on.

    The threshold of the i-th choice is `step * i * erank / average`, at most `most`; erank is the
    effective rank of the image's features, exp of the entropy of their normalised singular values.
    So an image above the average gets diverse tokens, one below it those of the highest attention.
    Once all others are closed, the rest follow by attention.

    The authors have published neither `average` nor `most`, so neither has a default: an average of
    about the effective rank of your own images (`effective_rank`), and 0.3, are a place to start.

    Attributes:
        average: effective rank of a usual image.
        most: the largest threshold.
        step: growth of the threshold with each choice.
        start: the i of the first choice.
    """

    average: float = field(metadata={"range": (1e-3, 1e6)})
    most: float = field(metadata={"range": (0, 2)})
    step: float = field(default=0.01, metadata={"range": (0, 2)})
    start: float = field(default=1.0, metadata={"range": (0, 1e6)})

    reads = frozenset({"features"})
    source = "cvsp-lab/AgilePruner @ 3df95a3 (page), arXiv 2603.01236"

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        assert image.features is not None
        tokens, attention = unit(image.features), self.attention_of(image)
        growth = self.step * effective_rank(image.features, image.valid) / self.average

        def step(
            k: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            order, left, open_ = state
            pool = jnp.where(jnp.any(open_), open_, left)
            chosen = jnp.argmax(jnp.where(pool, attention, -jnp.inf)).astype(jnp.int32)
            near = 1 - jnp.dot(tokens, tokens[chosen], precision=lax.Precision.HIGHEST)
            threshold = jnp.minimum(growth * (k + self.start), self.most)
            left = left.at[chosen].set(False)
            return order.at[k].set(chosen), left, open_ & left & (near >= threshold)

        start = jnp.zeros(keep, jnp.int32), image.valid, image.valid
        return lax.fori_loop(0, keep, step, start)[0]


def effective_rank(tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """exp of the entropy of the normalised singular values of (N, d) tokens, ()."""
    singular = jnp.sqrt(spectrum(tokens, valid).values)
    share = singular / jnp.maximum(jnp.sum(singular), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(share), 0)))
