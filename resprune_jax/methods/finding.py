"""From a name to a method: ours, one of an installed package, or a class in somebody's file."""

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError, shown

from .base import Method, check_method
from .settings import read_settings

GROUP = "resprune_jax.methods"
"""The entry points by which an installed package offers methods: a name, and module:Class."""


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: one of `choices.METHODS`, the name of an entry point of `GROUP`, or FILE.py:NAME for a
            class in a file.

    Raises:
        CallError: there is none of that name, or it is no method.
    """
    path, _, last = name.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), last)
    if name in METHODS:
        module, _, last = METHODS[name].partition(":")
        found: type[Method] = getattr(
            importlib.import_module(f"resprune_jax.methods.{module}"), last
        )
        return found
    offered = {each.name: each for each in entry_points(group=GROUP)}
    if name in offered:
        try:
            found = offered[name].load()
        except Exception as error:
            raise CallError(f"method {shown(name)} of a package fails: {error}") from error
        return _checked(found, name)
    raise CallError(
        f"unknown method {shown(name)}: choose one of {', '.join(('none', *METHODS, *offered))}, or"
        " a class of your own as FILE.py:NAME"
    )


def _from_file(path: Path, name: str) -> type[Method]:
    if not path.is_file():
        raise CallError(f"there is no file {shown(str(path))} to take a method from")
    spec = importlib.util.spec_from_file_location(f"resprune_method_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is somebody's program, which may do anything
        what = f"{type(error).__name__}: {error}"
        raise CallError(f"{path} cannot be run: {' '.join(what.split())[:300]}") from error
    if not hasattr(module, name):
        raise CallError(f"{path} holds no {shown(name)}")
    return _checked(getattr(module, name), f"{path}:{name}")


def _checked(found: Any, name: str) -> type[Method]:
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise CallError(
            f"{shown(name)} is no method: write a subclass of resprune_jax.methods.Method"
        )
    return found


def get_method(
    method: str | Method, settings: Mapping[str, Any] | None = None, **more: Any
) -> Method:
    """The method of that name (or the one given) with some of its settings.

    Args:
        method: a name, see `method_class`, or an instance.
        settings: fields by name; `None` leaves a field as it is.
        **more: likewise.

    Raises:
        CallError: an unknown name, a setting that the method does not have, or one missing that it
            must have.
    """
    given = {**(settings or {}), **more}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(method, str):
        cls = method_class(method)
    else:
        check_method(method)
        cls = type(method)
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(given.keys() - known.keys()):
        have = f"it has {', '.join(sorted(known))}" if known else "it has none"
        raise CallError(f"{cls.__name__} has no setting {', '.join(unknown)}; {have}")
    given = read_settings(cls, given)
    if not isinstance(method, str):
        return replace(method, **given) if given else method
    unset = (MISSING, MISSING)
    needed = [n for n, f in known.items() if (f.default, f.default_factory) == unset]
    if missing := [name for name in needed if name not in given]:
        raise CallError(
            f"{method} needs {', '.join(missing)}, which its authors have not published: give"
            f" {'it' if len(missing) == 1 else 'them'}"
        )
    made = cls(**given)
    check_method(made)
    return made
