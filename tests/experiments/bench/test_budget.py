"""The time budget of a run, and what is foretold in place of waiting."""

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench import foretell
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.budget import Budget
from resprune_jax.experiments.bench.problems import Size

GROUPS = (bench_torch.ALGORITHM_1, bench_torch.CHOLESKY)


def test_a_row_begins_only_if_its_like_would_end_in_time() -> None:
    now = [100.0]
    budget = Budget(2, clock=lambda: now[0])
    assert budget.left == 120 and budget.allows("here")
    now[0] += 70
    budget.took("here", 60.0)
    assert budget.left == 50
    assert not budget.allows("here") and budget.allows("eager")
    budget.took("here", 50.0)  # the last one counts
    assert budget.allows("here")
    now[0] += 60
    assert budget.left == 0 and not budget.allows("eager")


def test_without_a_budget_everything_begins() -> None:
    budget = Budget(None)
    budget.took("here", 1e9)
    assert budget.allows("here") and budget.left == float("inf")


def seconds(group: str, size: Size, step: float, byte: float) -> float:
    """What a machine of these two costs takes."""
    moved = bench_engines.bytes_moved(group, size, 4)
    assert moved is not None
    return step * size.keep + byte * moved


@settings(deadline=None)
@given(
    st.sampled_from(GROUPS), st.integers(64, 12_000), st.integers(2, 4096), st.floats(0.05, 0.9),
    st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-8),
)  # fmt: skip
def test_what_follows_the_order_of_work_is_foretold(
    group: str, n: int, d: int, share: float, step: float, byte: float
) -> None:
    size = Size(n, d, max(16, int(share * n)))
    samples = [
        foretell.Sample(each, seconds(group, each, step, byte))
        for each in foretell.smaller_sizes(size)
    ]
    assert all(sample.size.n < size.n and sample.size.keep < size.keep for sample in samples)
    # Bytes that grow like the steps would tell nothing apart.
    small, large = (bench_engines.bytes_moved(group, one.size, 4) or 0.0 for one in samples)
    assume(large / small > 1.2 * samples[1].size.keep / samples[0].size.keep)
    told = foretell.foretell(group, size, 4, samples)
    assert told == pytest.approx(seconds(group, size, step, byte), rel=1e-5)


@settings(deadline=None)
@given(
    st.sampled_from(GROUPS), st.integers(64, 12_000), st.integers(2, 4096), st.floats(0.05, 0.9),
    st.floats(1e-4, 10), st.floats(1e-4, 10),
)  # fmt: skip
def test_noise_foretells_no_less_than_what_was_seen(
    group: str, n: int, d: int, share: float, small: float, large: float
) -> None:
    size = Size(n, d, max(16, int(share * n)))
    one, two = foretell.smaller_sizes(size)
    samples = [foretell.Sample(one, small), foretell.Sample(two, large)]
    told = foretell.foretell(group, size, 4, samples)
    # By steps alone it grows least, by bytes alone most.
    moved = [bench_engines.bytes_moved(group, each, 4) or 0.0 for each in (two, size)]
    least, most = large * size.keep / two.keep, large * moved[1] / moved[0]
    assert least * (1 - 1e-6) <= told <= most * (1 + 1e-6)


@pytest.mark.parametrize(("took", "wanted"), [(0.5, 4), (2.9, 4), (5.0, 2), (9.0, 1)])
def test_the_calls_of_a_row(took: float, wanted: int) -> None:
    assert foretell.calls(took, 3.0, 8.0) == wanted


def test_an_estimate_is_no_time() -> None:
    samples = [foretell.Sample(Size(8, 4, 2), 0.5), foretell.Sample(Size(16, 4, 4), 1.0)]
    facts: dict[str, Any] = foretell.facts(2.5, samples)
    assert facts["ms"] == 2500 and [one["ms"] for one in facts["from"]] == [500, 1000]
