"""The `schur` engine: certified, equal to `gram`, and no pick hangs on the blocks or on K.

The engine matrix of `test_selection.py` runs it at its own block size, which takes its time to
compile on a CPU; here blocks are small.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import engines
from resprune_jax.certificate import certify
from resprune_jax.engines import gram, kernels, schur
from resprune_jax.engines.loop import Outcome
from resprune_jax.engines.product import gram_product
from resprune_jax.relevance import gate
from tests.selection.batches import Batch, Shape, batch

SHAPE = Shape(6, 40, 24, 28)


@cache
def program(keep: int, block: int) -> Any:
    """The engine alone, without its guard, on a batch; block 0: `gram`."""
    engine = partial(schur.blocks_of, block=block) if block else gram.factor

    def one(tokens, relevance, alpha, first, valid):
        made = gram_product(tokens, valid)
        relevance = jnp.where(valid, relevance, 0.0)
        weight = gate(relevance / jnp.maximum(jnp.max(relevance), 1e-30), alpha)
        return engine(made.gram, weight, first, valid, keep)

    return jax.jit(jax.vmap(one))


def found(problems: Batch, keep: int, block: int) -> Outcome:
    asked = (problems.options[name] for name in ("relevance", "alpha", "first", "valid"))
    return jax.tree.map(np.asarray, program(keep, block)(problems.tokens, *asked))


@pytest.fixture(scope="module")
def problems() -> list[Batch]:
    return [batch(SHAPE, rng_seed) for rng_seed in range(6)]


def test_step_certificate(problems: list[Batch]) -> None:
    steps = equal = doubted = 0
    for given in problems:
        made, other = found(given, SHAPE.keep, 3), found(given, SHAPE.keep, 0)
        for row, problem in enumerate(given.problems):
            if made.growth[row] > gram.MOST_GROWTH:  # the guard would have `feature` do it
                doubted += 1
                continue
            count = min(SHAPE.keep, problem.count)
            result = certify(
                given.tokens[row], made.indices[row], count=count, **problem.conditions
            )  # fmt: skip
            assert result.ok, f"{problem.kind}: {result.violations[:3]}"
            steps += result.steps
            if np.array_equal(made.indices[row], other.indices[row]):
                most = 1e-6 * made.totals[row][0]
                np.testing.assert_allclose(made.totals[row], other.totals[row], atol=most)
            equal += int(np.sum(made.indices[row] == other.indices[row]))
    print(f"{steps} steps, {equal} of them those of `gram`, {doubted} problems doubted")
    assert steps > 500 and doubted < 12


def test_more_picks_change_no_bit(problems: list[Batch]) -> None:
    """The prefix property bit by bit: no sum depends on how many picks are asked for."""
    for given in problems:
        made = found(given, SHAPE.keep, 3)
        for keep in (10, 1):
            other = found(given, keep, 3)
            np.testing.assert_array_equal(made.indices[:, :keep], other.indices)
            np.testing.assert_array_equal(made.totals[:, : keep + 1], other.totals)


@pytest.mark.deep
def test_blocks_decide_nothing(problems: list[Batch]) -> None:
    """Products are taken off in one order; a compiler may still round one with its sum."""
    equal = picks = 0
    for given in problems:
        made, other = found(given, SHAPE.keep, 3), found(given, SHAPE.keep, 7)
        most = 1e-6 * made.totals[:, :1]
        same = made.indices == other.indices
        assert np.all(np.abs(made.totals - other.totals)[:, 1:][same] <= np.broadcast_to(
            most, same.shape)[same])  # fmt: skip
        equal, picks = equal + int(same.sum()), picks + same.size
    print(f"{equal} of {picks} picks are the same in blocks of 3 and of 7")
    assert equal > 0.9 * picks


@pytest.mark.deep
def test_a_wrong_row_is_noticed(problems: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the picks of a block explain of one another is left out: the certificate says so."""
    monkeypatch.setattr(schur, "row", lambda x, at: engines.loop.row(x, at) * (x.ndim > 1))
    program.cache_clear()
    caught = 0
    for given in problems[:2]:
        made = found(given, SHAPE.keep, 5)
        for row, problem in enumerate(given.problems):
            count = min(SHAPE.keep, problem.count)
            caught += not certify(
                given.tokens[row], made.indices[row], count=count, **problem.conditions
            ).ok
    program.cache_clear()
    print(f"caught in {caught} of {2 * SHAPE.rows} problems")
    assert caught > SHAPE.rows


def test_a_gpu_takes_it_where_no_kernel_is_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(kernels, "_interpreting", False)
    for n, keep in [(769, 100), (2928, 976), (10549, 3516)]:
        assert engines.resolve("auto", n, keep, 3584, max_bytes=2**31) == "schur"
    # Beside a Gram matrix that is to be kept it holds a second one.
    of_prepared = engines.memory("schur", 2928, 4096, 976, prepared=True)
    assert of_prepared[0] > 4 * 2928**2
    assert engines.resolve("auto", 2928, 976, ruled=True) == "gram"
