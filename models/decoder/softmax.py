"""Softmax under a mask, in float32: a row that sees nothing is zero, not uniform.

Scores are (B, KV, G, S, T), masks (B or 1, S, T).
"""

import jax
import jax.numpy as jnp

MASKED = -1e30
"""Stands for minus infinity: finite, so that differences of two masked scores stay numbers."""


def weights_of(scores: jax.Array, mask: jax.Array | None, peak: jax.Array) -> jax.Array:
    """exp(scores - peak), exactly zero where masked; the mask is (B or 1, S, T)."""
    weights = jnp.exp(scores - peak)
    return weights if mask is None else jnp.where(mask[:, None, None], weights, 0.0)


def masked(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    return scores if mask is None else jnp.where(mask[:, None, None], scores, MASKED)


def exponentials(scores: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """exp(scores - their maximum), zero where masked, and their sum, 1 where no key is seen."""
    scores = masked(scores, mask)
    # The result does not depend on the peak, so no gradient has to flow through it.
    peak = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = weights_of(scores, mask, peak)
    total = jnp.sum(weights, axis=-1)
    return weights, jnp.where(total > 0, total, 1.0)


def softmax(scores: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Softmax over the last axis; a row without any key is zero, not uniform."""
    weights, total = exponentials(scores, mask)
    return weights / total[..., None]
