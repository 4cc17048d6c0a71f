"""A server process: started on a free port, asked, and ended with SIGTERM."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from resprune_jax.errors import RunError

START_S = 600.0
"""Seconds in which a server must listen; a large checkpoint takes minutes to read."""

_LISTENS = re.compile(r"serving (.*) at (http://\S+)/v1")


class ServerProcess:
    """`resprune serve` as a process of its own; a context that ends it.

    Args:
        words: options behind `resprune serve`; the port is a free one.
        env: beside this process's environment.

    Attributes:
        url: where it listens, without /v1.
        model: the name of its model.
        said: the lines of its standard error.
    """

    def __init__(self, words: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        # Modules are found where this process found them.
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1));"
            " from resprune_jax.experiments.start import main; sys.exit(main())"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(sys.path), "serve", *words, "--port", "0"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", env={**os.environ, **(env or {})},
        )  # fmt: skip
        self.said: list[str] = []
        self.url = ""
        self.model = ""
        self._listens = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.said.append(line.rstrip("\n"))
                if found := _LISTENS.search(line):
                    self.model, self.url = found.groups()
                    self._listens.set()
        self._listens.set()

    def __enter__(self) -> "ServerProcess":
        """Wait until it listens.

        Raises:
            RunError: it ended before, or takes too long.
        """
        if not self._listens.wait(START_S) or not self.url:
            self.kill()
            raise RunError(f"the server did not start: {' / '.join(self.said[-3:]) or 'no word'}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self.stop()
            try:
                self.wait(60)
            except RunError:
                self.kill()

    def cpu_seconds(self) -> float | None:
        """Of all its threads so far; None where the system does not tell."""
        try:
            told = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return None
        # The name, in brackets, may hold blanks; user and system time are the 12th and 13th behind.
        user, system = told.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Tell it to end once it has answered what it accepted."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Its exit status.

        Raises:
            RunError: it has not ended within these seconds.
        """
        try:
            status = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RunError(f"the server has not ended within {seconds:g} s") from None
        self._reader.join(5)
        return status


class Connection:
    """A client's connection, kept open between questions.

    Args:
        url: of the server.
        seconds: for an answer.
    """

    def __init__(self, url: str, seconds: float = 600.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=seconds)

    def ask(self, body: bytes) -> tuple[dict[str, Any], float]:
        """Post a chat request.

        Returns:
            (the reply, seconds until it was there).

        Raises:
            RunError: another status than 200.
        """
        begin = time.perf_counter()
        headers = {"content-type": "application/json"}
        self._http.request("POST", "/v1/chat/completions", body, headers)
        response = self._http.getresponse()
        content = response.read()
        if response.status != 200:
            raise RunError(f"status {response.status}: {content[:300]!r}")
        return json.loads(content), time.perf_counter() - begin

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._http.close()
