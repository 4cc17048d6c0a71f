"""Rows of JSON lines."""

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError
from resprune_jax.experiments.common import reason


def read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read a file of one JSON object a line, a line at a time.

    Args:
        path: the file. A line ends at a line feed alone: JSON may hold every other separator.
            Blank lines are skipped.

    Yields:
        What messages call the row, and its values by column.

    Raises:
        RunError: a line that is no JSON object, or a file that cannot be read.
    """
    row = -1
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
                if not content.strip():
                    continue
                row += 1
                where = f"{path}, row {row} (line {number + 1})"
                yield where, _object(content, where)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {reason(error)}") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise RunError(f"{where} is not UTF-8 text: write a file of JSON lines") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not JSON ({error}): mend or remove the line") from error
    if not isinstance(values, dict):
        raise RunError(f'{where} is no JSON object: write {{"question": ..., "answer": ...}}')
    return values
