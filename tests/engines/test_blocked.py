"""The blocked engine: small blocks and panels, wrong foresight, and when it is chosen.

The engine matrix of `test_selection.py` runs it at its own block size; here blocks and panels are
so small that every problem has many of them.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import engines, select
from resprune_jax.certificate import certify
from resprune_jax.engines import blocked, gram
from resprune_jax.engines.product import gram_product
from resprune_jax.relevance import gate
from tests.selection.batches import Batch, Shape, batch
from tests.selection.test_selection import forced_pivots

SHAPE = Shape(6, 96, 64, 80)


@cache
def program(keep: int, **sizes: int) -> Callable[..., blocked.Counted]:
    """The engine alone, without its guard, on a batch."""

    def one(tokens, relevance, alpha, first, valid):
        made = gram_product(tokens, valid)
        relevance = jnp.where(valid, relevance, 0.0)
        weight = gate(relevance / jnp.maximum(jnp.max(relevance), 1e-30), alpha)
        return blocked.counted(made.gram, weight, first, valid, keep, **sizes)

    return jax.jit(jax.vmap(one))


def counted(problems: Batch, keep: int, **sizes: int) -> blocked.Counted:
    """Blocks of these sizes on a batch, fetched to the host."""
    asked = (problems.options[name] for name in ("relevance", "alpha", "first", "valid"))
    return jax.tree.map(np.asarray, program(keep, **sizes)(problems.tokens, *asked))


@pytest.mark.parametrize(
    "sizes",
    [
        {"block": 7, "candidates": 9, "panel": 24},  # every panel ends within a block
        {"block": 16, "candidates": 16, "panel": 512},  # the foresight sees what it must give
        {"block": 1, "candidates": 1, "panel": 512},  # no foresight at all
    ],
    ids=str,
)
def test_step_certificate_of_small_blocks(sizes: dict[str, int]):
    steps = blocks = early = doubted = 0
    for rng_seed in range(4):
        problems = batch(SHAPE, rng_seed)
        made = counted(problems, SHAPE.keep, **sizes)
        for row, problem in enumerate(problems.problems):
            doubted += bool(made.outcome.growth[row] > gram.MOST_GROWTH)
            if made.outcome.growth[row] > gram.MOST_GROWTH:
                continue  # the guard would have the feature engine do it
            count = min(SHAPE.keep, problem.count)
            result = certify(
                problems.tokens[row], made.outcome.indices[row], count=count,
                **problem.conditions,
            )  # fmt: skip
            assert result.ok, f"{problem.kind}: {result.violations[:3]}"
            steps, blocks = steps + result.steps, blocks + int(made.blocks[row])
            early += int(made.early[row])
            assert made.blocks[row] >= -(-SHAPE.keep // sizes["block"])
    print(f"{sizes}: {steps} steps, {blocks} blocks, {early} ended early, {doubted} doubted")
    assert steps > 1000 and (early > 0) == (sizes["block"] > 1)


def test_early_ends_are_where_the_foresight_must_fail():
    """The longest tokens are near copies of each other: once one is chosen, all have nothing left.

    With as many candidates as copies, the second pick is none of them: the block ends after one
    pick. In an orthogonal basis no pick changes another's energy: no block ends early.
    """
    n, copies, keep = 40, 8, 24
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0] * 1.5
    basis *= np.linspace(1.2, 0.9, n)[:, None]
    alike = basis.copy()
    alike[:copies] = 2 * basis[0] + 1e-3 * basis[:copies]
    runs = program(keep, block=copies, candidates=copies)
    ones, valid = np.ones((2, n), np.float32), np.ones((2, n), bool)
    first = np.asarray([0, 0], np.int32)
    tokens = np.stack([alike, basis]).astype(np.float32)
    made = jax.tree.map(np.asarray, runs(tokens, ones, np.zeros(2, np.float32), first, valid))
    assert made.early.tolist() == [1, 0]
    assert made.blocks.tolist() == [1 + -(-(keep - 1) // copies), keep // copies]
    for row in range(2):
        assert certify(tokens[row], made.outcome.indices[row], first=0).ok
    assert made.outcome.indices[1].tolist() == list(range(keep))


@pytest.mark.deep
def test_it_makes_the_picks_and_energies_of_the_gram_engine():
    """Equal one for one on problems without ties, and the same growth to doubt by."""
    problems = batch(SHAPE, 3, kind="gaussian", n=90, d=64)
    made = counted(problems, 60, block=9, candidates=20, panel=25).outcome
    plain = counted(problems, 60, block=60, candidates=90).outcome  # one block: never looks back
    names = ("relevance", "alpha", "first", "valid")
    other = select(problems.tokens, 60, engine="gram",
                   **{name: problems.options[name] for name in names})  # fmt: skip
    for found in (made.indices, plain.indices):
        np.testing.assert_array_equal(found, other.indices)
    start = made.totals[:, :1]
    np.testing.assert_allclose(made.totals / start, other.energy / other.energy[:, :1], atol=1e-6)
    np.testing.assert_allclose(made.growth, plain.growth, rtol=1e-2)


def test_forced_pivots_are_doubted_in_every_block_size():
    given = forced_pivots(3)
    for block in (1, 2, 16):
        growth = counted(given, 16, block=block, candidates=block).outcome.growth
        assert np.all(growth > gram.MOST_GROWTH), growth


def test_a_seed_token_that_is_padding_ends_the_loop():
    """Such a row fails, but it must not make the others wait forever."""
    problems = batch(SHAPE, 4, n=60)
    first = problems.options["first"].copy()
    first[2] = np.flatnonzero(~problems.options["valid"][2])[-1]
    options = {**problems.options, "first": jnp.asarray(first)}
    chosen = select(problems.tokens, SHAPE.keep, engine="blocked", **options)
    assert np.isnan(chosen.energy[2]).all() and chosen.count[2] == 0
    assert np.isfinite(np.delete(chosen.energy, 2, axis=0)).all()


def test_auto_takes_it_where_the_factor_leaves_the_caches():
    for n, keep, want in [(576, 192, "gram"), (1024, 256, "gram"), (2340, 260, "blocked"),
                          (10549, 3516, "blocked")]:  # fmt: skip
        assert engines.resolve("auto", n, keep, shared=True) == want
