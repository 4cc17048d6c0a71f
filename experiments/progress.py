"""How far a run is: a bar where somebody watches, a line every so often where a log is kept.

A first answer of a large model compiles for minutes and says nothing of its own: what is being
compiled is shown likewise. What the persistent cache has is there in a moment, and no log speaks
of it.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from resprune_jax.experiments.common import console

if TYPE_CHECKING:
    from resprune_jax.models.running.compiling import Program
    from resprune_jax.models.running.warm_up import Step

EVERY_S = 10.0
"""Seconds between the lines of a log."""

LONG_S = 5.0
"""Seconds from which on a log has a line about a program that was compiled."""


class Lines:
    """Prints how many things are done, at most once in `EVERY_S` seconds.

    Args:
        what: is done, as a word for many of them: "rows".
        total: how many there are.
        done: how many of them were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._begin = self._said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._said < EVERY_S or self._done >= self._total:
            return
        self._said = now
        spent = now - self._begin
        left = spent / (self._done - self._before) * (self._total - self._done)
        print(
            f"resprune: {self._done} of {self._total} {self._what} in {spent:.0f} s,"
            f" about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def progress(
    what: str, total: int, done: int = 0, *, quiet: bool = False
) -> Iterator[Callable[..., None]]:
    """Show progress on standard error: a bar on a terminal, else lines for a log.

    Args:
        what: see `Lines`.
        total: how many there are.
        done: how many of them were done before.
        quiet: show nothing.

    Yields:
        A function that is told how many more are done, by default one.
    """
    if quiet:
        yield lambda count=1: None
        return
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield Lines(what, total, done).advance
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(TextColumn(what), *columns, TimeRemainingColumn(), console=screen) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count=1: bar.advance(task, count)


class _Show(Protocol):
    """Shows one program at a time."""

    def begin(self, program: str, place: str) -> None:
        """It is being compiled; `place` says how many of how many, or nothing."""

    def rest(self) -> None:
        """Nothing is being compiled; it may go on with `begin`."""

    def end(self, found: bool) -> None:
        """It can run now; `found` in the persistent cache."""


class _Lines:
    """Lines on standard error: behind a program that took long, and meanwhile every so often."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._timer: threading.Timer | None = None
        self._program, self._place, self._begun, self._spent = "", "", self._start, 0.0

    def begin(self, program: str, place: str) -> None:
        before = self._spent if program == self._program else 0.0
        self._program, self._place, self._begun = program, place, time.monotonic() - before
        self._wait()

    def rest(self) -> None:
        self.close()
        self._spent = time.monotonic() - self._begun

    def end(self, found: bool) -> None:
        self.close()
        spent, self._spent = time.monotonic() - self._begun, 0.0
        if spent >= LONG_S:
            word = "found" if found else "compiled"
            self._print(f"{word} {self._program} in {spent:.0f} s")

    def close(self) -> None:
        """Nothing is being compiled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self.close()
        self._timer = threading.Timer(EVERY_S, self._still)
        self._timer.daemon = True
        self._timer.start()

    def _still(self) -> None:
        spent = time.monotonic() - self._begun
        self._print(f"compiling {self._program} for {spent:.0f} s")
        self._wait()

    def _print(self, said: str) -> None:
        so_far = time.monotonic() - self._start
        place = f"{self._place}, " if self._place else ""
        print(f"resprune: {said} ({place}{so_far:.0f} s so far)", file=sys.stderr, flush=True)


class _Line:
    """One line of a terminal, there while something is compiled."""

    def __init__(self) -> None:
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=console(stderr=True), transient=True, redirect_stdout=False,
        )  # fmt: skip
        self._task = self.bar.add_task("", total=None, visible=False)

    def begin(self, program: str, place: str) -> None:
        where = f" ({place})" if place else ""
        self.bar.update(self._task, description=f"compiling {program}{where}", visible=True)

    def rest(self) -> None:
        self.bar.update(self._task, visible=False)

    def end(self, found: bool) -> None:
        self.rest()


@contextmanager
def _shown(*, quiet: bool, beside: bool) -> Iterator[_Show | None]:
    if quiet:
        yield None
    elif beside or not console(stderr=True).is_terminal:
        lines = _Lines()
        try:
            yield lines
        finally:
            lines.close()
    else:
        line = _Line()
        with line.bar:
            yield line


@contextmanager
def compiles(*, quiet: bool = False, beside: bool = False) -> Iterator[None]:
    """Show what JAX compiles inside of the block, on standard error.

    Args:
        quiet: show nothing.
        beside: a progress bar is there, which prints lines above itself: lines, no line of its own.
    """
    if quiet:
        yield
        return
    from resprune_jax.models.running.compiling import compiling

    with _shown(quiet=quiet, beside=beside) as show:

        def tell(program: "Program") -> None:
            if show is None:
                return
            if program.done:
                show.end(program.found)
            elif program.rests:
                show.rest()
            else:
                show.begin(program.name, "")

        with compiling(tell):
            yield


@contextmanager
def warming(*, quiet: bool = False) -> Iterator[Callable[["Step"], None]]:
    """Show how far a warm-up is, on standard error.

    Args:
        quiet: show nothing.

    Yields:
        The `announce` of `LVLM.warm_up`.
    """
    with _shown(quiet=quiet, beside=False) as show:

        def announce(step: "Step") -> None:
            if show is None:
                return
            if step.done:
                show.end(step.found)
            else:
                show.begin(step.program, f"{step.number} of {step.total}")

        yield announce
