"""Progress in a log: a line every so often, none where a run is short."""

import re

import pytest

from resprune_jax.experiments import progress


@pytest.mark.parametrize(("total", "done", "each"), [(50, 0, 1), (200, 30, 8), (7, 6, 1)])
def test_a_log_gets_a_line_every_so_often(
    total: int, done: int, each: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress("rows", total, done) as step:
        for _ in range((total - done) // each):
            clock[0] += 4.0  # seconds that a step takes
            step(each)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    spent = 4.0 * ((total - done) // each)
    # Every third step passes ten seconds; the end has a summary of its own.
    assert len(lines) in (int((spent - 1) // 12), int(spent // 12))
    for number, line in enumerate(lines, start=1):
        found = re.fullmatch(r"resprune: (\d+) of (\d+) rows in (\d+) s, about (\d+) s left", line)
        assert found, line
        count, whole, seconds, left = map(int, found.groups())
        assert (count, whole, seconds) == (done + 3 * number * each, total, 12 * number)
        assert left == round(4.0 * (total - count) / each)


def test_a_short_run_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress("questions", 30) as step:
        for _ in range(10):
            step(3)
    assert capsys.readouterr().err == ""
