"""Runs the blocks of a page, in order, in a folder of their own."""

import contextlib
import doctest
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.docs import inputs, words
from tests.docs.pages import ROOT, Block, Page, commands

SCRIPT = Path(sys.executable).with_name("resprune")
"""The console script of this environment."""
PROGRAMS = os.environ.get("RESPRUNE_TEST_PROGRAMS")
"""Where compiled programs are kept between runs, see tests/conftest.py."""
LIMIT = 300
"""Seconds that one command or block may take."""
OUTPUTS = ("--out", "--output", "--overlay", "--report", "--figure", "--card")
"""Options that name what a command writes."""


LOOKED_AT = (("make",), ("pip", "install"), ("pytest",))
"""First words of commands that are not run again here: CI runs them, or they install."""


class BlockError(AssertionError):
    """A block that does not do what the page says."""


class Machine:
    """What all pages share: an environment, a Hub cache, compiled programs, the process that forks.

    Args:
        folder: an empty one for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "huggingface"
        self.home.mkdir()
        self.door = folder / "door"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        client = [sys.executable, "-S", "-E", Path(__file__).with_name("forks.py"), self.door]
        self.client = [str(part) for part in client]
        shim = bin_folder / "resprune"
        shim.write_text(f'#!/bin/sh\nexec {shlex.join(self.client)} {SCRIPT} "$@"\n')
        shim.chmod(0o755)
        environment = {**os.environ}
        for name in [name for name in environment if name.startswith(("HF_", "JAX_", "XLA_"))]:
            del environment[name]
        own = os.pathsep.join([str(bin_folder), str(SCRIPT.parent), os.environ["PATH"]])
        self.environment = {
            **environment, "PATH": own, "HOME": str(folder), "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache"),
            "JAX_COMPILATION_CACHE_DIR": PROGRAMS or str(folder / "programs"), "TERM": "dumb",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "COLUMNS": "200",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MPLBACKEND": "agg",
        }  # fmt: skip
        self.forks: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process that forks, unless it runs."""
        if self.forks is None:
            self.forks = subprocess.Popen(
                [sys.executable, self.client[3], "serve", str(self.door)],
                env=self.environment, cwd=ROOT, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert self.forks.stdout is not None
            if self.forks.stdout.readline() != "listening\n":
                raise RuntimeError("the process that forks did not start")

    def stop(self) -> None:
        """End it, and what still runs of its forks."""
        if self.forks is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.forks.pid, signal.SIGKILL)
            self.forks.wait()
            assert self.forks.stdin and self.forks.stdout
            self.forks.stdin.close()
            self.forks.stdout.close()


class Place:
    """The folder, the Python and the servers of one page.

    Args:
        machine: where it runs.
        folder: an empty one.
    """

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.folder = folder
        self.python: subprocess.Popen[str] | None = None
        self.servers: list[subprocess.Popen[str]] = []
        self.port = 8000
        self.ran = 0

    def run(self, block: Block) -> None:
        """Run a block, or read one that is data.

        Raises:
            BlockError: a command with another exit status than 0 or without the output that it
                names, an exception, an output that is not what the page shows.
        """
        if block.language in READERS:
            try:
                READERS[block.language](block.text)
            except ValueError as error:
                raise BlockError(f"{block.place}: {error}") from None
        if block.language == "sh":
            _parse(block)
        if block.orders.not_run or block.language not in ("sh", "python"):
            return
        self.machine.start()
        text = "\n".join([block.text, *block.orders.commands.values()])
        for name in inputs.hub_ids(text):
            inputs.publish(name, self.machine.home)
        text = words.filled(text) if block.language == "sh" else text
        inputs.lay(text, self.folder)
        for name in inputs.needed(text, inputs.MADE):
            if not (self.folder / name).exists() and block.language == "sh":
                self._command(inputs.MADE[name])
        printed = self._python(block) if block.language == "python" else self._shell(block)
        if block.output is not None and not block.orders.output_differs:
            _compare(block, printed)

    def _python(self, block: Block) -> str:
        for name in block.orders.given:
            self._exec(inputs.NAMES[name], f"inputs.NAMES[{name!r}]", 1, only=name)
        printed = self._exec(self._there(block.text), block.page, block.line)
        self.ran += 1
        if block.file:
            (self.folder / block.file).write_text(block.text, encoding="utf-8")
        return printed

    def _exec(self, code: str, page: str, line: int, only: str | None = None) -> str:
        if self.python is None:
            self.python = subprocess.Popen(
                [*self.machine.client, str(Path(__file__).with_name("session.py"))],
                env=self.machine.environment, cwd=self.folder, text=True, encoding="utf-8",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        assert self.python.stdin and self.python.stdout
        print(
            json.dumps({"code": code, "page": page, "line": line, "only": only}),
            file=self.python.stdin, flush=True,
        )  # fmt: skip
        answer = self.python.stdout.readline()
        if not answer:
            raise BlockError(f"{page}:{line}: the interpreter died")
        told: dict[str, Any] = json.loads(answer)
        if told["failed"]:
            raise BlockError(f"{page}:{line}: {told['failed']}")
        return str(told["printed"])

    def _shell(self, block: Block) -> str:
        printed = []
        for number, (line, text) in enumerate(commands(block), start=1):
            if number in block.orders.left_out:
                continue
            command = words.filled(text)
            if added := block.orders.commands.get(number, block.orders.commands.get(0)):
                command = changed(command, added)
            begun = time.monotonic()
            try:
                printed.append(self._command(self._there(command)))
            except BlockError as error:
                raise BlockError(f"{block.page}:{line}: {error}") from None
            self.ran += 1
            print(f"{time.monotonic() - begun:6.1f} s  {block.page}:{line}: {command[:100]}")
        return "".join(printed)

    def _command(self, command: str) -> str:
        given = words.split(command)
        if any(tuple(given[: len(start)]) == start for start in LOOKED_AT):
            return ""
        if given[:2] == ["resprune", "serve"]:
            self._serve(command)
            return ""
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command], cwd=self.folder,
            env=self.machine.environment, text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise BlockError(f"{command}\nstill ran after {LIMIT} seconds") from None
        if process.returncode:
            raise BlockError(f"{command}\nexit status {process.returncode}\n{out}{err}")
        for option, name in itertools.pairwise(given):
            if option in OUTPUTS and not (self.folder / name).exists():
                raise BlockError(f"{command}\n{option} {name}: there is no such file")
        return out

    def _serve(self, command: str) -> None:
        """Start a server on a free port, and wait until it listens; `close` ends it."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = changed(command, f"--port {self.port}")
        errors = self.folder / f"server-{self.port}.log"
        path = os.pathsep.join([str(SCRIPT.parent), os.environ["PATH"]])
        with errors.open("w") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=self.folder, text=True, stdout=log,
                stderr=log, env={**self.machine.environment, "PATH": path},
            )  # fmt: skip
        self.servers.append(server)
        end = time.monotonic() + LIMIT
        while server.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise BlockError(f"{command}\ndoes not listen\n{errors.read_text()}")

    def _there(self, text: str) -> str:
        """With the address of the page's server."""
        return re.sub(r"(127\.0\.0\.1|localhost):8000\b", rf"\1:{self.port}", text)

    def close(self) -> None:
        """End the page's Python and its servers.

        Raises:
            BlockError: a server that does not end as one that SIGTERM tells to.
        """
        if self.python is not None:
            assert self.python.stdin
            self.python.stdin.close()
            try:
                self.python.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.python.kill()
                self.python.wait()
            if self.python.stdout:
                self.python.stdout.close()
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
            try:
                status = server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise BlockError("a server did not end within a minute of SIGTERM") from None
            if status:
                raise BlockError(f"a server ended with status {status}")
        shutil.rmtree(self.folder, ignore_errors=True)


def _parse(block: Block) -> None:
    """See that every command is one, those that are not run too."""
    for line, text in commands(block):
        given = words.split(words.filled(text))
        for start in (("resprune",), *LOOKED_AT):
            if tuple(given[: len(start)]) == start:
                try:
                    words.check(start, given[len(start) :])
                except words.WordsError as error:
                    raise BlockError(f"{block.page}:{line}: {error}") from None


def _lines(text: str) -> None:
    for line in text.splitlines():
        json.loads(line)


READERS = {"json": json.loads, "jsonl": _lines, "toml": tomllib.loads}


def changed(command: str, added: str) -> str:
    """A command with other options.

    Args:
        command: with a comment at its end perhaps, which is left out.
        added: `--option VALUE ...`; they take the place of the same options of the command.
    """
    given = words.split(command)
    options = [word for word in shlex.split(added) if word.startswith("--")]
    kept: list[str] = []
    inside = False
    for word in given:
        if word.startswith("--"):
            inside = word in options
        if not inside:
            kept.append(word)
    return f"{shlex.join(kept)} {added}"


def _compare(block: Block, printed: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    shown = block.output or ""
    if not doctest.OutputChecker().check_output(shown, printed, flags):
        raise BlockError(f"{block.place}: the page shows\n{shown}and it prints\n{printed}")


@contextlib.contextmanager
def place(machine: Machine, folder: Path) -> Iterator[Place]:
    """A place that is closed behind the last block."""
    made = Place(machine, folder)
    try:
        yield made
    finally:
        made.close()


def run(page: Page, machine: Machine, folder: Path) -> int:
    """Run all blocks of a page.

    Returns:
        How many commands and Python blocks ran.

    Raises:
        BlockError: the first that fails.
    """
    with place(machine, folder) as made:
        for block in page.blocks:
            made.run(block)
        return made.ran
