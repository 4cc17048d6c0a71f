"""Counting what XLA compiles."""

import contextlib
from collections.abc import Iterator

import jax.monitoring


@contextlib.contextmanager
def backend_compiles() -> Iterator[list[float]]:
    """Collect the duration of every backend compile; it sees stray eager operations too."""
    seen: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
