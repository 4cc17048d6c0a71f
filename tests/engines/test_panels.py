"""The `mosaic_gpu` engine where a problem takes several launches: their PTX, and what lies between.

Each launch runs in the interpreter of `ptx.py`; the scan, the products between the launches and
`vmap` are JAX's own.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.certificate import certify
from resprune_jax.engines import blocked, cluster, exchange, gram, mosaic_gpu
from resprune_jax.engines.exchange import Plan
from resprune_jax.engines.loop import Outcome
from tests.engines.ptx import Machine
from tests.engines.test_mosaic import problem
from tests.engines.test_pallas import backend, lowered


def machine(rng_seed: int = 0, change: Any = lambda text: text) -> Any:
    """In the place of `mosaic_gpu.launch`: the interpreter."""

    def launch(
        text: str, plan: Plan, out: Sequence[tuple[tuple[int, ...], Any]], *given: jax.Array
    ) -> Any:
        shapes = tuple(jax.ShapeDtypeStruct(*kind) for kind in out)
        warps = plan.warpgroups * exchange.WARPGROUP // exchange.WARP

        def run(*arrays: Any) -> Any:
            # What nobody writes is seen: no number.
            made = [np.full(x.shape, np.nan if x.dtype == "f" else -1, x.dtype) for x in shapes]
            memories = [*(np.array(x) for x in arrays), *made]
            code = change(text)
            Machine(code, memories, plan.blocks, warps, plan.shared_bytes, rng_seed).run()
            return tuple(made)

        return jax.pure_callback(run, shapes, *given, vmap_method="sequential")

    return launch


def in_panels(problem: tuple[jax.Array, ...], keep: int, plan: Plan) -> Outcome:
    run: Any = jax.jit(functools.partial(mosaic_gpu.in_panels, keep=keep, plan=plan))
    return run(*problem)


def agree(found: Outcome, expected: Outcome) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    slack = 1e-5 * float(expected.totals[0])
    np.testing.assert_allclose(found.totals, expected.totals, rtol=0, atol=slack)
    np.testing.assert_allclose(found.growth, expected.growth, rtol=0.1)


SIZES = [  # (N, d, K, picks of a launch, blocks)
    (9, 8, 3, 1, 2),  # a launch a pick
    (20, 16, 9, 4, 2),  # the last launch makes fewer
    (40, 30, 8, 8, 8),  # one launch alone
    pytest.param((60, 50, 60, 16, 4), marks=pytest.mark.deep),  # every tier, and nothing left
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_picks_are_those_of_gram(
    size: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d, keep, picks, blocks = size
    monkeypatch.setattr(mosaic_gpu, "launch", machine(rng_seed=n))
    made = problem(n, d, keep)
    found = in_panels(made, keep, Plan(n, picks, blocks, panel=True))
    agree(found, gram.factor(*made, keep=keep))
