"""SPARE: column subset selection that prefers tokens unlike the text."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import cosines
from resprune_jax.selection import Selection, select


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spare(Method):
    """The token with the largest residual energy, weighed *down* by its similarity to the text.

    As described in the abstract. Ours to decide: the weight (1 - c) / 2 with c the largest cosine
    over the tokens of the whole question; the token of the largest norm comes first.

    Attributes:
        exponent: of the weight.
        engine: how the loop runs; the picks do not depend on it.
    """

    exponent: float = field(default=1.0, metadata={"range": (0, 100)})
    engine: str = field(default="auto", metadata={"static": True})

    needs = frozenset({"text"})
    text = "prompt"
    measures_energy = True
    source = "arXiv 2606.18681, as described in the abstract"

    def relevance(self, visual: VisualTokens, prompt: PromptContext) -> jax.Array:
        """(B, N): the weight; 1 where a question has no text."""
        every = cosines(visual.embeddings, prompt.text)  # [B, N, M]
        there = prompt.text_valid[:, None, :]
        similar = jnp.max(every, axis=-1, where=there, initial=-1.0)
        return jnp.where(visual.valid, jnp.maximum((1 - similar) / 2, 0), 0)

    def select(
        self,
        visual: VisualTokens,
        prompt: PromptContext,
        keep: int,
        *,
        limit: jax.Array | None = None,
        tolerance: jax.Array | None = None,
    ) -> Selection:
        """See `Method.select`."""
        return select(
            visual.embeddings,
            keep,
            limit=limit,
            relevance=self.relevance(visual, prompt),
            alpha=self.exponent,
            valid=visual.valid,
            tolerance=tolerance,
            engine=self.engine,
        )
