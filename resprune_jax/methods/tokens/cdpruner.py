"""CDPruner: a determinantal point process over tokens weighed by the instruction."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from resprune_jax.choices import ClipText
from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens, patches
from resprune_jax.relevance import cosines, unit
from resprune_jax.selection import Selection, select

SMALLEST = 1e-6
"""Added to a relevance before it is divided by its range, so that none is 0."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cdpruner(Method):
    """Greedy MAP of the kernel r_i cos(p_i, p_j) r_j, relevance from CLIP's text tower.

    The recursion of greedy MAP on a Gram matrix is that of residual energy: the tokens here are
    r_i p_i / |p_i|, and no gate is needed. Relevance is the mean over the question's parts of 77
    tokens of sign cos(W_vis LN_post(x_i), t), min-max over all patches of the row's images.
    Newline tokens have none. The authors choose tile by tile on LLaVA-NeXT; here one choice is made
    over the whole image.

    Attributes:
        sign: -1 prefers patches unlike the text, as the released code does (CLIP's own patches are
            anti-aligned); 1 those like it.
        theta: None uses r as it is; in (0, 1) the weight is exp(theta r / (2 (1 - theta))).
        engine: how the loop runs; the picks do not depend on it.
    """

    sign: float = -1.0
    theta: float | None = None
    engine: str = field(default="auto", metadata={"static": True})

    needs = frozenset({"clip_patches", "clip_text"})
    clip_text: ClassVar[ClipText] = "question"
    source = "Theia-4869/CDPruner @ 9541616"

    def relevance(self, visual: VisualTokens, prompt: PromptContext) -> jax.Array:
        """(B, N) in (0, 1], over each row's own patches; 0 for newline tokens."""
        texts, there = prompt.clip_text, prompt.clip_text_valid
        assert visual.clip_patches is not None and texts is not None and there is not None
        return minmax(self.sign * mean_cosine(visual.clip_patches, texts, there), patches(visual))

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
            strength = self.theta / (2 * (1 - self.theta))
            weight = jnp.where(weight == 0, 0.0, jnp.exp(strength * weight))
        made = select(
            unit(visual.embeddings) * weight[..., None],
            keep,
            limit=limit,
            valid=visual.valid,
            engine=self.engine,
        )
        return Selection(made.indices, None, made.count)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CdprunerLlm(Cdpruner):
    """CDPruner with relevance from the LLM's embedding table: the mean cosine with its tokens.

    It needs no CLIP, and runs on every model. Relevance is the mean over the instruction's tokens
    of the cosine with the projected token, min-max over the image, newline tokens included; this is
    the form that OpenVINO ships, without its split of the kernel in two halves.

    Attributes:
        sign: 1 prefers tokens like the text; -1 those unlike it.
        theta: None uses r as it is; in (0, 1) the weight is exp(theta r / (2 (1 - theta))).
        engine: how the loop runs; the picks do not depend on it.
    """

    sign: float = 1.0

    needs = frozenset({"text"})
    clip_text = ""
    text = "prompt"
    source = "Theia-4869/CDPruner @ 9541616; openvinotoolkit/openvino.genai"

    def relevance(self, visual: VisualTokens, prompt: PromptContext) -> jax.Array:
        """(B, N) in (0, 1], over each image's own tokens."""
        mean = mean_cosine(visual.embeddings, prompt.text, prompt.text_valid)
        return minmax(self.sign * mean, visual.valid)


def mean_cosine(tokens: jax.Array, texts: jax.Array, there: jax.Array) -> jax.Array:
    """(B, N, c) tokens' mean cosine (B, N) with those of the texts (B, M, c) that there are."""
    every, words = cosines(tokens, texts), there[:, None, :]  # [B, N, M]
    return jnp.sum(every, axis=-1, where=words) / jnp.maximum(jnp.sum(words, axis=-1), 1)


def minmax(values: jax.Array, valid: jax.Array) -> jax.Array:
    """(x - min + 1e-6) / (max - min) over the valid tokens of each row; 1 where all are equal."""
    low = jnp.min(values, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
    high = jnp.max(values, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
    spread = high - low
    made = (values - low + SMALLEST) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where(valid, jnp.where(spread == 0, 1.0, made), 0.0)  # NaN stays
