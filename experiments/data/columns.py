"""What the columns of a row mean: each one's value checked and made ready.

Rows come from JSON lines, Parquet and Arrow alike, as mappings of column names to Python values. A
null is a column that is not there, every other column is ignored.
"""

import os
from collections.abc import Mapping
from typing import Any

from resprune_jax.errors import shown
from resprune_jax.experiments.data.metrics import METRICS, problem

COLUMNS = (
    "image", "images", "question", "answer", "answers", "metric", "id", "category", "cluster",
)  # fmt: skip
"""Every column that means something."""

PICTURES = ("image", "images")
"""Those that hold pictures."""

DEFAULT_METRIC = "exact"


class RowError(Exception):
    """Why a row cannot be used; the reader adds the file and the row."""


def question_of(values: Mapping[str, Any]) -> str:
    """The question: a text that is not blank.

    Raises:
        RowError: there is none.
    """
    value = values.get("question")
    if value is None:
        names = ", ".join(list(values)[:12]) or "none"
        raise RowError(f'no question: give one in the column "question" (columns here: {names})')
    text = _text("question", value)
    if not text.strip():
        raise RowError("the question is empty: write one, or leave the row out")
    return text


def answers_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The accepted answers, of "answers" where the row has them, else of "answer".

    Raises:
        RowError: there is none, or one is neither a text nor a whole number.
    """
    name = "answers" if values.get("answers") is not None else "answer"
    value = values.get(name)
    listed = list(value) if isinstance(value, list | tuple) else [value]
    # VQAv2 keeps each annotator's answer beside how sure he was.
    listed = [each.get("answer") if isinstance(each, Mapping) else each for each in listed]
    if value is None or not listed:
        raise RowError('no answer: give the column "answer", or "answers" with a list of texts')
    found = tuple(_named(name, each) for each in listed)
    if not any(text.strip() for text in found):
        raise RowError(f'"{name}" is empty: write what is accepted, or leave the row out')
    return found


def metric_of(values: Mapping[str, Any], answers: tuple[str, ...]) -> str:
    """The name of the metric, which can score these answers.

    Raises:
        RowError: an unknown metric, or answers that it cannot use.
    """
    value = values.get("metric")
    name = DEFAULT_METRIC if value is None else value
    if not isinstance(name, str) or name not in METRICS:
        raise RowError(f"unknown metric {shown(name)}: choose one of {', '.join(METRICS)}")
    if why := problem(name, answers):
        raise RowError(f"metric {name!r} {why}")
    return name


def name_of(values: Mapping[str, Any], column: str) -> str | None:
    """A text or whole number that names something ("id", "category", "cluster"), None for none.

    Raises:
        RowError: another kind of value, or an empty id or cluster.
    """
    value = values.get(column)
    if value is None:
        return None
    text = _named(column, value)
    if not text and column != "category":
        raise RowError(f'"{column}" is empty: give a text or a whole number, or null for none')
    return text


def pictures_of(values: Mapping[str, Any]) -> list[str | bytes]:
    """The pictures, in order: paths as they were written, or the bytes of files.

    Raises:
        RowError: a value that is no picture.
    """
    name = "images" if values.get("images") is not None else "image"
    value = values.get(name)
    if value is None:
        return []
    return [
        _picture(name, each) for each in (value if isinstance(value, list | tuple) else [value])
    ]


def _picture(name: str, value: Any) -> str | bytes:
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path is None:
            raise RowError(f'"{name}" has neither bytes nor a path: null stands for no picture')
        value = path if data is None else data
        if isinstance(data, str):
            raise RowError(f'"{name}" has its bytes as text, which are not read: give a path')
    if isinstance(value, bytes):
        if not value:
            raise RowError(f'"{name}" has no bytes: null stands for no picture')
        return value
    if not isinstance(value, str):
        raise RowError(f'"{name}" is {shown(value, 40)}: give a path, or bytes, or null for none')
    if not value:
        raise RowError(f'"{name}" is an empty path: null stands for no picture')
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise RowError(f"no file can have the name {value!r}: half of a surrogate pair") from None
    return value


def _named(column: str, value: Any) -> str:
    """A text as it is, a whole number in decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:  # Python writes no number of thousands of digits
            raise RowError(f'"{column}" is a number of too many digits: write it as text') from None
    return _text(column, value)


def _text(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RowError(f'"{column}" is {shown(value, 40)}: write it as text')
    return whole(column, value)


def whole(column: str, text: str) -> str:
    """A column's text as it is.

    Raises:
        RowError: it holds what is no character, which JSON can write and Parquet cannot.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise RowError(f'"{column}" holds half of a surrogate pair, which is no character')
    return text
