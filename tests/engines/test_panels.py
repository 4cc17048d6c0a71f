"""The `mosaic_gpu` engine where a problem takes several launches: their PTX, and what lies between.

Each launch runs in the interpreter of `ptx.py`; the scan, the products between the launches and
`vmap` are JAX's own. For sizes that are too large for it a launch is modelled in XLA.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from resprune_jax import engines
from resprune_jax.certificate import certify
from resprune_jax.engines import cluster, exchange, gram, kernels, mosaic_gpu
from resprune_jax.engines.exchange import Plan
from resprune_jax.engines.gram import MOST_GROWTH
from resprune_jax.engines.loop import Outcome, best, scores
from resprune_jax.engines.product import gram_product
from tests.engines.ptx import Machine
from tests.engines.test_mosaic import interpreted, kept, problem
from tests.engines.test_pallas import backend, lowered

Problem = tuple[jax.Array, ...]
Shapes = Sequence[tuple[tuple[int, ...], Any]]


def machine(rng_seed: int = 0, change: Callable[[str], str] = lambda text: text) -> Any:
    """In the place of `mosaic_gpu.launch`: the interpreter."""

    def launch(text: str, plan: Plan, out: Shapes, *arrays: jax.Array) -> Any:
        shapes = tuple(jax.ShapeDtypeStruct(*kind) for kind in out)
        warps = plan.warpgroups * exchange.WARPGROUP // exchange.WARP

        def run(*read: Any) -> Any:
            # What nobody writes is no number.
            made = [
                np.full(x.shape, np.nan if x.dtype.kind == "f" else -1, x.dtype) for x in shapes
            ]
            memories = [*(np.array(x) for x in read), *made]
            Machine(
                change(text), memories, plan.blocks, warps, plan.shared_bytes, rng_seed
            ).run()  # fmt: skip
            return tuple(made)

        return jax.pure_callback(run, shapes, *arrays, vmap_method="sequential")

    return launch


def modelled(
    text: str, plan: Plan, out: Shapes, residual: jax.Array, known: jax.Array, tokens: jax.Array
) -> Any:
    """In the place of `mosaic_gpu.launch`: a launch of a panel, in XLA."""
    squares, shares, gate = known[:3]
    energy, score, drift = tokens
    score = jnp.where(jnp.any(score > 0), score, scores(gate, energy, squares))
    places = jnp.arange(plan.n, dtype=jnp.int32)

    def turn(k: jax.Array, made: Any) -> Any:
        state, rows, picks, sums = made
        pick, left = best(state.score)
        products = residual[pick] - jnp.dot(rows[:, pick], rows, precision="highest")
        row, state, total = kernels.advance(
            state, (squares, shares, gate), places, pick, left, products
        )
        picks = picks.at[k].set(jnp.where(left, pick, plan.n))
        return state, rows.at[k].set(row), picks, sums.at[k + 1, 0].set(total)

    zeros = [jnp.zeros(*kind) for kind in out]
    start = (kernels.State(energy, score, drift), zeros[4], zeros[0], zeros[1])
    state, rows, picks, sums = lax.fori_loop(0, plan.keep, turn, start)
    after = jnp.stack([state.energy, jnp.minimum(state.energy, 0.0), state.drift])
    return picks, sums, after, zeros[3], rows


def in_panels(made: Problem, keep: int, plan: Plan) -> Outcome:
    run: Any = jax.jit(functools.partial(mosaic_gpu.in_panels, keep=keep, plan=plan))
    return run(*made)


@functools.cache
def in_xla(keep: int, plan: Plan) -> Any:
    """Compiled once for each; `mosaic_gpu.launch` must be `modelled` at the first call."""
    return jax.jit(functools.partial(mosaic_gpu.in_panels, keep=keep, plan=plan))


def agree(found: Outcome, expected: Outcome) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    slack = 1e-5 * float(np.max(expected.totals[..., 0]))
    np.testing.assert_allclose(found.totals, expected.totals, rtol=0, atol=slack)
    np.testing.assert_allclose(found.growth, expected.growth, rtol=0.1)


deep = functools.partial(pytest.param, marks=pytest.mark.deep)

SIZES = [  # (N, d, K, picks of a launch, blocks, tokens of a thread)
    deep((9, 8, 3, 1, 2, 1)),  # a launch a pick
    (20, 16, 5, 3, 2, 1),  # the last launch makes fewer
    deep((40, 30, 8, 8, 8, 1)),  # one launch alone
    deep((60, 50, 60, 16, 4, 1)),  # every tier, and nothing left
    (20, 16, 5, 3, 2, 2),
    deep((21, 16, 5, 3, 2, 2)),  # a thread with one token
    deep((130, 50, 40, 17, 2, 2)),  # several warps, a column in two turns
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_picks_are_those_of_gram(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d, keep, picks, blocks, each = size
    monkeypatch.setattr(mosaic_gpu, "launch", machine(rng_seed=n))
    made, plan = problem(n, d, keep), Plan(n, picks, blocks, panel=True, each=each)
    assert plan.sound
    agree(in_panels(made, keep, plan), kept(keep)(*made))


@pytest.mark.deep
def test_many_candidates_a_lane_and_two_tokens_in_one_launch() -> None:
    for plan, d in ((Plan(2900, 2, 8, 3), 12), (Plan(75, 6, 2, each=2), 50)):
        made = problem(plan.n, d, plan.keep)
        agree(interpreted(plan, made, 1), kept(plan.keep)(*made))
    assert Plan(2900, 2, 8, 3).share == 3


@pytest.mark.deep
def test_clocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_gpu, "launch", machine())
    made = problem(20, 8, 4)
    agree(in_panels(made, 4, Plan(20, 2, 2, clocked=True, panel=True)), kept(4)(*made))


@pytest.mark.deep
def test_questions_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one image: each changes a matrix of its own."""
    monkeypatch.setattr(mosaic_gpu, "launch", machine())
    matrix, gate, _, valid = problem(20, 16, 5)
    plan = Plan(20, 2, 2, panel=True)
    gates, firsts = jnp.stack([gate, gate[::-1], jnp.ones_like(gate)]), jnp.arange(3)

    def ask(engine: Any) -> Outcome:
        run: Any = jax.vmap(lambda gate, first: engine(matrix, gate, first, valid))
        return run(gates, firsts)

    found = ask(functools.partial(mosaic_gpu.in_panels, keep=5, plan=plan))
    agree(found, ask(functools.partial(gram.factor, keep=5)))


ROW = "@owns st.global.f32 [at], row;"
FAULTS = {
    "a row is not written": (ROW, "", 1),
    "a row is read where it was written": (ROW, f"{ROW}\n@owns ld.global.f32 row, [at];", 1),
    "the energies are not handed on": ("[at], energy;", "[at], square;", 1),
    "closed tokens are handed on as open": ("min.f32 score, energy,", "max.f32 score, energy,", 1),
    "rows in the wrong order": ("mad.lo.u32 y1, k, 12, place;", "mad.lo.u32 y1, 0, 12, place;", 1),
    "the second token wins a tie": ("setp.gt.u32 p, key1, key;", "setp.ge.u32 p, key1, key;", 2),
    "the second token's column is not its own": ("mad.lo.u32 source, y1, 3, source;", "", 2),
}


@pytest.mark.deep
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, each = FAULTS[fault]
    tokens = np.random.default_rng(2).standard_normal((12, 9)).astype(np.float32)
    tokens[4:6] = 9 * tokens[4]  # the largest, twins, of one thread
    valid = jnp.arange(12) < 9  # none is left for the last launch
    made = gram_product(jnp.asarray(tokens), valid).gram
    given = (made, jnp.ones(12), jnp.int32(0), valid)
    plan = Plan(12, 3, 2, panel=True, each=each)

    def broken(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(mosaic_gpu, "launch", machine(change=broken))
    try:
        found = jax.tree.map(np.asarray, in_panels(given, 12, plan))
    except Exception as error:  # what the callback raises, in JAX's words
        assert "launch" in str(error), error
        return
    with pytest.raises(AssertionError):
        agree(found, kept(12)(*given))


@pytest.mark.deep
def test_without_the_product_between_launches_the_picks_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mosaic_gpu, "launch", modelled)
    made, plan = problem(60, 20, 1), Plan(60, 5, 2, panel=True)
    expected = kept(15)(*made)
    agree(in_panels(made, 15, plan), expected)
    monkeypatch.setattr(mosaic_gpu, "dot", lambda left, right: jnp.zeros((60, 60)))
    assert not np.array_equal(in_panels(made, 15, plan).indices, expected.indices)


@pytest.mark.deep
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_step_certificate_of_panels(data: st.DataObject) -> None:
    """At any number of picks a launch, whatever the gate forces."""
    n, keep, picks = data.draw(st.sampled_from(((17, 5, 2), (40, 40, 16))))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    # Where the rank is small many tokens are exhausted.
    few = rng.standard_normal((data.draw(st.integers(1, 40)), 40))
    tokens = (rng.standard_normal((n, len(few))) @ few).astype(np.float32)
    relevance = rng.uniform(0, 1, n) * (rng.uniform(0, 1, n) < data.draw(st.sampled_from((0.4, 1))))
    valid = np.arange(n) < n - data.draw(st.integers(0, 3))
    made = gram_product(jnp.asarray(tokens), jnp.asarray(valid))
    first = jnp.argmax(jnp.diagonal(made.gram)).astype(jnp.int32)
    given = (made.gram, jnp.asarray(relevance, jnp.float32), first, jnp.asarray(valid))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaic_gpu, "launch", modelled)
        found = in_xla(keep, Plan(n, picks, 8, panel=True))(*given)
    if found.growth > MOST_GROWTH:  # the guard makes these again
        return
    result = certify(
        tokens, np.asarray(found.indices), relevance=relevance, alpha=1.0, first=int(first),
        valid=valid,
    )  # fmt: skip
    assert result.ok, result.violations


# The text, the sizes, the launches.

RAN = {  # these programs, to the letter, ran on a card (docs/explanation/kernels.md)
    (40, 8): "34eb801d42bcd074",
    (576, 128): "67f104132ff6cec3",
    (1024, 256): "a30b13c3d64c70ac",
    (2048, 150): "05119f109095ff76",
}


@pytest.mark.parametrize("size", RAN)
def test_what_one_launch_holds_is_the_program_that_it_was(size: tuple[int, int]) -> None:
    text = cluster.program(mosaic_gpu.plan_of(*size))
    assert hashlib.sha256(text.encode()).hexdigest().startswith(RAN[size])


@pytest.mark.parametrize(
    ("n", "keep", "picks", "each"),
    [
        (1024, 1024, 64, 1), (2340, 780, 60, 1), (2928, 976, 61, 1), (4096, 1365, 63, 1),
        (4096, 4096, 64, 1), (8192, 2730, 48, 1), (10549, 3516, 32, 2), (16384, 16384, 16, 2),
    ],
)  # fmt: skip
def test_the_sizes_that_take_panels(n: int, keep: int, picks: int, each: int) -> None:
    plan = mosaic_gpu.plan_of(n, keep)
    assert mosaic_gpu.fits(n, keep) and (plan.panel, plan.keep, plan.each) == (True, picks, each)
    assert plan.threads <= plan.warpgroups * exchange.WARPGROUP <= 1024
    last = keep - (-(-keep // picks) - 1) * picks
    assert 1 <= last <= picks
    assert not mosaic_gpu.fits(16385, 10)


def test_a_prepared_matrix_is_copied_where_panels_change_it() -> None:
    least = 4 * 2928 * 2928
    sizes = [
        engines.memory(name, 2928, 512, 976, prepared=True)[0] for name in ("mosaic_gpu", "gram")
    ]
    assert sizes[0] - sizes[1] == least
    small = [engines.memory(name, 576, 512, 128, prepared=True) for name in ("mosaic_gpu", "gram")]
    assert small[0] == small[1]
    assert mosaic_gpu.bytes_moved(2928, 512, 976, 4) > 16 * 2 * least / 1.1


def test_it_lowers_to_a_loop_of_launches_and_a_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, "gpu")
    for n, keep, rows in ((2928, 976, 1), (10549, 3516, 2)):
        text = lowered(mosaic_gpu, "cuda", n, keep, rows)
        assert text.count("mosaic_gpu_v2") == 2 and text.count("stablehlo.while") == 1
