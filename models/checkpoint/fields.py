"""Fields of a checkpoint's `config.json`, each checked as it is read.

A broken or unsupported value is refused by one `CallError` that names the field, the value and what
is supported. Every number has a range that no model leaves, so that nothing is built from a file
that no memory holds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resprune_jax.errors import CallError, shown

LARGEST_SIZE = 1 << 24
"""What counts or measures something, at most: a vocabulary of millions, a context of ten."""

MOST_LAYERS = 256
"""Layers of a part of a model, at most: the deepest public ones have 126."""

LARGEST_ID = (1 << 31) - 1
"""A token's id, at most."""

_LARGEST, _SMALLEST = 1e12, 1e-12


def section(hf: Mapping[str, Any], key: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested configuration `key`, or `default` when the file has none."""
    section = hf.get(key)
    if section is None:
        return default
    if not isinstance(section, Mapping):
        raise CallError(f"{key} is {shown(section)}, expected an object; config.json is broken")
    return section


def one_of(what: str, value: Any, supported: tuple[Any, ...]) -> Any:
    """`value`, if it is supported; 2.0 and True are no 2 and 1."""
    if not any(type(value) is type(other) and value == other for other in supported):
        names = ", ".join(repr(name) for name in supported)
        raise CallError(f"{what} {shown(value)} is not supported; supported: {names}")
    return value


def whole(what: str, value: Any, low: int = -LARGEST_SIZE, high: int = LARGEST_SIZE) -> int:
    """`value`, if it is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CallError(f"{what} is {shown(value)}, expected a whole number; config.json is broken")
    if not low <= value <= high:
        raise CallError(
            f"{what} is {shown(value)}, expected at least {low} and at most {high}; config.json is "
            "broken"
        )
    return value


def size(what: str, value: Any, most: int = LARGEST_SIZE) -> int:
    """`value`, if it is a whole number from 1 to `most`."""
    return whole(what, value, 1, most)


def layers(what: str, value: Any) -> int:
    """`value`, if it is a number of layers that a model may have."""
    return size(what, value, MOST_LAYERS)


def token_id(what: str, value: Any) -> int:
    """`value`, if it may be a token's id."""
    return whole(what, value, 0, LARGEST_ID)


def number(what: str, value: Any) -> float:
    """`value` as a float, if it is a number above 0 that arithmetic can hold."""
    good = not isinstance(value, bool) and isinstance(value, int | float) and value > 0
    if not good or not math.isfinite(value):
        raise CallError(
            f"{what} is {shown(value)}, expected a finite number above 0; config.json is broken"
        )
    if not _SMALLEST <= value <= _LARGEST:
        raise CallError(
            f"{what} is {shown(value)}, expected at least {_SMALLEST:g} and at most {_LARGEST:g}; "
            "config.json is broken"
        )
    return float(value)


def side(what: str, value: Any) -> int:
    """One side of a square, from a number or a pair of equal numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value or any(part != value[0] for part in value):
            raise CallError(f"{what} {shown(value)} is not square; supported are square sizes")
        value = value[0]
    return size(what, value, 1 << 15)


def divides(what: str, value: int, by_what: str, by: int) -> None:
    """Refuse a `value` that `by` does not divide."""
    if value % by:
        raise CallError(f"{what} {value} is not a multiple of the {by} {by_what}")
