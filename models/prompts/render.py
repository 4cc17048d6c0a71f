"""Rendering a chat template in a process of its own, within limits of time, memory and length.

One process serves all templates; it starts with the first and ends with this one. A rendering takes
it well under a millisecond.
"""

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError

CPU_S = 2.0
"""Seconds of processor time that a rendering may take; ordinary ones take a thousandth."""

WAIT_S = 30.0
"""Seconds on the clock that it may take, on however busy a machine."""

MEMORY = 512 << 20
"""Bytes that its process may have."""

LONGEST = 1 << 20
"""Characters that it may write."""


class TemplateError(Exception):
    """A template that failed; the message says why."""


def render(template: str, names: Mapping[str, Any]) -> str:
    """Render a Jinja chat template.

    Args:
        template: its text.
        names: what it may use, plain data.

    Returns:
        The text that it makes.

    Raises:
        TemplateError: it failed, or took more than it may.
        RunError: no process can be started.
    """
    line = json.dumps({"template": template, "names": dict(names)}).encode() + b"\n"
    with _LOCK:
        for again in (False, True):
            try:
                return _PROCESS.ask(line)
            except BrokenPipeError:  # it was ended from outside since the last rendering
                _PROCESS.stop()
                if again:
                    raise RunError("the process that renders chat templates ended") from None
    raise AssertionError


class _Process:
    """The process, started when it is needed."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._rest = b""

    def ask(self, line: bytes) -> str:
        if self._child is not None and self._owner != os.getpid():
            self._child = None  # the pipes are those of the process that this one was forked from
        if self._child is None:
            self._start()
        child = self._child
        assert child is not None and child.stdin is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
            reply = self._line()
        except BaseException:
            self.stop()  # an answer that comes later would be taken for that of another question
            raise
        if reply is None:
            ended = child.poll() is not None
            self.stop()
            what = f"{CPU_S:g} s of processor time" if ended else f"{WAIT_S:g} s"
            raise TemplateError(f"it takes more than {what} or {MEMORY >> 20} MiB: it may not end")
        found = json.loads(reply)
        if "error" in found:
            raise TemplateError(found["error"])
        return str(found["text"])

    def _start(self) -> None:
        script = Path(__file__).with_name("sandbox.py")
        # The same search path as here, but no start-up file: the process starts in no time.
        code = (
            "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
            "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        own = [str(script), *(str(number) for number in (CPU_S, MEMORY, LONGEST))]
        keep = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "LANG", "PATH")
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code, json.dumps(sys.path), *own],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in keep if name in os.environ},
                start_new_session=True,  # Ctrl-C is for us
            )  # fmt: skip
        except OSError as problem:
            raise RunError(
                f"the process that renders chat templates cannot be started: {problem}"
            ) from problem
        self._owner, self._rest = os.getpid(), b""

    def _line(self) -> bytes | None:
        """The next line, or None where none comes."""
        assert self._child is not None and self._child.stdout is not None
        pipe = self._child.stdout.fileno()
        limit = time.monotonic() + WAIT_S
        while b"\n" not in self._rest:
            left = limit - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            more = os.read(pipe, 1 << 16)
            if not more:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(2)
                return None
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def stop(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        child.wait()


_LOCK = threading.Lock()
_PROCESS = _Process()
atexit.register(_PROCESS.stop)
