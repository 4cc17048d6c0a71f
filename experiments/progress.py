"""How far a run is: a bar where somebody watches, a line every so often where a log is kept."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from resprune_jax.experiments.common import console

EVERY_S = 10.0
"""Seconds between the lines of a log."""


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
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Show progress on standard error: a bar on a terminal, else lines for a log.

    Args:
        what: see `Lines`.
        total: how many there are.
        done: how many of them were done before.

    Yields:
        A function that is told how many more are done, by default one.
    """
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
