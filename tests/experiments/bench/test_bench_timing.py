"""How the benchmarks time: statistics, turns, and no compile inside a timed region."""

from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.errors import RunError
from resprune_jax.experiments.bench import fit as bench_fit
from resprune_jax.experiments.bench import timing as bench_timing
from resprune_jax.experiments.bench.engines import Compiled, Refused, compiled
from resprune_jax.experiments.bench.problems import Size
from resprune_jax.experiments.bench.timing import (
    Side,
    Timing,
    interleave,
    interleave_parts,
    machine,
    peak_growth,
    speeds,
)


def test_statistics() -> None:
    timing = Timing((0.004, 0.001, 0.002, 0.003, 0.100))
    assert timing.median == 0.003  # one slow run does not move it
    assert (timing.low, timing.high) == (0.002, 0.004)
    facts = timing.facts(1 / 2)
    assert facts == pytest.approx({"median": 1.5, "low": 1, "high": 2, "least": 0.5, "runs": 5})
    few = Timing((0.2, 0.1))
    assert (few.low, few.high) == (0.1, 0.2)


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = [Side(name, lambda name=name: calls.append(name)) for name in "abc"]
    times = interleave(sides, 3, seconds=10, settle=0)
    # Each once to know how long it takes, then in three rounds, each time once untimed before.
    assert calls == [*"abc", *"aabbcc", *"bbccaa", *"ccaabb"]
    assert {name: len(timing.samples) for name, timing in times.items()} == dict.fromkeys("abc", 3)


def test_a_side_that_was_tried_or_is_long_is_not_called_for_nothing() -> None:
    calls: list[str] = []
    sides = [Side("long", lambda: calls.append("long"), usual=5.0)]
    interleave(sides, 2, seconds=10, settle=0)
    assert calls == ["long"] * 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that sleeping alone moves on."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    fake = SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(bench_timing, "time", fake)
    yield fake


def test_one_round_is_always_made_and_time_ends_the_others(clock: SimpleNamespace) -> None:
    side = Side("slow", lambda: clock.sleep(2.0), usual=2.0)
    times = interleave([side], 100, seconds=5, settle=0)
    assert times["slow"].samples == (2.0, 2.0, 2.0)  # the third began before 5 seconds
    times = interleave([side], 100, seconds=0, settle=0)
    assert times["slow"].samples == (2.0,)


def test_the_time_is_that_of_the_call_alone(clock: SimpleNamespace) -> None:
    sides = [Side("a", lambda: clock.sleep(1.0)), Side("b", lambda: clock.sleep(3.0))]
    times = interleave(sides, 2, seconds=100, settle=7)
    assert times["a"].samples == (1.0, 1.0) and times["b"].samples == (3.0, 3.0)


def test_parts_of_a_side() -> None:
    sides = [Side("a", lambda: {"first": 0.25, "second": 0.5})]
    parts = interleave_parts(sides, 2, seconds=10, settle=0)["a"]
    assert {name: timing.samples for name, timing in parts.items()} == {
        "first": (0.25, 0.25), "second": (0.5, 0.5),
    }  # fmt: skip


def test_a_compile_in_the_timed_region_is_refused() -> None:
    sizes = iter(range(3, 100))

    def new_shape_every_time() -> None:
        jax.block_until_ready(jnp.sin(jnp.ones(next(sizes))))

    with pytest.raises(RunError, match=r"grows: \d+ compiles inside the timed region"):
        interleave([Side("grows", new_shape_every_time)], 2, seconds=10, settle=0)


def test_a_compiled_side_cannot_compile() -> None:
    side = compiled("double", lambda x: 2 * x, jnp.ones(4))
    assert isinstance(side, Compiled)
    np.testing.assert_array_equal(side(), [2, 2, 2, 2])
    assert side.planned is not None and side.planned["arguments"] == 16
    with pytest.raises(TypeError):  # another shape is an error, not a compile
        Compiled("double", side.program, (jnp.ones(5),))()


def test_a_side_that_does_not_compile_says_why() -> None:
    def refuses(x: jax.Array) -> jax.Array:
        raise NotImplementedError("only on\n  another backend")

    side = compiled("refuses", refuses, jnp.ones(4))
    assert side == Refused("refuses", "NotImplementedError: only on another backend")


def test_memory_growth_is_seen() -> None:
    grown = peak_growth(lambda: np.ones(1 << 23).sum())
    if grown is None:
        print("this system does not tell its peak memory")
        return
    assert 0.9 < grown / (8 << 23) < 1.5


def test_the_machine() -> None:
    about = machine()
    assert about["platform"] == jax.default_backend() and about["cores"] >= 1
    assert about["memory_bytes"] > 1 << 28 and about["jax"] == jax.__version__
    found = speeds(size=1 << 14)
    assert set(found) == {"bandwidth", "matmul_float32", "matmul_bfloat16"}
    assert all(value > 1e6 for value in found.values())


def test_a_fit_finds_what_the_times_are_made_of() -> None:
    rows, times, lazily = {}, {}, {}
    for size, batch in [(Size(576, 4096, 128), 1), *bench_fit.growth_sizes(Size(576, 4096, 128))]:
        name = f"{size} {batch}"
        rows[name] = {"n": size.n, "d": size.d, "keep": size.keep, "batch": batch}
        times[name] = 4e-9 * size.n**2 * size.d + 2e-8 * size.n * size.keep**2 + 0.005 * size.keep
        lazily[name] = 6e-9 * size.n * size.d * size.keep + 3e-7 * size.n**2
    found = bench_fit.fit("gram", rows, times)
    want = {"N^2 d": 4e-9, "N K^2": 2e-8, "K": 0.005}
    strong = {name: value for name, value in found["terms"].items() if name in want}
    assert strong == pytest.approx(want, rel=1e-6)
    assert found["worst_error"] < 1e-6 and found["rows"] == len(rows)
    found = bench_fit.fit("lazy", rows, lazily)
    assert found["terms"]["N d K"] == pytest.approx(6e-9, rel=1e-6)
    assert found["terms"]["N^2"] == pytest.approx(3e-7, rel=1e-6)
    assert found["worst_error"] < 1e-6
    # A time that nothing explains shows as an error of the row that was left out.
    times[f"{Size(2304, 4096, 128)} 1"] *= 3
    assert bench_fit.fit("gram", rows, times)["worst_row"] == f"{Size(2304, 4096, 128)} 1"
