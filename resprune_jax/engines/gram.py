"""The `gram` engine: pivoted Cholesky of the Gram matrix, the same picks without touching d.

With G = V V^T and D its running diagonal, the residual energies of Algorithm 1 are D itself, and
for pivot p at step k

    L[k, i] = (G[p, i] - sum_{j < k} L[j, p] L[j, i]) / sqrt(D[p]),     D[i] -= L[k, i]^2.

One N x N product is paid once; a step then costs O(N K) instead of O(N d).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import feature
from .loop import greedy

MOST_GROWTH = (1e-5 / (2 * 4 * 2.0**-24)) ** 2
"""The expected rounding may reach a quarter of the certificate's slack, 1e-5 of a squared norm.

An energy is off by twice its norm times the rounding of its residual; G's own is 2^-24."""


def gram_matrix(tokens: jax.Array) -> jax.Array:
    """V V^T, (N, N) in float32: exact products and float32 sums, whatever the token dtype.

    bfloat16 tokens go to the matrix unit as they are (a product of two is exact in float32);
    float32 tokens ask for full precision, so that no backend rounds them to TF32 or bfloat16.
    """
    if tokens.dtype != jnp.bfloat16 or jax.default_backend() == "cpu":
        tokens = tokens.astype(jnp.float32)
    return lax.dot_general(
        tokens,
        tokens,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def run(
    tokens: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> tuple[jax.Array, jax.Array]:
    """Greedy selection by pivoted Cholesky; arguments and results as `feature.run`.

    A pivot of which little was left (the gate can force one) magnifies the rounding of G. The
    expected rounding of every energy is followed along; a problem in which it grows towards the
    slack of the certificate is done again by `feature`, whose residuals do not come from G.
    """
    indices, totals, growth = unguarded(tokens, gate, first, valid, keep)

    def again(state: Any) -> Any:
        # Read through the state: XLA moves what does not depend on it out of the loop, and would
        # run all of this always.
        asked = jnp.where(state[0], tokens, 0)
        return jnp.zeros((), bool), *feature.run(asked, gate, first, valid, keep)

    # A loop of at most one turn, not a branch: under vmap a branch would run both of its sides for
    # every problem, while a loop takes no turn at all unless a problem asks for one.
    doubtful = growth > MOST_GROWTH
    _, indices, totals = lax.while_loop(lambda s: s[0], again, (doubtful, indices, totals))
    return indices, totals


def unguarded(
    tokens: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`run` without its guard.

    Returns:
        (indices, energy totals, growth): growth () float32 is the largest expected squared rounding
        of a residual, relative to the token's squared norm and to that of G itself.
    """
    n = tokens.shape[0]
    gram = gram_matrix(tokens)  # [N, N]
    norms = jnp.diagonal(gram)
    shares = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)

    def update(
        k: jax.Array, pick: jax.Array, inverse: jax.Array, basis: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        factor, drift = basis  # [K, N], [N]
        # Rows of `factor` from k on are zero, so the whole product is the sum over j < k.
        known = jnp.dot(factor[:, pick], factor, precision=lax.Precision.HIGHEST)  # [N]
        row = (gram[pick] - known) * jnp.sqrt(inverse)
        explained = row * row
        # With e = E_p / |v_p|^2 and x the share of a token's squared norm that the pick explains:
        # the row is off by an angle whose square is drift / e, which moves the residual by
        # drift x / e; and E_p, by which the row is scaled, is off by 2 sqrt(drift) / e of itself,
        # which moves what is explained by that share, worth a residual of drift (x / e)^2.
        ratio = norms[pick] * inverse * explained * shares  # x / e, [N]
        drift = drift + drift[pick] * ratio * (1 + ratio)
        return explained, (factor.at[k].set(row), drift)

    basis = (jnp.zeros((keep, n), jnp.float32), jnp.ones((n,), jnp.float32))
    indices, totals, (_, drift) = greedy(norms, gate, first, valid, keep, basis, update)
    return indices, totals, jnp.max(jnp.where(valid, drift, 1.0))
