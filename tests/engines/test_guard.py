"""The engines' doubt is measured: what they expect of their rounding, against what it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import engines
from resprune_jax.engines import gram
from resprune_jax.engines.product import gram_product

ROWS, D = 64, 24


@pytest.mark.parametrize("engine", ["gram", "blocked"])
def test_the_expected_rounding_is_the_rounding(engine: str):
    """Pivots of which less and less was left, from all of it to a hundredth of its length.

    In a random basis: c, then p = c + r q is forced, and t, which p explains mostly through q, is
    left with the energy that is measured. Were the drift too small, the guard would come too late;
    too large, and it would have `feature` do everything.
    """

    @jax.jit
    @jax.vmap
    def energies(tokens: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        valid = jnp.ones(len(weight), bool)
        made = gram_product(tokens, valid).gram
        found = engines.ENGINES[engine](made, weight, jnp.int32(0), valid, 3)
        return found.indices, found.totals, found.growth

    rng = np.random.default_rng(0)
    growths = []
    for left in (1.0, 0.3, 0.1, 0.03, 0.01):
        tokens = np.empty((ROWS, 3, D), np.float32)
        for row in range(ROWS):
            c, q, o = np.linalg.qr(rng.normal(size=(D, D)))[0][:3]
            tokens[row] = 1.4 * c, 1.4 * c + left * q, 0.9 * q + 0.4 * o
        weight = np.tile(np.float32([1, 1, 1e-9]), (ROWS, 1))
        indices, totals, growth = jax.tree.map(np.asarray, energies(tokens, weight))
        assert (indices == [0, 1, 2]).all()
        basis = np.linalg.qr(tokens[:, :2].astype(np.float64).mT)[0]  # [rows, D, 2]
        rest = tokens[:, 2] - np.einsum("rdk,rek,re->rd", basis, basis, tokens[:, 2])
        exact = np.square(rest).sum(axis=1)  # the largest norm is 1.4 to 1.7: nothing was scaled
        expected = 2 * 2.0**-24 * np.sqrt(growth) * np.square(tokens[:, 2]).sum(axis=1)
        ratio = np.sqrt(np.mean(np.square((totals[:, 2] - exact) / expected)))
        print(f"{engine}, {left} left: growth {np.median(growth):.1e}, rounding {ratio:.2f} of it")
        assert 0.15 < ratio < 1
        growths.append(np.median(growth))
    assert growths[0] < gram.MOST_GROWTH and growths[-1] > 10 * gram.MOST_GROWTH
