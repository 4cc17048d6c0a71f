"""The `gram` engine: pivoted Cholesky of the Gram matrix, the same picks without touching d.

With G = V V^T and D its running diagonal, the residual energies of Algorithm 1 are D itself, and
for pivot p at step k

    L[k, i] = (G[p, i] - sum_{j < k} L[j, p] L[j, i]) / sqrt(D[p]),     D[i] -= L[k, i]^2.

One N x N product is paid once (`product.py`); a step then costs O(N K) instead of O(N d).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .loop import Guide, Outcome, begin, row, steps, with_row
from .product import diagonal

MOST_GROWTH = (1e-5 / (2 * 4 * 2.0**-24)) ** 2
"""The expected rounding may reach a quarter of the certificate's slack, 1e-5 of a squared norm.

An energy is off by twice its norm times the rounding of its residual; G's own is 2^-24."""

_PARTS, _SHORTEST = 4, 32
"""The factor grows in so many parts, of at least so many picks each."""


class Norms(NamedTuple):
    """Squared norms of the tokens (N,), and one over them, 0 where they are 0."""

    squares: jax.Array
    shares: jax.Array


class Factor(NamedTuple):
    """What the recursion carries.

    Attributes:
        rows: (K, N) float32, L; rows of later steps are 0.
        drift: (N,) float32, the expected squared rounding of each token's residual, relative to
            its squared norm and to the rounding of G itself.
    """

    rows: jax.Array
    drift: jax.Array


def norms_of(gram: jax.Array) -> Norms:
    """The squared norms of the tokens whose Gram matrix this is."""
    squares = diagonal(gram)
    return Norms(squares, shares_of(squares))


def shares_of(squares: jax.Array) -> jax.Array:
    """One over squared norms, 0 where they are 0."""
    return jnp.where(squares > 0, 1.0 / jnp.where(squares > 0, squares, 1.0), 0.0)


def no_rows(first: jax.Array, height: int, n: int) -> Factor:
    """A factor before the first step; like `first`, for which see `loop.begin`."""
    rows = jnp.zeros_like(first, shape=(height, n), dtype=jnp.float32)
    return Factor(rows, jnp.ones_like(first, shape=(n,), dtype=jnp.float32))


def extend(
    factor: Factor,
    k: jax.Array,
    pick: jax.Array,
    inverse: jax.Array,
    products: jax.Array,
    norms: Norms,
) -> tuple[jax.Array, Factor]:
    """Write row k of the factor.

    Args:
        factor: the rows before k.
        k: () int32, the row to write.
        pick: () int32, the pivot.
        inverse: () 1 / residual energy of the pivot, 0 if it spans no new direction.
        products: (N,) inner products of the pivot with every token, without what rows that are not
            in `factor` explain of them.
        norms: of the tokens.

    Returns:
        (the energy that the pivot explains of each token (N,), the factor with the row).
    """
    column = lax.dynamic_slice_in_dim(factor.rows, pick, 1, axis=1)[:, 0]  # [K]
    # Later rows are zero, so the whole product is the sum over j < k.
    known = jnp.dot(column, factor.rows, precision=lax.Precision.HIGHEST)  # [N]
    # Where nothing is left to pick, `pick` may be padding, whose products can be anything.
    spans = inverse > 0
    new = jnp.where(spans, (products - known) * jnp.sqrt(inverse), 0.0)
    explained = new * new
    # With e = E_p / |v_p|^2 and x the share of a token's squared norm that the pick explains:
    # the row is off by an angle whose square is drift / e, which moves the residual by
    # drift x / e; and E_p, by which the row is scaled, is off by 2 sqrt(drift) / e of itself,
    # which moves what is explained by that share, worth a residual of drift (x / e)^2.
    ratio = row(norms.squares, pick) * inverse * explained * norms.shares  # x / e, [N]
    grown = factor.drift + row(factor.drift, pick) * ratio * (1 + ratio)
    drift = jnp.where(spans, grown, factor.drift)
    return explained, Factor(with_row(factor.rows, new, k), drift)


def parts_of(keep: int) -> list[tuple[int, int]]:
    """From which to which pick the factor has one height.

    A step reads it at its full height: with four parts that is five eighths of K on average.
    """
    parts = min(_PARTS, max(1, keep // _SHORTEST))
    return [(keep * part // parts, keep * (part + 1) // parts) for part in range(parts)]


def lengthened(factor: Factor, height: int) -> Factor:
    """The factor with room for so many more rows."""
    later = jnp.zeros_like(factor.rows, shape=(height, factor.rows.shape[1]))
    return Factor(jnp.concatenate([factor.rows, later]), factor.drift)


def largest_growth(drift: jax.Array, valid: jax.Array) -> jax.Array:
    """`Outcome.growth` of the last drift."""
    return jnp.max(jnp.where(valid, drift, 1.0))


def factor(
    gram: jax.Array, gate: jax.Array | Guide, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky.

    A pivot of which little was left (the gate can force one) magnifies the rounding of G. The
    expected rounding of every energy is followed along and given back as `growth`.

    Args:
        gram: (N, N) float32, the Gram matrix of scaled tokens, 0 for padding; only read.
        gate: (N,) float32, or a rule in its place.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.
    """
    n = gram.shape[0]
    norms = norms_of(gram)

    def update(
        k: jax.Array, pick: jax.Array, inverse: jax.Array, basis: Factor
    ) -> tuple[jax.Array, Factor]:
        return extend(basis, k, pick, inverse, row(gram, pick), norms)

    progress = begin(norms.squares, first, valid, keep, gate)
    basis = no_rows(first, 0, n)
    for start, stop in parts_of(keep):
        basis = lengthened(basis, stop - start)
        progress, basis = steps(progress, start, stop, gate, norms.squares, basis, update)
    return Outcome(progress.indices, progress.totals, largest_growth(basis.drift, valid))


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    # The tokens, G, and five eighths of the factor's full height a step.
    return n * d * itemsize + 4.0 * n * n + 2.5 * n * keep * keep
