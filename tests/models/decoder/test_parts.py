"""Attention in parts against small blocks with an online softmax, and how it is divided."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.models.decoder import attention, gpu, parts
from resprune_jax.models.decoder.attention import attend, attention_columns
from resprune_jax.models.decoder.parts import Division, divide


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, so that small arrays have several, the last one cut."""
    monkeypatch.setattr(attention, "BLOCK", 16)


@settings(max_examples=200, deadline=None)
@given(
    batch=st.integers(1, 48),
    queries=st.integers(1, 20000),
    keys=st.integers(1, 20000),
    heads=st.integers(1, 40),
)
def test_parts_hold_few_scores_and_every_query(
    batch: int, queries: int, keys: int, heads: int
) -> None:
    plan = divide(batch, queries, keys, heads)
    assert batch % plan.rows == 0
    assert (plan.parts - 1) * plan.size < queries <= plan.parts * plan.size
    assert 4 * plan.rows * plan.size * keys * heads <= gpu.HELD or (plan.rows, plan.size) == (
        1,
        1,
    )
    assert plan.parts <= parts.WRITTEN_OUT or plan.rows == 1
    least = -(-4 * batch * queries * keys * heads // gpu.HELD)
    assert batch // plan.rows * plan.parts <= 4 * max(least, batch)


def test_known_divisions() -> None:
    assert divide(1, 8704, 8704, 16) == Division(1, 2, 4352)  # a picture of 1036 x 1036
    assert divide(32, 2240, 2240, 28) == Division(32, 5, 448)
    assert divide(1, 43008, 43008, 16).parts == 28
    assert divide(2, 30, 30, 4) == Division(2, 1, 30)
    assert divide(32, 8704, 8704, 16) == Division(4, 5, 1792)


CASES: dict[str, tuple[int, int, int, Division, dict[str, Any]]] = {
    # rows, queries, keys, how it is divided, and what hides keys
    "written out, causal": (4, 40, 40, Division(4, 5, 8), {"causal": True}),
    "a window, padding": (4, 40, 40, Division(4, 3, 14), {"window": 7, "valid": True}),
    "behind a cache": (4, 12, 40, Division(4, 2, 6), {"causal": True, "offset": 28, "valid": True}),
    "rows, segments": (4, 40, 40, Division(2, 2, 20), {"segments": True}),
    "rows, lengths": (4, 40, 40, Division(1, 2, 20), {"lengths": True}),
    "rows share segments": (4, 40, 40, Division(2, 1, 40), {"segments": "shared"}),
    "a loop, segments": (4, 40, 40, Division(2, 10, 4), {"segments": True}),
    "a loop, cut": (4, 42, 42, Division(4, 9, 5), {"lengths": True}),
    "a loop, a window": (4, 42, 42, Division(1, 9, 5), {"window": 9, "valid": True}),
}


def inputs(rows: int, queries: int, keys: int, kinds: dict[str, Any], rng_seed: int) -> Any:
    """q (B, S, 4, 8), k and v (B, T, 2, 8), and the options of `attend`."""
    rng = np.random.default_rng(rng_seed)
    q = rng.normal(size=(rows, queries, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, rows, keys, 2, 8)).astype(np.float32)
    more: dict[str, Any] = {}
    if "valid" in kinds:
        more["valid"] = rng.random((rows, keys)) < 0.8
    if "segments" in kinds:
        many = 1 if kinds["segments"] == "shared" else rows
        more["segments"] = np.sort(rng.integers(0, 4, (many, keys)), axis=1).astype(np.int32)
    if "lengths" in kinds:
        more["lengths"] = np.append(rng.integers(0, keys, rows - 1), keys).astype(np.int32)
    return (q, k, v), more


def mostly_deep(names: list[str], quick: str) -> list[Any]:
    """All but one take the time of `make test-deep`."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.deep) for name in names]


@pytest.mark.parametrize("name", mostly_deep(list(CASES), "rows, segments"))
def test_parts_are_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries, keys, plan, kinds = CASES[name]
    static = {key: kinds[key] for key in ("causal", "window", "offset") if key in kinds}
    asked = []
    monkeypatch.setattr(parts, "divide", lambda *sizes: asked.append(sizes) or plan)

    @jax.jit
    def both(arrays: Any, more: Any) -> list[jax.Array]:
        return [
            attend(*arrays, **more, **static, engine=engine) for engine in ("parts", "blockwise")
        ]

    for rng_seed in range(3):
        arrays, more = inputs(rows, queries, keys, kinds, rng_seed)
        got, want = both(arrays, more)
        if "lengths" in more:  # of what lies behind them nothing is said but that it is finite
            assert np.isfinite(got).all()
            real = np.arange(queries) < more["lengths"][:, None]
            got, want = np.asarray(got)[real], np.asarray(want)[real]
        np.testing.assert_allclose(got, want, atol=2e-6)
    assert asked == [(rows, queries, keys, 4)]


COLUMNS = [name for name in CASES if "segments" in name or "lengths" in name or "cut" in name]


@pytest.mark.parametrize("name", mostly_deep(COLUMNS, "rows, lengths"))
def test_columns_in_parts_are_the_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries, keys, plan, kinds = CASES[name]
    monkeypatch.setattr(parts, "divide", lambda *_: plan)

    @jax.jit
    def both(q: Any, k: Any, more: Any) -> list[jax.Array]:
        return [attention_columns(q, k, **more, engine=engine) for engine in ("parts", "blockwise")]

    (q, k, _), more = inputs(rows, queries, keys, kinds, 7)
    if kinds.get("segments") == "shared":
        more["segments"] = np.repeat(more["segments"], rows, axis=0)
    got, want = both(q, k, more)
    real = np.arange(keys) < more.get("lengths", np.full(rows, keys))[:, None]
    np.testing.assert_allclose(np.asarray(got)[real], np.asarray(want)[real], atol=2e-6)
    if "lengths" in more:
        # A row hands out as much as it has real tokens, and none of it to what lies behind.
        handed = np.where(real, got, 0).sum(axis=1)
        np.testing.assert_allclose(handed, more["lengths"], rtol=1e-5)


@pytest.mark.parametrize("engine", mostly_deep(["xla", "parts", "blockwise"], "xla"))
def test_lengths_hide_what_lies_behind(engine: Any) -> None:
    (q, k, v), more = inputs(4, 40, 40, {"lengths": True}, 3)
    lengths = more["lengths"]
    real = np.arange(40) < lengths[:, None]
    run = jax.jit(lambda q, k, v, lengths: attend(q, k, v, lengths=lengths, engine=engine))
    got = np.asarray(run(q, k, v, lengths))
    padded = np.asarray(run(q, k, v * real[:, :, None, None], lengths))
    np.testing.assert_array_equal(got[real], padded[real])
    # A row as if it were alone, and all of every row.
    alone = tuple(np.tile(x[:1, : lengths[0]], (1, 40, 1, 1))[:, :40] for x in (q, k, v))
    assert (
        np.abs(got[0, : lengths[0]] - np.asarray(run(*alone, lengths[:1]))[0, : lengths[0]]).max()
        < 2e-6
    )
    whole = np.asarray(run(q, k, v, np.full(4, 40, np.int32)))
    assert np.abs(got - whole)[:3][real[:3]].max() > 1e-3
    np.testing.assert_allclose(got[3], whole[3], atol=2e-6)
