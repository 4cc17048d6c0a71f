"""How the small files of a checkpoint are read: one reader, with limits, for all of them.

A checkpoint comes from strangers. What is parsed here has a bounded size, depth and length of its
numbers, so that nothing that is built from it later meets a surprise; whether a value makes sense
is judged where it is used.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resprune_jax.errors import ResPruneError, RunError, shown

SMALL_FILE = 4 << 20
"""Bytes of a configuration file, at most: published ones have some kilobytes."""

LARGE_FILE = 128 << 20
"""Bytes of a vocabulary or of an index of weights, at most."""

DEEPEST = 40
"""How deep a file's objects and lists may be nested: published ones have under ten levels."""

LONGEST_NUMBER = 40
"""Digits of a whole number, at most. Tokenizers write 10^30 for "no limit"."""


def is_file(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        RunError: its folder may not be looked into, or the path cannot be one.
    """
    try:
        return path.is_file()
    except (OSError, ValueError) as problem:
        raise RunError(f"{path} cannot be read: {cause(problem)}") from problem


def read_bytes(path: Path, limit: int = SMALL_FILE) -> bytes | None:
    """The content of a file; None if there is no such file.

    Args:
        path: the file.
        limit: its size in bytes, at most.

    Raises:
        RunError: a file that cannot be read, or a larger one.
    """
    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as problem:
        raise RunError(f"{path} cannot be read: {cause(problem)}") from problem
    if len(content) > limit:
        raise RunError(
            f"{path} has more than {limit} bytes, far more than such a file needs: it is broken"
        )
    return content


def read_text(path: Path, limit: int = SMALL_FILE) -> str | None:
    """The text of a file in UTF-8, line ends as they are; None if there is no such file.

    Raises:
        RunError: a file that cannot be read, is too large, or no UTF-8.
    """
    content = read_bytes(path, limit)
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise RunError(f"{path} is not a text in UTF-8 ({problem.reason})") from problem


def read_json(path: Path, limit: int = SMALL_FILE) -> dict[str, Any]:
    """The JSON object of a file; empty if there is no such file, or nothing in it.

    Args:
        path: the file.
        limit: its size in bytes, at most.

    Returns:
        The object, nested at most `DEEPEST` deep, its whole numbers of at most `LONGEST_NUMBER`
        digits. NaN and infinities may be in it.

    Raises:
        RunError: a file that cannot be read, or holds something else.
    """
    text = read_text(path, limit)
    if text is None or not text.strip():
        return {}
    try:
        content = json.loads(text)
    except RecursionError as problem:
        raise RunError(f"{path} is nested more than {DEEPEST} deep: it is broken") from problem
    except ValueError as problem:
        raise RunError(f"{path} is not readable JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object but {shown(content)}: it is broken")
    _check(content, path)
    return content


def _check(content: object, path: Path) -> None:
    """Refuse what is nested too deep, or a whole number that is too long."""
    level, depth = [content], 1
    while level:
        if depth > DEEPEST:
            raise RunError(f"{path} is nested more than {DEEPEST} deep: it is broken")
        inner: list[object] = []
        for each in level:
            values = each.values() if isinstance(each, dict) else each
            assert not isinstance(values, str)
            for value in values:  # type: ignore[attr-defined]
                if isinstance(value, dict | list):
                    inner.append(value)
                elif type(value) is int and abs(value) >= 10**LONGEST_NUMBER:
                    raise RunError(
                        f"{path} holds a whole number of more than {LONGEST_NUMBER} digits: it is "
                        "broken"
                    )
        level, depth = inner, depth + 1


def cause(problem: Exception) -> str:
    """Why a file cannot be read, in plain words."""
    if isinstance(problem, PermissionError):
        return "permission denied (ask its owner for the right to read it)"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror.lower()
    return one_line(problem)


def one_line(problem: BaseException) -> str:
    """What an error of another library says, on one line and not too long."""
    text = " ".join(str(problem).split()) or type(problem).__name__
    return text if len(text) <= 200 else f"{text[:120]} ... {text[-70:]}"


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Let another library work on a checkpoint's file, and give its failures as one of ours.

    A panic of a library in Rust is no `Exception`, so all but the wish to end is caught.

    Args:
        what: what then failed, for the beginning of the message.

    Raises:
        RunError: the library failed in any way.
    """
    try:
        yield
    except (ResPruneError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as problem:
        raise RunError(f"{what}: {one_line(problem)}") from problem
