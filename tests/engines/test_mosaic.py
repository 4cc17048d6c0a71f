"""The `mosaic_gpu` kernel: its PTX in an interpreter, what it is lowered to, where it may run.

The interpreter (`ptx.py`) runs a cluster in a random order, so that a pick that depends on the
order of messages, or a wait that never ends, shows. What a GPU makes of the
program only a GPU can show.
"""

import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import CallError, engines, errors, select
from resprune_jax.engines import cluster, exchange, gram, kernels, mosaic_gpu
from resprune_jax.engines.exchange import Plan
from resprune_jax.engines.loop import Outcome
from resprune_jax.engines.product import gram_product
from tests.engines.ptx import Machine, StuckError
from tests.engines.test_pallas import backend, lowered


def problem(n: int, d: int, rng_seed: int) -> tuple[jax.Array, ...]:
    """What an engine is given: twins, an empty token, gates at zero, padding at the end."""
    rng = np.random.default_rng(rng_seed)
    tokens = rng.standard_normal((n, d)).astype(np.float32)
    valid = np.ones(n, bool)
    if n > 8:
        tokens[n // 2], tokens[5], valid[-2:] = tokens[3], 0, False
    relevance = rng.uniform(0, 1, n).astype(np.float32)
    relevance[relevance < 0.3] = 0
    made = gram_product(jnp.asarray(tokens), jnp.asarray(valid))
    return made.gram, jnp.asarray(relevance), jnp.int32(0), jnp.asarray(valid)


def interpreted(
    plan: Plan, given: tuple[jax.Array, ...], rng_seed: int, text: str | None = None
) -> Outcome:
    """What the program makes of a problem."""
    known = kernels.conditions(*given, plan.n)
    picks = np.full(plan.keep, -1, np.int32)
    sums = np.zeros((plan.keep + 1, plan.senders), np.float32)
    drift, cycles = np.zeros(plan.n, np.float32), np.zeros((plan.senders, 8), np.int32)
    memories = [np.array(given[0]), np.array(known), picks, sums, drift, cycles]
    warps = plan.warpgroups * exchange.WARPGROUP // exchange.WARP
    text = text or cluster.program(plan)
    Machine(text, memories, plan.blocks, warps, plan.shared_bytes, rng_seed).run()
    return mosaic_gpu._outcome(*map(jnp.asarray, (picks, sums, drift, given[3])))


kept = functools.cache(lambda keep: jax.jit(functools.partial(gram.factor, keep=keep)))

PLANS = [  # (N, d, K, blocks, warpgroups)
    (4, 8, 4, 8, 1),  # blocks without a token
    pytest.param((33, 8, 33, 8, 1), marks=pytest.mark.deep),
    (60, 50, 60, 4, 1),  # every tier; columns in several turns
    pytest.param((300, 40, 5, 2, 2), marks=pytest.mark.deep),
    pytest.param((1100, 12, 4, 16, 1), marks=pytest.mark.deep),  # two candidates a lane
]


def check(plan: Plan, d: int) -> None:
    """The program's picks, energies and growth are those of `gram`."""
    assert plan.sound
    given = problem(plan.n, d, plan.keep)
    expected = kept(plan.keep)(*given)
    found = interpreted(plan, given, rng_seed=plan.keep)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert (np.diff(found.totals) <= 0).all()  # what budgets by error rely on
    slack = 1e-5 * float(expected.totals[0])
    np.testing.assert_allclose(found.totals, expected.totals, rtol=0, atol=slack)
    np.testing.assert_allclose(found.growth, expected.growth, rtol=0.1)


@pytest.mark.parametrize("shape", PLANS, ids=str)
def test_the_picks_are_those_of_gram(shape: tuple[int, ...]) -> None:
    n, d, keep, blocks, warpgroups = shape
    check(Plan(n, keep, blocks, warpgroups), d)


@pytest.mark.deep
def test_clocks_change_nothing() -> None:
    check(Plan(20, 6, 2, clocked=True), 8)


FAULTS = {
    "candidates of two steps in one place": ("buffer, odd, 512", "buffer, odd, 0"),
    "the column is not waited for": ("@!p bra COLUMN;", ""),
    "the candidates are not waited for": ("@!p bra CANDIDATES;", ""),
}


@pytest.mark.deep
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_order_of_things_is_seen(fault: str) -> None:
    plan = Plan(60, 30, 4)
    given = problem(60, 50, 1)
    text, (old, new) = cluster.program(plan), FAULTS[fault]
    assert old in text
    right = kept(plan.keep)(*given).indices
    seen = 0
    for rng_seed in range(2):
        try:
            found = interpreted(plan, given, rng_seed, text.replace(old, new))
            seen += not np.array_equal(found.indices, right)
        except (StuckError, AssertionError):
            seen += 1
    assert seen


def test_it_lowers_to_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, "gpu")
    for n, keep, rows in ((576, 128, 32), (1024, 340, 1)):
        assert lowered(mosaic_gpu, "cuda", n, keep, rows).count("mosaic_gpu_v2") == 1


def test_the_sizes_that_fit() -> None:
    for n, keep in ((576, 128), (576, 576), (1024, 340), (2048, 150)):
        assert mosaic_gpu.fits(n, keep)
        plan = mosaic_gpu.plan_of(n, keep)
        assert plan.shared_bytes > 4 * plan.tokens * keep
        assert not plan.panel


# Where it may run.


def test_without_clusters_in_sight_it_runs_by_name_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CallError, match=r"mosaic_gpu.* runs on a GPU, this is a CPU"):
        select(np.ones((4, 5), np.float32), 2, engine="mosaic_gpu")
    backend(monkeypatch, "gpu")
    monkeypatch.setattr(errors, "_SAID", set())
    assert engines.resolve("mosaic_gpu", 576, 128) == "mosaic_gpu"
    assert engines.resolve("auto", 576, 128) == "pallas_gpu"
    assert engines.resolve("auto", 1100, 64) != "mosaic_gpu"
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        assert engines.resolve("mosaic_gpu", 20000, 1024) != "mosaic_gpu"
    assert "does not hold 20000 tokens with 1024 kept: 'schur' runs instead" in caplog.text


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.9"])
def test_a_gpu_without_clusters_is_refused(
    capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(monkeypatch, "gpu")
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda *a: [device])
    with pytest.raises(CallError, match=f"9.0 or later, this one has {capability}"):
        engines.resolve("mosaic_gpu", 576, 128)
    assert engines.resolve("auto", 576, 128) == "pallas_gpu"
    device.compute_capability = "9.0"
    assert engines.resolve("mosaic_gpu", 576, 128) == "mosaic_gpu"
    assert engines.resolve("auto", 576, 128) == "mosaic_gpu"
    device.compute_capability = "gfx942"  # of another maker
    assert engines.resolve("auto", 576, 128) == "pallas_gpu"
