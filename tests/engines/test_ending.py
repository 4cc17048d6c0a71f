"""Engines end at the limit: no pick is made that nobody reads, and none that is read changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import engines
from resprune_jax.engines import lazy
from resprune_jax.engines.product import gram_product, scaled_tokens

N, D, KEEP = 36, 20, 30
LIMITS = ([7, 30, 12], [1, 1, 2], [29, 13, 21], [40, 0, 5])
"""Of three images each; beyond K, and none at all, as a failed row may have."""


def images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, N, D)).astype(np.float32)


def picks(name: str, tokens: jax.Array, limit: jax.Array) -> engines.Outcome:
    """The engine itself on one image."""
    valid = jnp.ones(N, bool)
    if name in engines.FROM_TOKENS:
        matrix, *_ = scaled_tokens(tokens, valid)
    elif name in engines.AS_GIVEN:
        squares, exponent, *_ = lazy.norms_in_scale(tokens, valid)
        matrix = lazy.Tokens(tokens, squares, exponent)
    else:
        matrix = gram_product(tokens, valid).gram
    first = jnp.int32(5)
    return engines.run(name, matrix, jnp.ones(N), first, valid, KEEP, limit)


SOME = [
    "gram",
    "lazy",
    *(pytest.param(name, marks=pytest.mark.deep) for name in ("feature", "blocked")),
]


@pytest.mark.parametrize("name", SOME)
def test_no_pick_is_made_beyond_the_limit(name: str) -> None:
    tokens = jnp.asarray(images())
    together = jax.jit(jax.vmap(lambda x, limit: picks(name, x, limit).indices))
    whole = np.asarray(together(tokens, jnp.full(3, KEEP, jnp.int32)))
    decided = 0
    for limits in LIMITS:
        made = np.asarray(together(tokens, jnp.asarray(limits, jnp.int32)))
        # The loop of `gram` and `feature` is one for all images, that of the others each image's.
        common = name in ("gram", "feature")
        for row, limit in enumerate(limits):
            end = min(KEEP, max(limits) if common else limit)
            assert (made[row][:end] == whole[row][:end]).all() and (made[row][end:] == N).all()
            decided += 1
    print(f"{name}: {decided} loops ended where they should")
    assert decided == 3 * len(LIMITS)
