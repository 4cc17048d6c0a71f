"""The `feature` engine: the paper's Algorithm 1 as it reads, in the space of the tokens.

A step costs O(N d) for the energies and O(k d) for the Gram-Schmidt step. It holds the tokens and
K basis vectors, so it is the engine to read, and the one for d far below N.
"""

import jax
import jax.numpy as jnp
from jax import lax

from .loop import Guide, Outcome, greedy


def factor(
    tokens: jax.Array,
    gate: jax.Array | Guide,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    norms: jax.Array | None = None,
) -> Outcome:
    """Greedy selection with an orthonormal basis of the chosen tokens (Algorithm 1).

    Args:
        tokens: (N, d), scaled so that the largest norm lies in [1, 2), 0 for padding.
        gate: (N,) float32, or a rule in its place.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.
        norms: (N,) float32, squared norms of the tokens where they are known.
    """
    tokens = tokens.astype(jnp.float32)  # [N, d]
    d = tokens.shape[1]
    precision = lax.Precision.HIGHEST

    def update(
        k: jax.Array, pick: jax.Array, inverse: jax.Array, basis: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        residual = tokens[pick]  # [d]
        # Twice is enough: one pass leaves a component of relative size eps |v| / |residual| along
        # the basis, which near exhaustion (|residual| ~ 1e-3 |v|) would be visible.
        for _ in range(2):
            coefficients = jnp.dot(basis, residual, precision=precision)  # [K]
            residual = residual - jnp.dot(coefficients, basis, precision=precision)
        square = jnp.sum(residual * residual)
        spans = (inverse > 0) & (square > 0)
        direction = residual * jnp.where(spans, lax.rsqrt(jnp.where(spans, square, 1.0)), 0.0)
        projections = jnp.dot(tokens, direction, precision=precision)  # [N]
        return projections * projections, basis.at[k].set(direction)

    norms = jnp.sum(tokens * tokens, axis=-1) if norms is None else norms
    basis = jnp.zeros_like(first, shape=(keep, d), dtype=jnp.float32)
    end, _ = greedy(norms, gate, first, valid, keep, basis, update)
    return Outcome(end.indices, end.totals, jnp.zeros_like(end.total))


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    # The tokens once a step; the basis at its full height, twice for each of two projections.
    return 4.0 * n * d * keep + 16.0 * d * keep * keep
