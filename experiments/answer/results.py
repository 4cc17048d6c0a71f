"""JSON lines of results: a file that a killed run can resume.

Every result row carries the settings it was computed with, so a file says by itself where its
answers come from, and a run with other settings cannot be mixed into it.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.answer.rows import Row
from resprune_jax.experiments.answer.settings import Alike
from resprune_jax.experiments.streams import json_bytes
from resprune_jax.models.prompts.generation_file import GenerationSettings

_BEGIN = b'{"row": '  # how every result row begins


class Results:
    """The result file of one run: what it already holds, and where new rows go.

    Opening it drops the half-written line that a kill leaves at the end, and the rows that failed,
    so that they are asked again; everything else stays as it is. The old file is replaced by the
    cleaned one in a single step. Use it as a context manager.

    Attributes:
        path: the file.
        done: the finished results by row index.
    """

    def __init__(self, path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
        """Open a result file, or start one.

        Args:
            path: the file; made if missing.
            rows: what this run asks.
            settings: how it asks; stored in every row.

        Raises:
            CallError: another run is writing it, it is no result file, or it holds results of
                other rows or other settings.
        """
        self.path = path.resolve()  # the file behind a link, not the link, is replaced
        self.settings = json.loads(json.dumps(dict(settings)))
        self._alike = Alike()
        self._file = self._open()
        try:
            self.done, clean, changed = self._read(rows)
            if changed:
                self._replace(clean)
        except BaseException:
            self._file.close()
            raise

    def check(self, checkpoint: GenerationSettings) -> None:
        """Refuse to go on where the checkpoint's own settings now give other answers.

        Rows of a version that did not obey `generation_config.json` say what is the default only
        of a checkpoint whose file changes nothing; which one it is shows when it is loaded.

        Args:
            checkpoint: what it says of its answers.

        Raises:
            CallError: such rows, and a file that says more.
        """
        if self.done and (said := self._alike.refuted(checkpoint)):
            raise CallError(
                f"{self.path} holds results of other settings ({checkpoint.source} says {said},"
                " for its rows or for this call, not for both): give another --output"
            )

    def write(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Append one result, in full and flushed, and return it as stored."""
        stored = {**result, "settings": self.settings}
        line = json_bytes(stored) + b"\n"
        try:
            with stopping.whole():
                self._file.write(line)
                self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from error
        return stored

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk, which `write` has told already
            self._file.close()

    def _open(self) -> BinaryIO:
        """Open the file and hold it: the one that has the name once it is held.

        Another run may have put its cleaned file in the place of the one that was opened here.
        """
        while True:
            file = self.path.open("ab")
            self._hold(file)
            try:
                if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                    return file
            except FileNotFoundError:
                pass
            file.close()

    def _hold(self, file: BinaryIO) -> None:
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            raise CallError(
                f"another run is writing {self.path}: wait for it, or give another --output"
            ) from None

    def _read(self, rows: Sequence[Row]) -> tuple[dict[int, dict[str, Any]], bytes, bool]:
        """The finished results, the lines that hold them, and whether the file holds more."""
        content = self.path.read_bytes()
        *lines, tail = content.split(b"\n")
        done: dict[int, dict[str, Any]] = {}
        clean: list[bytes] = []
        for number, line in enumerate([*lines, tail], start=1):
            if not line.strip():
                continue
            try:
                result = json.loads(line)
            except (ValueError, RecursionError):
                if number > len(lines) and line[: len(_BEGIN)] == _BEGIN[: len(line)]:
                    break  # the half-written end of a killed run
                result = None
            if not isinstance(result, dict) or not isinstance(result.get("row"), int):
                raise CallError(
                    f"line {number} of {self.path} is not a result row: move that file away, or"
                    " give another --output"
                )
            self._check(result, rows, number)
            if "error" not in result and result["row"] not in done:
                done[result["row"]] = result
                clean.append(line + b"\n")
        kept = b"".join(clean)
        return done, kept, kept != content

    def _check(self, result: dict[str, Any], rows: Sequence[Row], number: int) -> None:
        """Refuse a result that this run could not have written."""
        theirs = result.get("settings")
        theirs = theirs if isinstance(theirs, dict) else {}
        other = self._alike.differences(theirs, self.settings)
        if other:
            raise CallError(
                f"{self.path} holds results of other settings ({'; '.join(other)}): give another"
                " --output, or the same settings"
            )
        index = result["row"]
        same = 0 <= index < len(rows) and rows[index].identity == (
            result.get("image"),
            result.get("video"),
            result.get("fps"),
            result.get("prompt"),
            result.get("keep"),
        )
        if not same:
            raise CallError(
                f"line {number} of {self.path} answers another row {index} than this call asks:"
                " give another --output, or the same rows"
            )

    def _replace(self, content: bytes) -> None:
        """Put `content` in the place of the file in one step, and go on behind it.

        The new file is held before it gets the name: there is no moment at which nobody holds it.
        """
        with stopping.whole():
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".resprune-")
            new = os.fdopen(handle, "ab")
            try:
                _lock(new)
                new.write(content)
                new.flush()
                os.fsync(new.fileno())
                shutil.copymode(self.path, name)
                Path(name).replace(self.path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    new.close()
                Path(name).unlink(missing_ok=True)
                raise RunError(f"{self.path} cannot be rewritten: {error.strerror}") from error
            old, self._file = self._file, new
            old.close()


def _lock(file: BinaryIO) -> None:
    """Hold the file against a second run, where the system can; a kill lets go of it.

    Raises:
        BlockingIOError: somebody else holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return
