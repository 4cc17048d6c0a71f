"""Timing that can be believed: sides taken in turn in one process, medians with their spread.

A side is a call that has been compiled before and that waits for its result. While sides are timed
a listener counts what XLA compiles: one compile, and the measurement is refused.
"""

import contextlib
import ctypes
import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"

SETTLE = 0.003
"""Seconds of rest before a side: the thread pool of the side before stops spinning in them."""

SHORT = 0.2
"""Seconds; a call below that is made once more, untimed, so that its caches and threads are its
own again after the other sides' turns."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One contestant.

    Attributes:
        name: what it is called.
        call: does the work once and returns when it is done.
        usual: seconds it took when it was tried; None: not tried yet.
    """

    name: str
    call: Callable[[], Any]
    usual: float | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """The samples of a side, in seconds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The lower quartile; the least of fewer than four samples."""
        return self._quartile(0)

    @property
    def high(self) -> float:
        """The upper quartile; the largest of fewer than four samples."""
        return self._quartile(2)

    def _quartile(self, which: int) -> float:
        if len(self.samples) < 4:
            return max(self.samples) if which else min(self.samples)
        return statistics.quantiles(self.samples, n=4, method="inclusive")[which]

    def facts(self, share: float = 1.0) -> dict[str, Any]:
        """Median, quartiles and least in milliseconds, times `share`, and the number of runs."""
        parts = {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "least": min(self.samples),
        }
        return {name: 1e3 * share * x for name, x in parts.items()} | {"runs": len(self.samples)}


@contextlib.contextmanager
def no_compiles(what: str) -> Iterator[None]:
    """Refuse a timed region in which XLA compiled anything, a stray eager operation included.

    Raises:
        RunError: something was compiled.
    """
    import jax.monitoring

    seen: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILE_EVENT:
            seen.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if seen:
        raise RunError(f"{what}: {len(seen)} compiles inside the timed region; nothing was kept")


def interleave(
    sides: Sequence[Side], repeats: int, seconds: float, *, settle: float = SETTLE
) -> dict[str, Timing]:
    """Time sides in turn: every round takes each of them once, the order turning from round to
    round.

    Args:
        sides: what to time; one that was not tried yet is called once before, untimed.
        repeats: rounds to make.
        seconds: no round begins after so many, but one is always made.
        settle: seconds of rest before each side.

    Returns:
        The samples of each side by name.

    Raises:
        RunError: a side compiled something while it was timed.
    """

    def timed(call: Callable[[], Any]) -> Callable[[], dict[str, float]]:
        return lambda: {"": taken(call)}

    timed_sides = [Side(side.name, timed(side.call), side.usual) for side in sides]
    parts = interleave_parts(timed_sides, repeats, seconds, settle=settle)
    return {name: each[""] for name, each in parts.items()}


def interleave_parts(
    sides: Sequence[Side], repeats: int, seconds: float, *, settle: float = SETTLE
) -> dict[str, dict[str, Timing]]:
    """`interleave` for sides that time their own parts: a call gives seconds by part."""
    usual = {side.name: taken(side.call) if side.usual is None else side.usual for side in sides}
    samples: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    begun = time.perf_counter()
    with no_compiles(" / ".join(samples)):
        for turn in range(repeats):
            if turn and time.perf_counter() - begun > seconds:
                break
            at = turn % len(sides)
            for side in (*sides[at:], *sides[:at]):
                time.sleep(settle)
                if usual[side.name] < SHORT:
                    side.call()
                samples[side.name].append(side.call())
    return {
        name: {part: Timing(tuple(one[part] for one in each)) for part in each[0]}
        for name, each in samples.items()
    }


def taken(call: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_growth(call: Callable[[], Any]) -> int | None:
    """Make a call and tell by how many bytes this process grew at most meanwhile.

    The allocator gives back what it holds free, and the kernel forgets its highest mark, before.

    Returns:
        Bytes, or None where that cannot be read (it can on Linux with glibc).
    """
    status = Path("/proc/self/status")
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if status.is_file() else None
    if trim is None:
        call()
        return None
    trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        call()
        return None
    before = _status(status)["VmRSS"]
    call()
    return max(0, _status(status)["VmHWM"] - before)


def _status(path: Path) -> dict[str, int]:
    lines = (line.split(":", 1) for line in path.read_text().splitlines())
    return {key: int(value.split()[0]) * 1024 for key, value in lines if key in ("VmRSS", "VmHWM")}


def free_memory() -> int:
    """Bytes that a row may take: of the device, or of the machine where that is the CPU."""
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    """Cores that this process may use: as many threads as both runtimes get."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import jax

    device = jax.devices()[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "platform": device.platform,
        "device": _cpu() if device.platform == "cpu" else device.device_kind,
        "cpu": _cpu(),
        "cores": threads(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": _version("torch"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        flags = next((line for line in lines if line.startswith("flags")), "")
        if names:
            return names[0] + (", AVX-512" if "avx512f" in flags.split() else "")
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def speeds(*, size: int | None = None) -> dict[str, float]:
    """What the machine can do at best, measured now: bytes and float operations a second.

    Args:
        size: numbers in the array that is streamed; default 2^26 on a CPU, far beyond its caches,
            2^29 elsewhere.

    Returns:
        "bandwidth": the better of reading an array and of updating one in place, read and
        written. "matmul_float32" and "matmul_bfloat16": of a square product, float32 results.
    """
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    size = size or (1 << 26 if on_cpu else 1 << 29)
    side = min(2048 if on_cpu else 8192, int(size**0.5))
    rows = jnp.ones((size // side, side), jnp.float32)
    vector = jnp.ones((side,), jnp.float32)
    read = jax.jit(lambda a, x: a @ x).lower(rows, vector).compile()
    update = jax.jit(lambda a: a * 1.5, donate_argnums=0).lower(rows).compile()
    held = [rows]

    def in_place() -> None:
        held[0] = update(held[0])
        jax.block_until_ready(held[0])

    moved = 4 * rows.size
    took_read = _best(lambda: jax.block_until_ready(read(held[0], vector)))
    found = {"bandwidth": max(moved / took_read, 2 * moved / _best(in_place))}
    held.clear()
    del rows
    for dtype in (jnp.float32, jnp.bfloat16):
        square = jnp.ones((side, side), dtype)
        product = jax.jit(
            lambda a: jax.lax.dot(
                a, a, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
            )
        )
        ready = product.lower(square).compile()
        took = _best(lambda: jax.block_until_ready(ready(square)))  # noqa: B023
        found[f"matmul_{jnp.dtype(dtype).name}"] = 2 * side**3 / took
    return found


def _best(call: Callable[[], Any], runs: int = 5) -> float:
    """Seconds of the fastest of some calls: the machine's limit is what nothing else disturbed."""
    call()
    return min(taken(call) for _ in range(runs))


def leave_memory_to_torch() -> None:
    """Have JAX take GPU memory as it needs it, so that torch finds some on the same device.

    Works before JAX starts its backend; a choice of the user's own stays.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def note(text: str) -> None:
    """Tell the user on standard error what is going on."""
    print(text, file=sys.stderr, flush=True)
