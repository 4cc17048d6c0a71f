"""What may stand where an array or a number belongs, and what is refused."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import CallError, prepare, select
from resprune_jax.arguments import array_of, numbers, whole
from resprune_jax.methods import ResPrune

TOKENS = np.random.default_rng(3).standard_normal((12, 6)).astype(np.float32)
SAME: list[Any] = [
    TOKENS.tolist(), tuple(map(tuple, TOKENS.tolist())), TOKENS.astype(">f4"), jnp.asarray(TOKENS),
    TOKENS.astype(np.longdouble), TOKENS.astype("<f8"), list(TOKENS),
]  # fmt: skip


@pytest.mark.parametrize("tokens", SAME)
def test_the_same_numbers_give_the_same_picks(tokens: Any) -> None:
    want = select(TOKENS, 4, engine="gram")
    for given in (tokens, prepare(tokens)):
        got = select(given, 4, engine="gram", limit=[4][0], alpha=np.float16(0.5))
        np.testing.assert_array_equal(got.indices, want.indices)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("float", [1, "a"]), ("float", {"a": 1.0}), ("float", b"12"),
        ("float", np.zeros(3, "M8[s]")),
        ("whole", 2.0), ("whole", [True, False]), ("whole", jnp.ones(2)), ("whole", 10**30),
        ("truth", 2), ("truth", ["no"]), ("truth", [0.0, 1.0]), ("number", [[1], [1, 2]]),
        ("number", None), ("number", np.array([None])), ("number", 1j), ("number", "7"),
    ],
)  # fmt: skip
def test_anything_else_is_one_call_error(kind: Any, bad: Any) -> None:
    with pytest.raises(CallError, match="the argument holds"):
        array_of("the argument", bad, kind)


def test_whole_numbers_and_rows_of_numbers() -> None:
    assert [whole("n", x) for x in (3, np.int8(3), np.array(3), jnp.int32(3))] == [3] * 4
    for bad in (3.0, True, np.bool_(True), "3", None, 0, [3], math.nan):
        with pytest.raises(CallError, match="n must be a whole number, at least 1"):
            whole("n", bad)
    assert numbers((1, 2.5)) == (1.0, 2.5) == numbers(np.array([1, 2.5], np.float32))
    assert numbers(np.float32(0.5)) == 0.5 == numbers(jnp.float32(0.5))
    assert all(numbers(bad) is None for bad in ("1", True, [[1.0]], None, 1j, ["a"]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"limit": 2.5}, "limit holds whole numbers"), ({"limit": np.float64(4e9)}, "limit holds"),
        ({"limit": jnp.float32(2)}, "limit holds"), ({"limit": np.zeros(0, int)}, "limit has"),
        ({"alpha": 1e40}, "finite in float32"), ({"alpha": 10**500}, "alpha holds numbers"),
        ({"first": 0.5}, "first holds"), ({"first": 12}, "token index"),
        ({"valid": np.array(["True"] * 12)}, "valid holds"), ({"tolerance": "1"}, "tolerance"),
        ({"relevance": ["high"] * 12}, "relevance"), ({"relevance": np.full(12, 1e300)}, "float32"),
        ({"engine": ["gram"]}, "unknown engine"), ({"max_bytes": 1.5}, "max_bytes must be"),
    ],
)  # fmt: skip
def test_select_refuses_before_it_compiles(more: dict[str, Any], says: str) -> None:
    with pytest.raises(CallError, match=says):
        select(TOKENS, 4, **more)
    if "valid" not in more:
        with pytest.raises(CallError):
            select(prepare(TOKENS), 4, **more)


def test_a_limit_is_what_was_meant_or_fails_its_row() -> None:
    for limit in (2**31, 2**40, np.uint64(2**63), np.uint8(200)):
        assert int(select(TOKENS, 4, limit=limit, engine="gram").count) == 4
    for limit in (0, -1, -(2**31)):
        failed = select(TOKENS, 4, limit=jnp.int32(limit), engine="gram")
        assert int(failed.count) == 0 and np.isnan(failed.energy).all()
    rows = select(np.stack([TOKENS] * 3), 4, limit=jnp.array([3, 0, 1]), engine="gram")
    assert rows.count.tolist() == [3, 0, 1]
    assert np.isnan(rows.energy).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(CallError, match="within float32"):
        select(TOKENS.astype(np.float64) * 1e300, 4)


@pytest.mark.parametrize(
    "alpha", ["0.5", None, True, b"1", 1j, -0.1, math.nan, math.inf, 1e39, 10**400, [], ["a"],
              np.array([0.5, -1]), np.datetime64("2026"), bytearray(b"1"), {"a": 1}],
)  # fmt: skip
def test_an_alpha_is_a_number_or_one_for_each_row(alpha: Any) -> None:
    with pytest.raises(CallError, match="alpha"):
        ResPrune(alpha=alpha)
    assert ResPrune(alpha=[0.5, 1.0]).alpha.tolist() == [0.5, 1.0]  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("k", [0, 5, 1.5, "2", None, True])
def test_a_prefix_is_a_whole_number_of_tokens(k: Any) -> None:
    with pytest.raises(CallError, match="prefix"):
        select(TOKENS, 4, engine="gram").prefix(k)
