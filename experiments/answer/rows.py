"""JSON lines of questions: rows as they are written, each good or with what is wrong with it."""

import codecs
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, printable, say_once
from resprune_jax.experiments.common import Keep, check_file, parse_keep

KNOWN_KEYS = ("image", "video", "fps", "prompt", "id", "keep")


MOST_NAMED = 8
"""Unknown keys of the rows that are named."""


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
    id: str | int | float | None = None
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
        return ", ".join([*images, *([self.video] if self.video else [])]) or "no image"

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
            relative path starts at the folder of this file. A line ends at a line feed alone:
            JSON may hold every other separator. Empty lines are skipped. A null is a key that is
            not there, except that "keep": null keeps every visual token.
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
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise RunError(f"--rows {path} cannot be read: {error.strerror}") from error
    lines = [line for line in content.split(b"\n") if line.strip()]
    if not lines:
        raise CallError(
            f'--rows {path} holds no row: write one {{"image": ..., "prompt": ...}} a line'
        )
    if not any(_is_text(line) for line in lines):
        raise CallError(f"--rows {path} is not UTF-8 text: give a file of JSON lines")
    unknown: dict[str, None] = {}
    rows = [_read_row(i, line, path.parent, keep, prompt, unknown) for i, line in enumerate(lines)]
    for key in list(unknown)[:MOST_NAMED]:
        say_once(f"row key {key}", f"rows carry {key!r}, which has no meaning here: ignored")
    return rows


def _is_text(line: bytes) -> bool:
    try:
        return "\0" not in line.decode()  # UTF-16 without a mark decodes, and is full of them
    except UnicodeDecodeError:
        return False


def _read_row(
    index: int,
    line: bytes,
    folder: Path,
    keep: Keep,
    prompt: str | None,
    unknown: dict[str, None],
) -> Row:
    """One line as a row; keys without a meaning are added to `unknown`."""
    try:
        data = json.loads(line.decode())
    except UnicodeDecodeError:
        return Row(index, None, None, error="the line is not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return Row(index, None, None, error=printable(f"the line is not JSON: {error}"))
    if not isinstance(data, dict):
        return Row(index, None, None, error="the line is not a JSON object")
    unknown.update(dict.fromkeys(key for key in data if key not in KNOWN_KEYS))
    data = {key: value for key, value in data.items() if value is not None or key == "keep"}
    image, question, name = data.get("image"), data.get("prompt", prompt), data.get("id")
    video, fps = data.get("video"), _speed(data.get("fps"))
    listed = [image] if isinstance(image, str) else image if isinstance(image, list) else []
    good = all(isinstance(each, str) and each for each in listed)
    row = Row(
        index,
        image if good and isinstance(image, str | list) else None,
        question if isinstance(question, str) else None,
        keep,
        name if _is_name(name) else None,
        tuple(folder / each for each in listed) if good else (),
        video if isinstance(video, str) else None,
        folder / video if isinstance(video, str) and video else None,
        fps,
    )
    try:
        budget = parse_keep(data["keep"], '"keep"') if "keep" in data else keep
        why = _fault(row, data, question)
    except CallError as error:
        why = str(error)
    if why is not None:
        return dataclasses.replace(row, error=why)
    return dataclasses.replace(row, keep=budget)


def _fault(row: Row, data: Mapping[str, Any], question: object) -> str | None:
    """Why a row of JSON cannot be asked, or None."""
    if row.video_path is None and "video" in data:
        return '"video" is no path'
    if "image" in data and not row.paths and data["image"] != []:
        return '"image" is neither a path nor a list of paths'
    if not row.paths and row.video_path is None and data.get("image") != []:
        return 'the row has no "image": a path, a list of paths, or [] for a question without one'
    for path in (*row.paths, *([row.video_path] if row.video_path else [])):
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            return f"no file can have the name {str(path)!r}: it holds half of a surrogate pair"
    if "fps" in data and row.fps is None:
        return '"fps" is no number above 0'
    if "id" in data and row.id is None:
        return '"id" is neither a text nor a number'
    if not isinstance(question, str) or not question.strip():
        return 'the row has no "prompt", or an empty one'
    for key, value in (("prompt", question), ("id", row.id)):
        if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
            return f'"{key}" holds half of a surrogate pair, which is no character'
    return None


def _speed(value: object) -> float | None:
    """Frames a second as a row has it, None where that is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if 0 < float(value) < math.inf else None
    except OverflowError:
        return None


def _is_name(value: object) -> bool:
    """Whether a row may have this "id": a text, or a number that JSON has."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)
