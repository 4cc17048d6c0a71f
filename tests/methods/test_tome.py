"""ToMe in a small tower of its own, against an oracle written from the specification alone."""

import inspect
import sys
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.methods import Method, PromptContext, VisualTokens, get_method
from resprune_jax.methods.encoder import tome as ours
from tests.methods.oracles.encoder.schedule import linear_schedule
from tests.methods.oracles.encoder.schedule import schedule as exact_schedule
from tests.methods.oracles.encoder.tome import tome
from tests.methods.oracles.result import Kept
from tests.methods.toy_tower import tower

PROBLEMS, ROWS, SLOTS, V, BLOCKS = 200, 8, 30, 8, 3


TOWER = tower(V, BLOCKS)


@dataclass(frozen=True)
class Problem:
    """One picture as it enters the first block."""

    tokens: np.ndarray  # [1 + n, V], CLS first
    keep: int


def problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, SLOTS + 1))
    keep = int(rng.integers(-(-n // 2**BLOCKS), n + 1))
    return Problem(rng.normal(size=(1 + n, V)).astype(np.float32), keep)


def expected(p: Problem, method: Any) -> Kept:
    n = len(p.tokens) - 1
    counts = exact_schedule(tokens=n, keep=p.keep, layers=BLOCKS)
    if method.inflect:
        counts = inflected(n, p.keep, method.inflect)
    return tome(
        tokens=p.tokens, counts=counts, proportional=method.proportional,
        attention=lambda layer, x, bias: TOWER[layer].attention(x, bias),
        mlp=lambda layer, x: TOWER[layer].mlp(x),
    )  # fmt: skip


def inflected(tokens: int, keep: int, inflect: float, blocks: int = BLOCKS) -> list[int]:
    """The released linear schedule, cut as the constant one is, for the smallest r that fits."""
    for r in range((tokens - keep) // blocks, tokens + 2):
        left, counts = tokens, []
        planned = linear_schedule(r, blocks, inflect) if r <= tokens else [tokens] * blocks
        for wanted in planned[:-1]:
            counts.append(min(wanted, left // 2, left - keep))
            left -= counts[-1]
        if left - keep <= left // 2:
            return [*counts, left - keep]
    raise AssertionError((tokens, keep))


def batch(problems: list[Problem]) -> tuple[VisualTokens, PromptContext, jax.Array]:
    """Side by side; padding is NaN and lies between the tokens too."""
    rng = np.random.default_rng(problems[0].keep)
    rows = len(problems)
    valid = np.zeros((rows, SLOTS), bool)
    entering, own = (np.full((rows, SLOTS, V), np.nan, np.float32) for _ in range(2))
    for row, p in enumerate(problems):
        at = np.sort(rng.permutation(SLOTS)[: len(p.tokens) - 1])
        valid[row, at], entering[row, at], own[row, at] = True, p.tokens[1:], p.tokens[0]
    visual = VisualTokens(
        jnp.zeros((rows, SLOTS, 1)), jnp.asarray(valid), entering=jnp.asarray(entering),
        class_entering=jnp.asarray(own), blocks=TOWER,
    )  # fmt: skip
    nothing = PromptContext(jnp.zeros((rows, 1, 1)), jnp.zeros((rows, 1), bool))
    return visual, nothing, jnp.asarray([p.keep for p in problems], jnp.int32)


def compare(method: Method, problems: int = PROBLEMS) -> float:
    """The largest difference from the oracle's rows, of their largest entry; orders are equal."""
    run = jax.jit(
        lambda m, visual, prompt, limit: m.select(visual, prompt, SLOTS, limit=limit),
    )
    worst = 0.0
    for start in range(0, problems, ROWS):
        own = [problem(seed) for seed in range(start, start + ROWS)]
        visual, prompt, limits = batch(own)
        made = run(method, visual, prompt, limits)
        for row, p in enumerate(own):
            wanted, count = expected(p, method), int(made.count[row])
            assert count == len(wanted.indices) == p.keep, start + row
            rank = np.cumsum(np.asarray(visual.valid)[row]) - 1
            named = rank[np.asarray(made.indices)[row, :count]].tolist()
            assert named == wanted.indices, start + row
            assert wanted.merged is not None and made.rows is not None
            rows = np.asarray(made.rows)[row, :count]
            scale = np.abs(wanted.merged).max()
            worst = max(worst, float(np.abs(rows - wanted.merged).max() / scale))
        assert worst < 1e-5
    return worst


CASES: dict[str, dict[str, Any]] = {
    "as released": {},
    "falling": {"inflect": -0.6},
    "without sizes": {"proportional": False},
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_oracles(case: str) -> None:
    method = get_method("tome", CASES[case])
    print(f"{case}: {PROBLEMS} problems, worst {compare(method):.1e}")


def test_the_schedule_leaves_exactly_the_budget() -> None:
    """Of LLaVA-1.5's 23 blocks, of few, and of one."""
    run = jax.jit(
        jax.vmap(
            lambda tokens, keep, inflect, blocks: jnp.stack(
                ours.schedule(tokens, keep, blocks, 576, inflect)
            ),
            in_axes=(0, 0, 0, None),
        ),
        static_argnums=3,
    )
    rng = np.random.default_rng(0)
    for blocks in (1, 3, 23):
        tokens = np.r_[576, 576, 576, rng.integers(1, 577, 60)].astype(np.int32)
        least = -(-tokens // 2 ** min(blocks, 20))
        keep = np.maximum(np.r_[192, 128, 64, rng.integers(least[3:], tokens[3:] + 1)], least)
        inflect = rng.choice([0.0, 0.5, -1.0, 1.0], len(tokens)).astype(np.float32)
        made = np.asarray(run(tokens, keep.astype(np.int32), inflect, blocks))
        for n, left, curve, counts in zip(tokens, keep, inflect, made, strict=True):
            own = inflected(int(n), int(left), float(curve), blocks)
            assert counts.tolist() == own and sum(own) == n - left
            if curve == 0:
                assert own == exact_schedule(tokens=int(n), keep=int(left), layers=blocks)


def test_budgets_and_neighbours_change_nothing() -> None:
    """A picture alone gives what it gives in a batch, with other budgets beside it."""
    problems = [problem(seed) for seed in range(ROWS)]
    visual, prompt, limits = batch(problems)
    method = get_method("tome")
    run = jax.jit(lambda v, p, limit: method.select(v, p, SLOTS, limit=limit))
    whole = run(visual, prompt, limits)
    turned = jnp.roll(jnp.arange(ROWS), 3)
    others = jnp.where(turned == 5, limits[5], jnp.maximum(limits[turned], 4))
    again = run(*jax.tree.map(lambda x: x[turned], (visual, prompt)), others)
    at = int(jnp.argmax(turned == 5))
    assert again.indices[at].tolist() == whole.indices[5].tolist()
    np.testing.assert_allclose(again.rows[at], whole.rows[5], rtol=1e-6, atol=1e-6)


FAULTS = {
    "places < left, bias": "places <= left, bias",
    "jnp.log(sizes)": "-jnp.log(sizes)",
    "axis=1), left, r)": "axis=1), left, r + 1)",
    "sizes + goes.T @ sizes": "sizes + goes @ sizes",
    "wide = sizes[:, None] * x": "wide = x",
    "left - r\n": "left - r - 1\n",
    "& (places > 0)": "& (places >= 0)",
    "rank < r": "rank <= r",
    "jnp.argsort(-score": "jnp.argsort(score",
    "jnp.max(similar, axis=1)": "jnp.max(similar, axis=0)",
    "places % 2 == 1) & jnp": "places % 2 == 0) & jnp",
    "x = x + block.feed(x)": "x = x + block.feed(x) * (sizes[:, None] == 1)",
    "counts.append(jnp.minimum(jnp.minimum(wanted, left // 2)": (
        "counts.append(jnp.minimum(jnp.minimum(wanted + 1, left // 2)"
    ),
}


@pytest.mark.deep
def test_a_fault_is_seen() -> None:
    """Each of these is one operator, one place or one axis away from the rule."""
    source = inspect.getsource(ours)
    for text, instead in FAULTS.items():
        assert source.count(text) == 1, text
        name = "planted_tome"
        module = type(sys)(name)
        exec(compile(source.replace(text, instead), name, "exec"), module.__dict__)
        try:
            compare(module.Tome(), 96)
        except AssertionError:
            continue
        pytest.fail(f"not seen: {text}")
    print(f"all of {len(FAULTS)} planted faults were seen")


def test_a_row_that_is_not_finite_fails_alone() -> None:
    visual, prompt, limits = batch([problem(seed) for seed in range(ROWS)])
    assert visual.entering is not None
    at = int(jnp.argmax(visual.valid[2]))
    broken = replace(visual, entering=visual.entering.at[2, at, 0].set(jnp.inf))
    made = jax.jit(
        lambda v, p, limit: get_method("tome").select(v, p, SLOTS, limit=limit),
    )(broken, prompt, limits)
    assert made.count.tolist() == jnp.where(jnp.arange(ROWS) == 2, 0, limits).tolist()
