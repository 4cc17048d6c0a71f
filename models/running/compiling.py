"""What a call compiles: the first call of a shape does, others do not.

JAX tells when a trace, a lowering and a backend compile of a function begins and ends, and whether
the persistent cache had the program. They may lie inside one another, so that their times are not
summed but laid over one another.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import jax.monitoring

_PARTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")
_LAST = f"/jax/core/compile/{_PARTS[-1]}"
EVENTS = frozenset(f"/jax/core/compile/{part}" for part in _PARTS)
FOUND = "/jax/compilation_cache/cache_hits"


@dataclass(frozen=True)
class Program:
    """A program on its way from Python to the device.

    Attributes:
        name: of the function that was jitted.
        seconds: of its trace, its lowering and its compile so far.
        backend: of its compile alone, or of reading it from the persistent cache.
        done: whether it can run now.
        found: whether the persistent cache had it, so that nothing was compiled.
        rests: whether a part of it has ended and the next has not begun; after a trace that was
            made for shapes alone none ever does.
    """

    name: str
    seconds: float = 0.0
    backend: float = 0.0
    done: bool = False
    found: bool = False
    rests: bool = False


Tell = Callable[[Program], None]
"""Called when a part of a program begins, when it ends, and when the program is done."""


class Compiling:
    """What this thread has spent on compiling.

    Args:
        tell: is told of every program.

    Attributes:
        programs: those that were made so far, in order; small ones of eager operations too.
    """

    def __init__(self, tell: Tell | None = None) -> None:
        self.programs: list[Program] = []
        self._tell = tell
        self._spans: list[tuple[float, float]] = []
        self._thread = threading.get_ident()
        self._depth = 0  # parts that have begun and not ended
        self._name = ""  # of the program that is being made
        self._seconds = 0.0
        self._found = False

    @property
    def seconds(self) -> float:
        """So far."""
        return sum((end - start for start, end in self._spans), 0.0)

    def begin(self, event: str, value: float, **about: str | int) -> None:
        """Take note of something that begins."""
        if event not in EVENTS or threading.get_ident() != self._thread:
            return
        self._depth += 1
        name = _name(about)
        if self._depth == 1:
            if name != self._name:
                self._name, self._seconds = name, 0.0
            self._say(Program(name, self._seconds))

    def listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        """Take note of something that has just ended."""
        if event not in EVENTS or threading.get_ident() != self._thread:
            return
        end = time.perf_counter()
        start = end - duration_secs
        while self._spans and self._spans[-1][0] >= start:  # what lay inside of it
            self._spans.pop()
        if self._spans:
            start = max(start, self._spans[-1][1])
        self._spans.append((start, end))
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            self._seconds += duration_secs
            if event == _LAST:
                made = Program(
                    _name(about), self._seconds, duration_secs, done=True, found=self._found
                )
                self.programs.append(made)
                self._name, self._found = "", False
                self._say(made)
            else:
                self._say(Program(self._name, self._seconds, rests=True))

    def hear(self, event: str, **_: str | int) -> None:
        """Take note of something that happened."""
        if event == FOUND and threading.get_ident() == self._thread:
            self._found = True

    def _say(self, program: Program) -> None:
        if self._tell is not None:
            self._tell(program)


def _name(about: dict[str, str | int]) -> str:
    """The function's name: a trace tells it bare or with its place, later parts as jit(name)."""
    name = str(about.get("fun_name", ""))
    if name.startswith(("jit(", "jit_")):
        name = name[4:].removesuffix(")")
    return name.rpartition(".")[2]


@contextmanager
def compiling(tell: Tell | None = None) -> Iterator[Compiling]:
    """Watch what is compiled inside of the block.

    Args:
        tell: is told of every program, on this thread, see `Tell`.
    """
    watch = Compiling(tell)
    jax.monitoring.register_event_duration_secs_listener(watch.listen)
    jax.monitoring.register_scalar_listener(watch.begin)
    jax.monitoring.register_event_listener(watch.hear)
    try:
        yield watch
    finally:
        with suppress(AssertionError):  # somebody cleared all listeners meanwhile
            jax.monitoring.unregister_event_duration_listener(watch.listen)
        with suppress(AssertionError):
            jax.monitoring.unregister_scalar_listener(watch.begin)
        with suppress(AssertionError):
            jax.monitoring.unregister_event_listener(watch.hear)
