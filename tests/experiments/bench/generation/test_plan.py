"""The order of the lines of `bench generate`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.experiments.bench.generation.plan import Line, Way, plan_groups

THEIRS: list[list[Way]] = [[], ["eager"], ["compiled", "eager"], ["compiled", "eager", "flash"]]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.lists(st.integers(1, 200), min_size=1, max_size=4), st.sampled_from(THEIRS), st.booleans(),
)  # fmt: skip
def test_every_line_once_and_a_group_is_one_batch(
    batches: list[int], keeps: list[int], theirs: list[Way], hurried: bool
) -> None:
    groups = plan_groups(batches, keeps, theirs, hurried=hurried)
    lines = [line for group in groups for line in group]
    ways: list[Way] = ["here", *theirs]
    wanted = {Line(b, way, keep) for b in batches for way in ways for keep in (None, *keeps)}
    assert set(lines) == wanted and len(lines) == len(wanted)
    assert all(len({line.batch for line in group}) == 1 for group in groups)
    # Ours, full and pruned, come first; a full model comes before what is set against it.
    first = 128 if 128 in keeps else keeps[0]
    assert lines[:2] == [Line(batches[0], "here", None), Line(batches[0], "here", first)]
    for line in lines:
        assert lines.index(Line(line.batch, line.way, None)) <= lines.index(line)
    if hurried:  # what is asked about most of every batch, before anything else of any
        core = [line for line in lines if line.keep in (None, first) and line.way != "flash"]
        assert lines[: len(core)] == core
    else:
        assert len(groups) == len(set(batches))


@pytest.mark.parametrize("hurried", [False, True])
def test_the_first_six_lines_of_a_run(hurried: bool) -> None:
    (first, *_) = plan_groups((1, 8, 32), (192, 128, 64), THEIRS[2], hurried=hurried)
    assert [line.name for line in first[:6]] == [
        "batch 1, here, all",
        "batch 1, here, 128",
        "batch 1, transformers (eager, sdpa), all",
        "batch 1, transformers (compiled, sdpa), all",
        "batch 1, transformers (eager, sdpa), 128",
        "batch 1, transformers (compiled, sdpa), 128",
    ]
