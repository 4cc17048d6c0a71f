"""What a method is told: each setting is read as its field's type says, before anything runs."""

import math
import types
import typing
from dataclasses import Field, fields, replace
from typing import Any, Literal, Union

import jax
import numpy as np

from resprune_jax.arguments import array_of, numbers, read_setting, whole
from resprune_jax.errors import CallError, shown

WHOLE = (-(2**31), 2**32 - 1)
"""The whole numbers that a setting may be, where its field does not say."""


def read_settings(cls: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a method in the types that its fields are annotated with.

    A field of the type `float` takes a finite number, `int` a whole one, a `Literal` one of its
    texts, `bool` a truth, `tuple[int, ...]` a row of whole numbers or a text such as 8,16,24,
    `... | None` also None.
    `field(metadata={"range": (low, high)})` bounds numbers, ends included; with `"per_row"` there
    may be one for each row. Arrays of JAX pass as they are, and annotations of any other kind too.

    Args:
        cls: the method's class, a dataclass.
        given: values by field.

    Raises:
        CallError: a value that its field cannot hold.
    """
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # of a user's own class: names that are not there at run time
        return given
    known = {own.name: own for own in fields(cls)}
    return {name: _read(known[name], hints.get(name), value) for name, value in given.items()}


def _read(own: Field[Any], hint: Any, value: Any) -> Any:
    kinds = _kinds(hint)
    if isinstance(value, jax.Array) and not own.metadata.get("static"):
        return array_of(own.name, value, "number") if {float, int} & {*kinds} else value
    if value is None and type(None) in kinds:
        return None
    choices = [choice for kind in kinds for choice in _choices(kind)]
    if choices:
        if not isinstance(value, str | int) or isinstance(value, bool) or value not in choices:
            said = ", ".join(map(str, choices))
            raise CallError(f"{own.name} must be one of {said}, got {shown(value)}")
        return value
    if row := next((kind for kind in kinds if typing.get_origin(kind) is tuple), None):
        inside = float if float in typing.get_args(row) else int
        if inside not in typing.get_args(row):
            return value
        if isinstance(value, str):  # as on a command line: 8,16,24
            value = [read_setting(one.strip()) for one in value.split(",")]
        if not isinstance(value, list | tuple | np.ndarray) or not len(value):
            raise CallError(f"{own.name} is a row of numbers, got {shown(value)}")
        return tuple(_number(own, inside, one) for one in value)
    if bool in kinds:
        if not isinstance(value, bool | np.bool_):
            raise CallError(f"{own.name} is true or false, got {shown(value)}")
        return bool(value)
    for kind in (float, int):
        if kind in kinds:
            return _rows(own, kind, value) if _many(own, value) else _number(own, kind, value)
    if str in kinds and not isinstance(value, str):
        raise CallError(f"{own.name} is text, got {shown(value)}")
    return value


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [kind for one in typing.get_args(hint) for kind in _kinds(one)]
    return [hint]


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _many(own: Field[Any], value: Any) -> bool:
    return bool(own.metadata.get("per_row")) and np.ndim(_quiet(value)) > 0


def _quiet(value: Any) -> Any:
    """A value as NumPy sees it; 0 where it cannot."""
    try:
        return np.asarray(value)
    except Exception:
        return np.zeros(())


def _rows(own: Field[Any], kind: type, value: Any) -> np.ndarray:
    """One number for each row."""
    found = np.asarray(array_of(own.name, value, "number" if kind is float else "whole"))
    if found.ndim != 1 or not found.size:
        raise CallError(f"{own.name} is a number, or one for each row, got shape {found.shape}")
    for one in found.tolist():
        _number(own, kind, one)
    return found


def _number(own: Field[Any], kind: type, value: Any) -> Any:
    low, high = own.metadata.get("range", WHOLE if kind is int else (-math.inf, math.inf))
    said = "a whole number" if kind is int else "a finite number"
    if "range" in own.metadata:
        said += f" from {low:g}" + (f" to {high:g}" if math.isfinite(high) else " on")
    if kind is int:
        try:
            found: Any = whole(own.name, value, least=WHOLE[0])
        except CallError:
            found = None
    else:
        found = numbers(value)
        found = None if isinstance(found, tuple) else found
    largest = float(np.finfo(np.float32).max)
    if found is None or not -largest <= found <= largest or not low <= found <= high:
        raise CallError(f"{own.name} must be {said}, got {shown(value)}")
    return kind(found)


def settings_of_rows(method: Any) -> dict[str, Any]:
    """The settings that a method has for each row, by name."""
    own = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("per_row")}
    return {name: value for name, value in own.items() if np.ndim(value)}


def rows_of(method: Any) -> int:
    """For how many rows a method has settings; 1 where they are for all rows."""
    return max((np.shape(value)[0] for value in settings_of_rows(method).values()), default=1)


def for_rows(method: Any, rows: int, size: int) -> Any:
    """A method whose settings a row are padded with the batch, as every other array is.

    Args:
        method: with settings for all rows, or for each.
        rows: B, real rows.
        size: rows of the batch; those beyond B repeat row 0.

    Raises:
        CallError: a setting with entries for another number of rows.
    """
    padded = {}
    for name, value in settings_of_rows(method).items():
        count = np.shape(value)[0]
        if count != rows:
            raise CallError(
                f"{name} has {count} entries for {rows} prompts: give one for all, or one for each"
            )
        which = np.where(np.arange(size) < rows, np.arange(size), 0)
        padded[name] = np.asarray(value)[which]
    return replace(method, **padded) if padded else method


def for_each(method: Any, size: int) -> Any:
    """A method whose numbers a row are given for each row, as a program takes it.

    One number for all rows and one for each are one program then, whatever kind of Python's or
    NumPy's numbers they are.

    Args:
        method: with settings for all rows, or for each of the batch.
        size: rows of the batch.
    """
    try:
        hints = typing.get_type_hints(type(method))
    except Exception:  # as `read_settings`
        return method
    filled = {}
    for own in fields(method):
        value = getattr(method, own.name)
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if own.metadata.get("per_row") and number and float in _kinds(hints[own.name]):
            filled[own.name] = np.full(size, value, np.float32)
    return replace(method, **filled) if filled else method
