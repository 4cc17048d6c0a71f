"""CDPruner: a determinantal point process over tokens weighed by the instruction."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import cosines, unit
from resprune_jax.selection import Selection, select

SMALLEST = 1e-6
"""Added to a relevance before it is divided by its range, so that none is 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CdprunerLlm(Method):
    """Greedy MAP of the kernel r_i cos(p_i, p_j) r_j, relevance from the LLM's embedding table.

    The recursion of greedy MAP on a Gram matrix is that of residual energy: the tokens here are
    r_i p_i / |p_i|, and no gate is needed. Relevance is the mean over the instruction's tokens of
    the cosine, min-max over the image; this is the form that OpenVINO ships, without its split of
    the kernel in two halves. CDPruner itself reads CLIP's text tower.

    Attributes:
        sign: 1 prefers tokens like the text; -1 those unlike it (CLIP's own patches are
            anti-aligned, which is why CDPruner itself negates).
        theta: None uses r as it is; in (0, 1) the weight is exp(theta r / (2 (1 - theta))).
        engine: how the loop runs; the picks do not depend on it.
    """

    sign: float = 1.0
    theta: float | None = None
    engine: str = field(default="auto", metadata={"static": True})

    needs = frozenset({"text"})
    text = "prompt"
    source = "Theia-4869/CDPruner @ 9541616; openvinotoolkit/openvino.genai"

    def relevance(self, visual: VisualTokens, prompt: PromptContext) -> jax.Array:
        """(B, N) in (0, 1], over each image's own tokens."""
        every = cosines(visual.embeddings, prompt.text)  # [B, N, M]
        words = prompt.text_valid[:, None, :]
        mean = jnp.sum(every, axis=-1, where=words) / jnp.maximum(jnp.sum(words, axis=-1), 1)
        return minmax(self.sign * mean, visual.valid)

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
        weight = self.relevance(visual, prompt)
        if self.theta is not None:
            weight = jnp.exp(self.theta / (2 * (1 - self.theta)) * weight)
        made = select(
            unit(visual.embeddings) * weight[..., None],
            keep,
            limit=limit,
            valid=visual.valid,
            engine=self.engine,
        )
        return Selection(made.indices, None, made.count)


def minmax(values: jax.Array, valid: jax.Array) -> jax.Array:
    """(x - min + 1e-6) / (max - min) over the valid tokens of each row; 1 where all are equal."""
    low = jnp.min(values, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
    high = jnp.max(values, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    spread = high - low
    made = (values - low + SMALLEST) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(valid, jnp.where(spread > 0, made, 1.0), 0.0)
