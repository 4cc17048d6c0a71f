"""How much of a call's time goes into compiling: the first call of a shape compiles, others do not.

JAX tells how long each trace, lowering and backend compile took, when it ends. They may lie inside
one another, so that their times are not summed but laid over one another.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax.monitoring

_PARTS = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")
EVENTS = frozenset(f"/jax/core/compile/{part}" for part in _PARTS)


class Compiling:
    """Seconds that this thread has spent compiling."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._thread = threading.get_ident()

    @property
    def seconds(self) -> float:
        """So far."""
        return sum((end - start for start, end in self._spans), 0.0)

    def listen(self, event: str, duration_secs: float, **_: str | int) -> None:
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


@contextmanager
def compiling() -> Iterator[Compiling]:
    """Watch what is compiled inside of the block."""
    watch = Compiling()
    jax.monitoring.register_event_duration_secs_listener(watch.listen)
    try:
        yield watch
    finally:
        with suppress(AssertionError):  # somebody cleared all listeners meanwhile
            jax.monitoring.unregister_event_duration_listener(watch.listen)
