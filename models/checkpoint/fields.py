"""Fields of a checkpoint's `config.json`, each checked as it is read.

A broken or unsupported value is refused by one `CallError` that names the field, the value and what
is supported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from resprune_jax.errors import CallError


def section(hf: Mapping[str, Any], key: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested configuration `key`, or `default` when the file has none."""
    section = hf.get(key)
    if section is None:
        return default
    if not isinstance(section, Mapping):
        raise CallError(f"{key} is {section!r}, expected an object; config.json is broken")
    return section


def one_of(what: str, value: Any, supported: tuple[Any, ...]) -> Any:
    """`value`, if it is supported."""
    if value not in supported:
        names = ", ".join(repr(name) for name in supported)
        raise CallError(f"{what} {value!r} is not supported; supported: {names}")
    return value


def whole(what: str, value: Any) -> int:
    """`value`, if it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CallError(f"{what} is {value!r}, expected a whole number; config.json is broken")
    return value


def size(what: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1."""
    if whole(what, value) < 1:
        raise CallError(f"{what} is {value!r}, expected at least 1; config.json is broken")
    return value


def number(what: str, value: Any) -> float:
    """`value` as a float, if it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise CallError(f"{what} is {value!r}, expected a number above 0; config.json is broken")
    return float(value)


def side(what: str, value: Any) -> int:
    """One side of a square, from a number or a pair of equal numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(set(value)) != 1:
            raise CallError(f"{what} {list(value)} is not square; supported are square sizes")
        value = value[0]
    return size(what, value)


def divides(what: str, value: int, by_what: str, by: int) -> None:
    """Refuse a `value` that `by` does not divide."""
    if value % by:
        raise CallError(f"{what} {value} is not a multiple of the {by} {by_what}")
