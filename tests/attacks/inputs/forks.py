"""Runs of a Python program that begin at once: forks of a process that has imported it already.

A fresh interpreter takes seconds to import what a command needs, on a busy machine ten times as
long; most of what an attack on a running command asks is decided behind that.
"""

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]

# Each line it reads is a run: the words, the code, and where its standard error goes.
_STEM = """
import json, os, sys, traceback
import resprune_jax.experiments.cli
for line in sys.stdin:
    run = json.loads(line)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            errors = os.open(run["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for at, file in enumerate((nothing, nothing, errors)):
                os.dup2(file, at)
            sys.argv = ["-c", *run["words"]]
            exec(run["code"], {"__name__": "__main__"})
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@functools.cache
def _stem() -> subprocess.Popen[bytes]:
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    made = subprocess.Popen(
        [sys.executable, "-c", _STEM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip

    def end() -> None:
        made.kill()
        made.communicate()

    atexit.register(end)
    return made


class Fork:
    """One run, with what of `subprocess.Popen` an attack needs.

    Attributes:
        pid: of the process.
        returncode: its exit status, negative for a signal; None while it runs.
    """

    def __init__(self, code: str, words: list[str], errors: Path) -> None:
        self._errors, self.returncode = errors, None
        stem = _stem()
        assert stem.stdin is not None and stem.stdout is not None
        run = {"code": code, "words": words, "errors": str(errors)}
        stem.stdin.write(json.dumps(run).encode() + b"\n")
        self._said = stem.stdout
        self.pid = int(self._said.readline())

    returncode: int | None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            # It may have ended since, and its status still be on its way.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit status, if it has ended."""
        return self._within(0.0)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Wait for the end; gives what was written to standard error as the second part."""
        if self._within(timeout) is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
        return b"", self._errors.read_bytes()

    def _within(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._said], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._said.readline()))
        return self.returncode


def hold(child: "subprocess.Popen[bytes] | Fork") -> None:
    """Stop a process where it is, and wait until it stands still."""
    child.send_signal(signal.SIGSTOP)
    status = Path(f"/proc/{child.pid}/stat")
    for _ in range(2000):
        if child.poll() is not None:
            return
        try:
            if status.read_text().rpartition(")")[2].split()[0] in "TZX":
                return
        except OSError:  # no such system, or the process has just ended
            break
        time.sleep(0.002)
    time.sleep(0.05)
