"""Relevance alone: the paper's Setting-3, which shows what the residual energy is for."""

from dataclasses import dataclass, field

import jax

from resprune_jax.choices import Aggregate
from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import relevance


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Relevance(Method):
    """The tokens most similar to the question's nouns, whatever they repeat.

    Setting-3 of Table IV: no progressive selection. Cosines are ranked as they are, negative ones
    too; where a question has no noun all tokens are alike, and the first ones stay.

    Attributes:
        aggregate: relevance over several noun tokens (Table VI).
    """

    aggregate: Aggregate = field(default="max", metadata={"static": True})

    needs = frozenset({"text"})
    source = "arXiv 2603.21105, Table IV"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """(1 + cosine) / 2, which ranks as the cosine does."""
        return relevance(
            image.embeddings, prompt.text, text_valid=prompt.text_valid, valid=image.valid,
            aggregate=self.aggregate, nonnegative="shift",
        )  # fmt: skip
