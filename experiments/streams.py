"""Standard output and error as they really are: not UTF-8, closed, or read by nobody any more."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from resprune_jax.errors import RunError


class _Closed(io.TextIOBase):
    """Stands in for a standard output that was closed: whoever prints is told so."""

    def write(self, _: str) -> int:
        """Refuse.

        Raises:
            RunError: always.
        """
        raise RunError("standard output is closed: give it a file or a terminal")


@contextlib.contextmanager
def safe() -> Iterator[None]:
    """Print anything inside: what the streams' encoding does not have is escaped, not an error."""
    before = sys.stdout, sys.stderr
    if sys.stdout is None or sys.stderr is None:
        _occupy()
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if isinstance(sys.stdout, _Closed):
            sys.stdout = before[0]


def _occupy() -> None:
    """Fill the first three file numbers: the next file opened must not get the output's place."""
    number = os.open(os.devnull, os.O_RDWR)
    while number < 2:
        number = os.dup(number)
    if number > 2:
        os.close(number)


def settle() -> None:
    """Write what standard output still holds, or drop it: its reader is gone, its disk is full.

    Else the interpreter would try again when it ends, and print a traceback.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            number = os.open(os.devnull, os.O_WRONLY)
            os.dup2(number, sys.stdout.fileno())
            os.close(number)


def json_bytes(value: Any) -> bytes:
    """JSON in UTF-8 on one line, halves of surrogate pairs (odd file names) as JSON escapes them.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def print_json(value: Any, **layout: Any) -> None:
    """Print JSON for machines: UTF-8 where the stream is, else ASCII, which every reader takes."""
    encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    plain = encoding.replace("-", "").replace("_", "") not in ("utf8", "utf8sig", "cp65001")
    text = json.dumps(value, ensure_ascii=plain, **layout)
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
