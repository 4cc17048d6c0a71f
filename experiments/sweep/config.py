"""The options of a sweep from a file, and the grids that come with the package."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.experiments.common import check_file
from resprune_jax.experiments.sweep.command import SweepOptions
from resprune_jax.experiments.sweep.grid import Grid
from resprune_jax.experiments.sweep.presets import PRESETS

_AXES = {own.name: own for own in dataclasses.fields(Grid)}
_OWN = {own.name: own for own in dataclasses.fields(SweepOptions) if own.name not in _AXES}
_NOT_IN_FILES = {"config", "dry_run", "debug", "process_id"}


def read_config(options: SweepOptions) -> tuple[SweepOptions, list[Grid]]:
    """The options with those of `--config`, and the grids.

    Raises:
        CallError: an unknown name or a value of another kind in the file, one that the command line
            gives otherwise, or an axis beside a preset that has its own.
        RunError: a file that is no TOML or JSON.
    """
    found: dict[str, Any] = {}
    if options.config is not None:
        found = _read(options.config)
    grids = found.pop("grids", None)
    where = str(options.config)
    if unknown := sorted(set(found) - set(_AXES) - set(_OWN) | (set(found) & _NOT_IN_FILES)):
        raise CallError(f"{where}: {shown(unknown[0])} is no option of a sweep's file")
    changes = {}
    for name, value in found.items():
        own = _typed(where, name, value)
        given = getattr(options, name)
        default = {**_AXES, **_OWN}[name].default
        if given not in (default, own):
            raise _twice(name, given, where, own)
        changes[name] = own
    asked = {name: getattr(options, name) for name, own in _AXES.items()
             if getattr(options, name) != own.default}  # fmt: skip
    options = dataclasses.replace(options, **changes)
    base = Grid(**{name: getattr(options, name) for name in _AXES})
    if options.preset != "none":
        if grids is not None:
            raise CallError(f"--preset {options.preset} and the grids of {where}: give one")
        return options, _on(options.preset, base)
    if grids is None:
        return options, [base]
    if not isinstance(grids, list) or not grids:
        raise CallError(f"{where}: grids is a list of tables, got {shown(grids)}")
    made = []
    for number, table in enumerate(grids):
        place = f"{where}: grid {number}"
        if not isinstance(table, Mapping):
            raise CallError(f"{place} is a table of axes, got {shown(table)}")
        if unknown := sorted(set(table) - set(_AXES)):
            raise CallError(
                f"{place}: {shown(unknown[0])} is no axis: choose of {', '.join(_AXES)}"
            )
        own = {name: _typed(place, name, value) for name, value in table.items()}
        for name, value in own.items():
            if value != asked.get(name, value):
                raise _twice(name, asked[name], place, value)
        made.append(dataclasses.replace(base, **own))
    return options, made


def _twice(name: str, given: Any, where: str, own: Any) -> CallError:
    """What the command line and a file say of one option."""
    words = " ".join(map(str, given)) if isinstance(given, tuple) else str(given)
    told = list(own) if isinstance(own, tuple) else own
    return CallError(f"--{name.replace('_', '-')} {words} and {where} {shown(told)}: give one")


def _on(preset: str, base: Grid) -> list[Grid]:
    """A preset's grids; what the options say of budgets and draws holds for all of them.

    Raises:
        CallError: they say something of another axis.
    """
    plain, grids = Grid(), PRESETS[preset]
    for name in _AXES:
        if name not in ("keep", "draws") and getattr(base, name) != getattr(plain, name):
            raise CallError(
                f"--{name.replace('_', '-')} and --preset {preset}: the preset has its own values"
                " of every axis but keep and draws; leave one of them out"
            )
    if base.keep == plain.keep and base.draws == plain.draws:
        return grids
    return [
        dataclasses.replace(
            grid,
            keep=grid.keep if base.keep == plain.keep or grid.tolerance else base.keep,
            draws=grid.draws if base.draws == plain.draws else base.draws,
        )
        for grid in grids
    ]


def _read(path: Path) -> dict[str, Any]:
    check_file(path, "--config")
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is neither TOML nor JSON: {error}") from None
    if not isinstance(found, dict):
        raise CallError(f"{path} is a table of options, got {shown(found)}")
    return found


def _typed(where: str, name: str, value: Any) -> Any:
    """A value of a file in the kind of its option: lists as tuples, paths as such."""
    default = {**_AXES, **_OWN}[name].default
    if isinstance(default, tuple):
        if not isinstance(value, list):
            raise CallError(f"{where}: {name} is a list of values, got {shown(value)}")
        if not all(isinstance(each, str | int | float) for each in value):
            raise CallError(f"{where}: {name} holds texts and numbers, got {shown(value)}")
        texts = name in ("keep", "methods", "tolerance")
        return tuple(str(each) if texts else each for each in value)
    if name in ("output", "report"):
        if not isinstance(value, str):
            raise CallError(f"{where}: {name} is a path, got {shown(value)}")
        return Path(value)
    kinds: tuple[type, ...] = (str,)
    if name in ("examples", "max_new_tokens", "num_processes", "block", "batch", "draws"):
        kinds = (int,)
    if value is None and default is None:
        return None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise CallError(f"{where}: {name} is a {kinds[0].__name__}, got {shown(value)}")
    return value
