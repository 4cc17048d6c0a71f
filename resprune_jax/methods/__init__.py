"""Every pruning method behind one protocol, and the registry that names them."""

from dataclasses import fields, replace
from typing import Any

from resprune_jax.errors import CallError

from .base import NEWLINE, PATCH, Method, PromptContext, VisualTokens
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
            raise CallError(f"unknown method {method!r}: choose one of none, {', '.join(METHODS)}")
        method = METHODS[method]
    settings = {name: value for name, value in settings.items() if value is not None}
    known = {f.name for f in fields(method)}  # type: ignore[arg-type]
    if unknown := sorted(settings.keys() - known):
        raise CallError(
            f"{type(method).__name__} has no setting {', '.join(unknown)}; it has"
            f" {', '.join(sorted(known))}"
        )
    return replace(method, **settings)  # type: ignore[type-var]


__all__ = [
    "METHODS",
    "NEWLINE",
    "PATCH",
    "Method",
    "PromptContext",
    "ResPrune",
    "VisualTokens",
    "get_method",
]
