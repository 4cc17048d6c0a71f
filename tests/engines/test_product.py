"""One product for Gram matrix and cosines, as a GPU has it, against the plain two."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.engines.guard import telling
from resprune_jax.engines.product import Squares, diagonal, joint_product, largest_of, squares_of
from resprune_jax.methods import PromptContext, ResPrune, VisualTokens
from resprune_jax.relevance import cosines
from resprune_jax.selection import select
from tests.selection.test_selection import SMALL, forced_pivots

B, N, M, D = 2, 17, 5, 9


def drawn(rng_seed: int, scale: float, dtype: Any = jnp.float32) -> tuple[Any, Any, Any, Any]:
    """(tokens, valid, text, those behind the padding as zeros)."""
    rng = np.random.default_rng(abs(rng_seed))
    tokens = rng.normal(size=(B, N, D)).astype(np.float32) * np.float32(scale)
    tokens[0, 3] = 0
    valid = rng.random((B, N)) < 0.8
    valid[:, 0] = True
    kept = np.where(valid[..., None], tokens, 0)
    tokens[~valid] = np.nan
    text = rng.normal(size=(B, M, D)).astype(np.float32)
    text[1, 2] = 0
    return (*(jnp.asarray(x, dtype) for x in (tokens, text, kept)), jnp.asarray(valid))


_joint = jax.jit(joint_product)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("power", [0, 9, -9, 70, -70])
def test_one_product_is_the_two(power: int, dtype: Any) -> None:
    if dtype == jnp.float16 and abs(power) > 9:
        power //= 10
    tokens, text, kept, valid = drawn(power, 2.0**power, dtype)
    made, found = _joint(tokens, valid, text)
    exact = np.asarray(kept, np.float64)
    longest = np.linalg.norm(exact, axis=-1).max(axis=-1)
    np.testing.assert_array_equal(made.exponent, np.floor(np.log2(longest)).astype(int))
    exact *= 2.0 ** -np.asarray(made.exponent, np.float64)[:, None, None]
    np.testing.assert_allclose(made.gram, exact @ exact.mT, atol=2e-6)
    assert np.asarray(made.finite).all()
    want = cosines(kept.astype(jnp.float32) * 2.0**-power, text)
    np.testing.assert_allclose(found, want, atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said(bad: float) -> None:
    tokens, text, kept, valid = drawn(1, 1.0)
    made, _ = _joint(kept.at[1, 0, 2].set(bad), valid, text)
    np.testing.assert_array_equal(made.finite, [True, False])
    _, found = _joint(tokens, valid, text.at[0, 1, 0].set(jnp.nan))
    assert np.isnan(found[0, :, 1]).all() and np.isfinite(found[1]).all()


def test_norms_hold_at_every_scale() -> None:
    rng = np.random.default_rng(0)
    for power in (-120, -75, -50, -10, 0, 10, 49, 51, 75, 120):
        rows = (rng.normal(size=(6, 9)) * 2.0**power).astype(np.float32)
        squares = squares_of(jnp.asarray(rows))
        exact = np.linalg.norm(rows.astype(np.float64), axis=-1)
        np.testing.assert_array_equal(squares.exponents(), np.floor(np.log2(exact)).astype(int))
        scaled = np.asarray(squares.norms(jnp.int32(power)), np.float64)
        np.testing.assert_allclose(scaled, exact * 2.0**-power, rtol=1e-6)
    assert int(largest_of(Squares(*jnp.zeros((3, 4))).exponents())) == 0


def test_a_diagonal_by_a_slice() -> None:
    for n in (1, 2, 7):
        matrix = np.random.default_rng(n).normal(size=(3, n, n)).astype(np.float32)
        np.testing.assert_array_equal(
            diagonal(jnp.asarray(matrix)), np.diagonal(matrix, axis1=1, axis2=2)
        )


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.deep), 2])
def test_a_gpus_way_picks_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for a GPU: one product, no axis for a single row, a mask by comparison."""
    tokens, text, _, valid = drawn(3, 4.0)
    visual = VisualTokens(tokens[:rows], valid[:rows])
    prompt = PromptContext(text[:rows], jnp.asarray([[True] * 4 + [False], [False] * 5])[:rows])
    method = ResPrune(engine="gram", seed_rule="max_norm")

    def choose(keep: int) -> Any:
        made = jax.jit(lambda v, p: ((s := method.select(v, p, keep)).prefix(6), s.mask(N)))
        return made(visual, prompt)

    plain, _ = choose(6)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # One pick more: JAX remembers how the same call was traced before.
    there, compared = choose(7)
    np.testing.assert_array_equal(there.indices, plain.indices)
    np.testing.assert_array_equal(there.count, plain.count)
    np.testing.assert_allclose(there.energy, plain.energy, rtol=1e-5)
    assert (np.asarray(compared).sum(axis=1) == 7).all()
    assert np.take_along_axis(np.asarray(compared), np.asarray(there.indices), axis=1).all()


def test_doubts_are_told_where_somebody_listens() -> None:
    given = forced_pivots(1)
    options: dict[str, Any] = {**given.options}
    with telling():
        told = select(given.tokens, SMALL.keep, engine="gram", **options)
        tame = select(given.tokens, SMALL.keep, engine="gram", **{**options, "alpha": 0.0})
        other = select(given.tokens, SMALL.keep, engine="feature", **options)
    assert np.asarray(told.doubtful).all() and not np.asarray(tame.doubtful).any()
    assert not np.asarray(other.doubtful).any()
    guarded = select(given.tokens, SMALL.keep, engine="gram", **options)
    assert guarded.doubtful is None
    assert all(given.certify(row, guarded).ok for row in range(len(given.problems)))
