"""JSON lines of questions in, JSON lines of results out: a file that a killed run can resume.

Every result row carries the settings it was computed with, so a file says by itself where its
answers come from, and a run with other settings cannot be mixed into it.
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from resprune_jax.errors import CallError, RunError, say_once
from resprune_jax.experiments.common import Keep, check_file, parse_keep

KNOWN_KEYS = ("image", "video", "fps", "prompt", "id", "keep")

_BEGIN = b'{"row": '  # how every result row begins


@dataclasses.dataclass(frozen=True)
class Row:
    """One question about one image, or about several and a video.

    Attributes:
        index: place among the rows of its file, from 0.
        image: the image's path as it was written; a list of them where there are several.
        prompt: the question.
        keep: budget of visual tokens, None for all.
        id: the caller's own name for the row, passed through.
        paths: where the images lie.
        video: the video's path as it was written.
        video_path: where it lies.
        fps: its frames a second, where it does not say.
        error: why the row cannot be asked at all, else None.
    """

    index: int
    image: str | list[str] | None
    prompt: str | None
    keep: Keep = None
    id: str | int | None = None
    paths: tuple[Path, ...] = ()
    video: str | None = None
    video_path: Path | None = None
    fps: float | None = None
    error: str | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes a result a result of this row."""
        return (self.image, self.video, self.fps, self.prompt, self.keep)

    @property
    def name(self) -> str:
        """What messages call its pictures."""
        images = [self.image] if isinstance(self.image, str) else self.image or []
        return ", ".join([*images, *([self.video] if self.video else [])])

    def pictures(self) -> Any:
        """What `LVLM.generate` takes: a path, or a list of paths and a `Video`."""
        if self.video_path is None:
            return self.paths[0] if isinstance(self.image, str) else list(self.paths)
        from resprune_jax.models.families.base import Video

        return [*self.paths, Video(self.video_path, fps=self.fps)]

    def result(self, **found: object) -> dict[str, Any]:
        """A result row: what was asked, then what was found."""
        named = {} if self.id is None else {"id": self.id}
        film = {"video": self.video, "fps": self.fps}
        own = {key: value for key, value in film.items() if value is not None}
        asked = {"image": self.image, **own, "prompt": self.prompt, "keep": self.keep}
        return {"row": self.index, **named, **asked, **found}


def read_rows(path: Path, *, keep: Keep, prompt: str | None = None) -> list[Row]:
    """Read a JSON-lines file of questions.

    Args:
        path: one object a line: {"image": path, "prompt": question}, and where wanted "id" and
            "keep". "image" may be a list of paths, all for one question; "video", a file or a
            folder of frames with its "fps" where wanted, stands behind the images or alone. A
            relative path starts at the folder of this file. Empty lines are skipped.
        keep: budget of rows that name none.
        prompt: question of rows that name none.

    Returns:
        The rows. A line that cannot be a question is a row with an `error`: it must not end the
        others.

    Raises:
        CallError: the file is missing, is not text, or holds no row.
    """
    check_file(path, "--rows")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise CallError(f"--rows {path} is not UTF-8 text: give a file of JSON lines") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise CallError(
            f'--rows {path} holds no row: write one {{"image": ..., "prompt": ...}} a line'
        )
    return [_read_row(i, line, path.parent, keep, prompt) for i, line in enumerate(lines)]


def _read_row(index: int, line: str, folder: Path, keep: Keep, prompt: str | None) -> Row:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(index, None, None, error=f"the line is not JSON: {error}")
    if not isinstance(data, dict):
        return Row(index, None, None, error="the line is not a JSON object")
    for key in sorted(set(data) - set(KNOWN_KEYS)):
        say_once(f"row key {key}", f"rows carry {key!r}, which has no meaning here: ignored")
    image, question, name = data.get("image"), data.get("prompt", prompt), data.get("id")
    video, fps = data.get("video"), data.get("fps")
    listed = [image] if isinstance(image, str) else image if isinstance(image, list) else []
    good = all(isinstance(each, str) and each for each in listed)
    row = Row(
        index,
        image if good and isinstance(image, str | list) else None,
        question if isinstance(question, str) else None,
        keep,
        name if isinstance(name, str | int) else None,
        tuple(folder / each for each in listed) if good else (),
        video if isinstance(video, str) else None,
        folder / video if isinstance(video, str) and video else None,
        fps if isinstance(fps, int | float) and not isinstance(fps, bool) else None,
    )
    if row.video_path is None and "video" in data:
        return dataclasses.replace(row, error='"video" is no path')
    if not good or (image is not None and not listed):
        return dataclasses.replace(row, error='"image" is neither a path nor a list of paths')
    if not listed and row.video_path is None:
        return dataclasses.replace(row, error='the row has no "image", a path')
    if "fps" in data and (row.fps is None or not 0 < row.fps < math.inf):
        return dataclasses.replace(row, error='"fps" is no number above 0')
    if not isinstance(question, str) or not question.strip():
        return dataclasses.replace(row, error='the row has no "prompt", or an empty one')
    try:
        budget = parse_keep(data["keep"], '"keep"') if "keep" in data else keep
    except CallError as error:
        return dataclasses.replace(row, error=str(error))
    return dataclasses.replace(row, keep=budget)


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
        self._file = self._open()
        try:
            self.done, clean, changed = self._read(rows)
            if changed:
                self._replace(clean)
        except BaseException:
            self._file.close()
            raise

    def write(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Append one result, in full and flushed, and return it as stored."""
        stored = {**result, "settings": self.settings}
        line = json.dumps(stored, ensure_ascii=False, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        return stored

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        file = self.path.open("ab")
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            raise CallError(
                f"another run is writing {self.path}: wait for it, or give another --output"
            ) from None
        return file

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
            except ValueError:
                if number > len(lines) and line[: len(_BEGIN)] == _BEGIN[: len(line)]:
                    break  # the half-written end of a killed run
                result = None
            if not isinstance(result, dict) or not isinstance(result.get("row"), int):
                raise CallError(
                    f"line {number} of {self.path} is not a result row: move that file away, or"
                    " give another --output"
                )
            self._check(result, rows, number)
            if "error" not in result:
                done[result["row"]] = result
                clean.append(line + b"\n")
        kept = b"".join(clean)
        return done, kept, kept != content

    def _check(self, result: dict[str, Any], rows: Sequence[Row], number: int) -> None:
        """Refuse a result that this run could not have written."""
        theirs = result.get("settings")
        theirs = theirs if isinstance(theirs, dict) else {}
        names = sorted({*theirs, *self.settings})
        other = [
            f"{name} {theirs.get(name)!r} there, {self.settings.get(name)!r} here"
            for name in names
            if theirs.get(name) != self.settings.get(name)
        ]
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
        """Put `content` in the place of the file in one step, and go on behind it."""
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(self.path, name)
            Path(name).replace(self.path)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            raise RunError(f"{self.path} cannot be rewritten: {error}") from error
        old, self._file = self._file, self._open()
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
