"""The `gram` engine: pivoted Cholesky of the Gram matrix, the same picks without touching d.

With G = V V^T and D its running diagonal, the residual energies of Algorithm 1 are D itself, and
for pivot p at step k

    L[k, i] = (G[p, i] - sum_{j < k} L[j, p] L[j, i]) / sqrt(D[p]),     D[i] -= L[k, i]^2.

One N x N product is paid once; a step then costs O(N K) instead of O(N d).
"""

import jax
import jax.numpy as jnp
from jax import lax

from .loop import greedy


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
    """Greedy selection by pivoted Cholesky; arguments and results as `feature.run`."""
    n = tokens.shape[0]
    gram = gram_matrix(tokens)  # [N, N]

    def update(
        k: jax.Array, pick: jax.Array, inverse: jax.Array, factor: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        # Rows of `factor` from k on are zero, so the whole product is the sum over j < k.
        explained = jnp.dot(factor[:, pick], factor, precision=lax.Precision.HIGHEST)  # [N]
        row = (gram[pick] - explained) * jnp.sqrt(inverse)
        return row * row, factor.at[k].set(row)

    norms = jnp.diagonal(gram)
    return greedy(norms, gate, first, valid, keep, jnp.zeros((keep, n), jnp.float32), update)
