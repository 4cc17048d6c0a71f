"""A child process that runs cases one at a time, under limits of time and memory.

The parent sends a line for each case and waits for its outcome. A case that takes too much CPU time
is ended by the kernel (code in C hears no Python signal), one that waits too long by the parent;
the next case then gets a new child.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.attacks.harness import DIED, HANG, MEMORY, Fuzzer, Outcome, attempt, load

ROOT = Path(__file__).parents[2]
START_S = 120.0
"""Seconds in which a child must have loaded what a fuzzer needs."""


class Worker:
    """Runs cases in a child, which is started when needed; use as a context."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._rest = b""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *args: object) -> None:
        self._stop()
        self._errors.close()

    def run(self, module: str, fuzzer: Fuzzer, seed: int) -> Outcome:
        """Run one case.

        Args:
            module: where the fuzzer is defined, for the child to import.
            fuzzer: which one.
            seed: which case.

        Returns:
            How it ended.

        Raises:
            RuntimeError: the child cannot load the fuzzer.
        """
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None and child.stdin is not None
        child.stdin.write(json.dumps([module, fuzzer.name, seed]).encode() + b"\n")
        child.stdin.flush()
        ready = self._line(START_S)
        if ready is None:
            self._stop()
            self._errors.seek(0)
            tail = self._errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"the fuzzer {fuzzer.name} does not load:\n{tail}")
        line = self._line(fuzzer.wait_s)
        if line:
            outcome = Outcome(**json.loads(line))
            if outcome.kind == MEMORY:
                self._stop()  # its peak would count against the next case
            return outcome
        waited = line is None and child.poll() is None
        status = self._stop()
        if waited:
            kind, detail = HANG, f"more than {fuzzer.wait_s:g} s on the clock"
        elif status == -signal.SIGPROF:
            kind, detail = HANG, f"more than {fuzzer.cpu_s:g} s of CPU time"
        else:
            kind, detail = DIED, f"the process ended with status {status}"
        return Outcome(fuzzer.name, seed, kind, detail)

    def _start(self) -> None:
        self._rest = b""
        self._errors.seek(0)
        self._errors.truncate()
        paths = [str(ROOT), os.environ.get("PYTHONPATH")]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )  # fmt: skip

    def _line(self, seconds: float) -> bytes | None:
        """The child's next line, or None where there is none in time."""
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        limit = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            more = os.read(pipe, 1 << 16)
            if not more:  # the child has ended, or is about to
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(5)
                return None
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def _stop(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        if child.poll() is None:
            child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return child.wait()


# --- the child ------------------------------------------------------------------------------------


def _status(field: str) -> int | None:
    """A field of this process's memory in bytes, where the system tells."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    sizes = [line.split()[1] for line in status.read_text().splitlines() if field in line]
    return int(sizes[0]) << 10 if sizes else None


def _peak() -> int:
    """The most memory that this process has held since `_forget_peak`, in bytes."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _limited(fuzzer: Fuzzer, seed: int) -> Outcome:
    """One case under its limits of CPU time and memory."""
    # A timer of this case alone: a limit of the whole process (RLIMIT_CPU) counts in ticks, which
    # on a busy machine run ahead of what the process is told that it used, by seconds in an hour.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, fuzzer.cpu_s)
    _forget_peak()
    before, ceiling = _peak(), resource.getrlimit(resource.RLIMIT_DATA)
    # Beyond the limit, so that growth up to here is seen below, whoever catches the MemoryError.
    # Address space is promised freely; what a process may write to is not.
    if (data := _status("VmData")) is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data + fuzzer.memory * 5 // 4, ceiling[1]))
    try:
        outcome = attempt(fuzzer, seed)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, ceiling)
        signal.setitimer(signal.ITIMER_PROF, 0)
    if outcome.good and _peak() - before > fuzzer.memory:
        return Outcome(fuzzer.name, seed, MEMORY, f"grew by {_peak() - before} bytes")
    return outcome


def main() -> None:
    """Serve the parent until it closes the pipe; nothing else may write there."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    # What kills a case must not fill the disk with its memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    prepared: set[str] = set()
    for line in sys.stdin.buffer:
        module, name, seed = json.loads(line)
        fuzzer = next(found for found in load(module) if found.name == name)
        if fuzzer.prepare is not None and name not in prepared:
            fuzzer.prepare()
            prepared.add(name)
        answers.write(b"\n")
        answers.flush()
        answers.write(json.dumps(_limited(fuzzer, seed).row()).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
