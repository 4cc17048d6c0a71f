"""Text conditioning: how relevant each visual token is to the nouns of the question (section III).

The similarity is measured in the LLM's input embedding space, where projected visual tokens and
rows of the embedding table live side by side.
"""

from typing import get_args

import jax
import jax.numpy as jnp
from jax import lax

from .choices import Aggregate, NonNegative
from .errors import CallError, one_of, shown


def gate(relevance: jax.Array, alpha: jax.Array) -> jax.Array:
    """g(r) = r^alpha, exactly 0 where r = 0, and 1 everywhere at alpha = 0.

    Args:
        relevance: (...) float, non-negative.
        alpha: float, broadcast against `relevance`; the strength of textual guidance.

    Returns:
        (...) float32.
    """
    relevance = jnp.asarray(relevance, jnp.float32)
    positive = relevance > 0
    # The inner `where` keeps the power, and its gradient, finite at 0.
    power = jnp.where(positive, relevance, 1.0) ** alpha
    return jnp.where(jnp.equal(alpha, 0), 1.0, jnp.where(positive, power, 0.0))


def unit(x: jax.Array) -> jax.Array:
    """x / |x| along the last axis in float32; a zero vector stays zero.

    Divides by the largest entry first, so that no square overflows or vanishes.
    """
    x = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1.0)


def cosines(tokens: jax.Array, text: jax.Array) -> jax.Array:
    """Cosine of every visual token with every text embedding; 0 for a zero vector.

    Args:
        tokens: (..., N, d), any float dtype.
        text: (..., M, d), any float dtype.

    Returns:
        (..., N, M) float32 in [-1, 1].
    """
    return jnp.einsum("...nd,...md->...nm", unit(tokens), unit(text),
                      precision=lax.Precision.HIGHEST)  # fmt: skip


def relevance(
    tokens: jax.Array,
    text: jax.Array,
    *,
    text_valid: jax.Array | None = None,
    valid: jax.Array | None = None,
    aggregate: Aggregate = "max",
    nonnegative: NonNegative = "clip",
    sign: int = 1,
) -> jax.Array:
    """Text relevance r >= 0 of every visual token.

    Args:
        tokens: (..., N, d), visual tokens in the LLM's input embedding space.
        text: (..., M, d), embeddings of the noun tokens.
        text_valid: (..., M) bool, False for padding; default all. A row without any valid noun
            gets uniform relevance 1, as the paper says.
        valid: (..., N) bool, False for padding tokens, which get 0; default all.
        aggregate: "max" (the paper), "mean" or "pooled" (Table VI).
        nonnegative: "clip" (negative cosines become 0, the default), "shift" ((1 + cos) / 2) or
            "minmax" (over the image's valid tokens; uniform 1 if all are equal).
        sign: 1 counts likeness to the text for a token, -1 against it: the aggregated cosine is
            turned before it becomes a weight.

    Returns:
        (..., N) float32.

    Raises:
        CallError: an unknown `aggregate`, `nonnegative` or `sign`.
    """
    one_of("aggregate", aggregate, get_args(Aggregate))
    one_of("nonnegative", nonnegative, get_args(NonNegative))
    if sign not in (1, -1):
        raise CallError(f"the sign of relevance is 1 or -1, got {shown(sign)}")
    if text_valid is None:
        text_valid = jnp.ones(text.shape[:-1], bool)
    if valid is None:
        valid = jnp.ones(tokens.shape[:-1], bool)
    text = jnp.where(text_valid[..., None], text, 0)
    if aggregate == "pooled":
        pooled = jnp.sum(
            text.astype(jnp.float32), axis=-2, keepdims=True
        )  # its length is no matter
        every = cosines(tokens, pooled)  # [..., N, 1]
    else:
        every = cosines(tokens, text)  # [..., N, M]
    return of_cosines(every, text_valid, valid, aggregate, nonnegative, sign)


def of_cosines(
    every: jax.Array,
    text_valid: jax.Array,
    valid: jax.Array,
    aggregate: Aggregate,
    nonnegative: NonNegative,
    sign: int,
) -> jax.Array:
    """`relevance` of the cosines of every visual token with every text embedding.

    Args:
        every: (..., N, M) float32; (..., N, 1) with the pooled text.
        text_valid: (..., M) bool.
        valid: (..., N) bool.
        aggregate: see `relevance`.
        nonnegative: likewise.
        sign: likewise.

    Returns:
        (..., N) float32.
    """
    nouns = jnp.sum(text_valid, axis=-1, keepdims=True)  # [..., 1]
    any_noun = nouns > 0
    if aggregate == "pooled":
        cosine = every[..., 0]  # [..., N]
    elif aggregate == "max":
        largest = jnp.max(every, axis=-1, where=text_valid[..., None, :], initial=-2.0)
        # No noun, in the same reduction; one that is not finite is no smaller number.
        any_noun = ~(largest < -1.5)
        cosine = jnp.maximum(largest, -1.0)
    else:
        cosine = jnp.sum(every, axis=-1, where=text_valid[..., None, :])
        cosine = cosine / jnp.maximum(nouns, 1)

    cosine = cosine * sign
    if nonnegative == "clip":
        weight = jnp.maximum(cosine, 0.0)
    elif nonnegative == "shift":
        weight = (1.0 + cosine) / 2.0
    else:
        low = jnp.min(cosine, axis=-1, keepdims=True, where=valid, initial=jnp.inf)
        high = jnp.max(cosine, axis=-1, keepdims=True, where=valid, initial=-jnp.inf)
        spread = high - low
        weight = jnp.where(spread > 0, (cosine - low) / jnp.where(spread > 0, spread, 1.0), 1.0)
    # A cosine rounds to a hair beyond -1, and a minimum may be computed twice with other roundings.
    weight = jnp.maximum(weight, 0.0)
    return jnp.where(valid, jnp.where(any_noun, weight, 1.0), 0.0)
