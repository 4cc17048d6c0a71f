"""Every pruning method behind one protocol, and the registry that names them."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from resprune_jax.errors import CallError, shown

from .base import NEWLINE, PATCH, Method, PromptContext, VisualTokens, for_rows, rows_of
from .resprune import ResPrune

METHODS: dict[str, Method] = {"resprune": ResPrune()}
"""Ready instances by name."""


def get_method(method: str | Method, **settings: Any) -> Method:
    """The method of that name (or the one given) with some of its settings replaced.

    Args:
        method: a name in `METHODS`, or an instance.
        **settings: fields to replace; `None` leaves a field as it is.

    Raises:
        CallError: an unknown name, or a setting that the method does not have.
    """
    if isinstance(method, str):
        if method not in METHODS:
            names = ", ".join(METHODS)
            raise CallError(f"unknown method {shown(method)}: choose one of none, {names}")
        method = METHODS[method]
    if isinstance(method, type) or not (is_dataclass(method) and hasattr(method, "needs")):
        raise CallError(
            f"method is a name ({', '.join(METHODS)}, none) or an instance such as ResPrune(),"
            f" got {shown(method)}"
        )
    settings = {name: value for name, value in settings.items() if value is not None}
    known = {f.name for f in fields(method)}
    if unknown := sorted(settings.keys() - known):
        raise CallError(
            f"{type(method).__name__} has no setting {', '.join(unknown)}; it has"
            f" {', '.join(sorted(known))}"
        )
    return replace(method, **settings)


__all__ = [
    "METHODS",
    "NEWLINE",
    "PATCH",
    "Method",
    "PromptContext",
    "ResPrune",
    "VisualTokens",
    "for_rows",
    "get_method",
    "rows_of",
]
