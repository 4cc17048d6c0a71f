"""The seed token: the five rules of Table VII for the first pick."""

from typing import get_args

import jax
import jax.numpy as jnp

from .choices import SeedRule
from .errors import CallError, one_of
from .relevance import cosines


def seed_token(
    rule: SeedRule,
    tokens: jax.Array,
    valid: jax.Array,
    *,
    relevance: jax.Array | None = None,
    saliency: jax.Array | None = None,
    coords: jax.Array | None = None,
    candidates: jax.Array | None = None,
) -> jax.Array:
    """Index of the seed token by one of the rules of Table VII; ties go to the lowest index.

    Args:
        rule: the rule's name.
        tokens: (..., N, d), visual tokens.
        valid: (..., N) bool, False for padding.
        relevance: (..., N), for "text".
        saliency: (..., N), CLS-to-patch attention, for "cls_attention".
        coords: (..., N, 2), (row, column), for "center".
        candidates: (..., N) bool, tokens that may be the seed at all (newline tokens may not);
            default every valid one. Where none is left, every valid one may.

    Returns:
        (...) int32.

    Raises:
        CallError: an unknown rule, or an input that the rule needs is missing.
    """
    one_of("seed rule", rule, get_args(SeedRule))
    if rule == "max_norm":
        x = tokens.astype(jnp.float32)
        # The order of norms is the order of norms over the largest entry, which cannot overflow.
        largest = jnp.max(jnp.where(valid[..., None], jnp.abs(x), 0), axis=(-2, -1), keepdims=True)
        score = jnp.sum(jnp.square(x / jnp.where(largest > 0, largest, 1.0)), axis=-1)
    elif rule == "mean_similarity":
        kept = jnp.where(valid[..., None], tokens, 0).astype(jnp.float32)
        mean = jnp.sum(kept, axis=-2, keepdims=True)  # a cosine does not see its length
        score = cosines(tokens, mean)[..., 0]
    elif rule == "center":
        at = _given("coords", coords, rule)
        inside = valid[..., None]
        low = jnp.min(at, axis=-2, keepdims=True, where=inside, initial=jnp.inf)
        high = jnp.max(at, axis=-2, keepdims=True, where=inside, initial=-jnp.inf)
        score = -jnp.sum(jnp.square(at - (low + high) / 2), axis=-1)
    elif rule == "text":
        score = _given("relevance", relevance, rule)
    else:
        score = _given("saliency", saliency, rule)
    allowed = valid if candidates is None else valid & candidates
    allowed = jnp.where(jnp.any(allowed, axis=-1, keepdims=True), allowed, valid)
    return jnp.argmax(jnp.where(allowed, score, -jnp.inf), axis=-1).astype(jnp.int32)


def _given(name: str, value: jax.Array | None, rule: str) -> jax.Array:
    if value is None:
        raise CallError(
            f"seed rule {rule!r} needs the {name} of the visual tokens, which this model does not"
            " give; choose another rule, max_norm for example"
        )
    return value
