"""Progress in a log: a line every so often, none where a run is short."""

import io
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from resprune_jax.experiments import progress
from resprune_jax.models.running.warm_up import Step


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


class Clock:
    """Time that passes when it is told to, and the timers that wait for it."""

    def __init__(self) -> None:
        self.now = 50.0
        self.waiting: list[Any] = []
        clock = self

        class Timer:
            """In place of `threading.Timer`."""

            daemon = False

            def __init__(self, seconds: float, then: Callable[[], None]) -> None:
                self.at, self.then = clock.now + seconds, then

            def start(self) -> None:
                clock.waiting.append(self)

            def cancel(self) -> None:
                clock.waiting = [each for each in clock.waiting if each is not self]

        self.timer = Timer

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Let time pass, and whatever waits for it happen."""
        end = self.now + seconds
        while due := [each for each in self.waiting if each.at <= end]:
            first = min(due, key=lambda each: each.at)
            self.waiting.remove(first)
            self.now = first.at
            first.then()
        self.now = end


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    monkeypatch.setattr(progress.threading, "Timer", made.timer)
    return made


def step(number: int, *, done: bool, found: bool = False) -> Step:
    names = ["encode", "prune", "lay_out", "prefill", "decode"]
    return Step(names[number - 1], number, 5, 0.0, done, found)


def test_a_log_says_what_takes_long_to_compile(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    spent = {1: 3.0, 2: 4.9, 3: 0.1, 4: 26.0, 5: 6.0}
    with progress.warming() as announce:
        for number, seconds in spent.items():
            announce(step(number, done=False))
            clock.pass_by(seconds)
            announce(step(number, done=True, found=number == 5))
        clock.pass_by(99.0)  # nothing waits any more
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "resprune: compiling prefill for 10 s (4 of 5, 18 s so far)",
        "resprune: compiling prefill for 20 s (4 of 5, 28 s so far)",
        "resprune: compiled prefill in 26 s (4 of 5, 34 s so far)",
        "resprune: found decode in 6 s (5 of 5, 40 s so far)",
    ]


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.warming(quiet=True) as announce:
        announce(step(1, done=False))
        clock.pass_by(60.0)
        announce(step(1, done=True))
    with progress.progress("rows", 9, quiet=True) as advance:
        clock.pass_by(60.0)
        advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("nothing_found")
@pytest.mark.parametrize("quiet", [False, True])
def test_what_jax_compiles_is_said_beside_a_bar(
    clock: Clock, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    def slow(x: jax.Array) -> jax.Array:
        clock.pass_by(12.0)  # while it is traced
        return x + 1

    with progress.compiles(quiet=quiet, beside=True):
        jax.jit(slow)(np.zeros(3, np.float32))
    said = [
        "resprune: compiling slow for 10 s (10 s so far)",
        "resprune: compiled slow in 12 s (12 s so far)",
    ]
    assert capsys.readouterr().err.splitlines() == ([] if quiet else said)


@pytest.mark.usefixtures("nothing_found")
def test_a_trace_alone_is_no_compile(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Loading weights traces for shapes, and then reads for long."""

    def shapes(x: jax.Array) -> jax.Array:
        clock.pass_by(6.0)
        return x * 2

    with progress.compiles(beside=True):
        made = jax.jit(shapes)
        jax.eval_shape(made, np.zeros(5, np.float32))
        clock.pass_by(99.0)
        assert capsys.readouterr().err == ""
        made(np.zeros(5, np.float32))  # goes on with what was traced
    assert capsys.readouterr().err == "resprune: compiled shapes in 6 s (105 s so far)\n"


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    made = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "console", lambda stderr: made)
    with progress.warming() as announce:
        for number in (1, 2, 3):
            announce(step(number, done=False))
            time.sleep(0.25)  # the line is drawn ten times a second
            announce(step(number, done=True))
    drawn = screen.getvalue()
    for number, name in ((1, "encode"), (2, "prune"), (3, "lay_out")):
        assert f"compiling {name} ({number} of 5)" in drawn
    assert "\x1b[2K" in drawn and drawn.count("\n") <= 2
