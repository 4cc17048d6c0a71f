"""The words of a command line, looked at before the parser: what is nearly right gets a hint."""

import dataclasses
import difflib
import importlib.metadata
import platform
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resprune_jax import __version__
from resprune_jax.errors import CallError

HELP = ("-h", "--help")


OWN = "resprune-jax"


def version_of(package: str) -> str:
    """The version of this package's code, or of another one as it is installed."""
    if package == OWN:  # an editable install's metadata stay behind when the code moves on
        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def version() -> str:
    """This package's version, and those of what it computes with: a line for a bug report."""
    found = {name: version_of(name) for name in (OWN, "jax", "flax", "transformers")}
    own, *others = [f"{name} {text}" for name, text in found.items()]
    return f"{own} ({', '.join([*others, f'Python {platform.python_version()}'])})"


def check(words: Sequence[str], commands: Mapping[str, type], groups: Iterable[str]) -> None:
    """Refuse a command or an option that there is not, and an option that was given twice.

    Args:
        words: what was typed behind `resprune`.
        commands: the options of every command, as dataclasses; "group command" in a group.
        groups: the names of the groups.

    Raises:
        CallError: naming what was typed and what is nearest to it.
    """
    name, rest = "", list(words)
    known = [*groups, *(each for each in commands if " " not in each)]
    while name not in commands:
        if not rest or rest[0].startswith("-"):
            return  # the parser says what is missing, or prints the help
        word, *rest = rest
        own = word if not name else f"{name} {word}"
        if own not in known:
            near = _nearest(own, [*known, *commands])
            hint = f"did you mean {near!r}?" if near else f"choose one of {', '.join(known)}"
            raise CallError(f"there is no command {own!r}: {hint} (try: {_help(name)})")
        name = own
        known = [each for each in commands if each.startswith(f"{name} ")]
    options = _options(commands[name])
    given = [_dashed(word.split("=", 1)[0]) for word in rest if re.match(r"--[A-Za-z]", word)]
    for option in given:
        if option not in options and option not in HELP:
            near = _nearest(option, list(options))
            hint = f": did you mean {near}?" if near else ""
            raise CallError(f"{name} has no option {option!r}{hint} (try: {_help(name)})")
    switches = {own for own, hint in named(commands[name]).items() if hint is bool} | set(HELP)
    for word in rest:
        option, is_, _ = word.partition("=")
        if is_ and _dashed(option) in switches:
            raise CallError(f"{_dashed(option)} is a switch and takes no value: write it alone")
    for option in dict.fromkeys(given):
        if given.count(option) > 1 and option not in HELP:
            raise CallError(f"{option} was given twice: {_once(option, options)}")


def _once(option: str, options: Mapping[str, bool]) -> str:
    """What to do in place of giving an option twice."""
    if options[option]:
        return "give it once, with all its values after it"
    if option == "--prompt" and "--rows" in options:
        return "give it once; several questions are the rows of a --rows FILE.jsonl"
    return "it takes one value, give it once"


def _help(name: str) -> str:
    return f"resprune {name} --help" if name else "resprune --help"


def _dashed(option: str) -> str:
    """An option as it is listed: the parser takes --batch_size for --batch-size."""
    return "--" + option[2:].replace("_", "-")


def _options(options: type) -> dict[str, bool]:
    """The options of a command as they are written, and whether each takes several values."""
    return {name: _several(hint) for name, hint in named(options).items()}


def named(options: type) -> dict[str, Any]:
    """The options of a command as they are written, each with the type of its value.

    Args:
        options: its dataclass; a field is written by its name, or the one that it is annotated
            with, a switch that is on by default with "no-".
    """
    hints = typing.get_type_hints(options)
    full = typing.get_type_hints(options, include_extras=True)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        switch = "no-" if hints[field.name] is bool and field.default is True else ""
        said = getattr(full[field.name], "__metadata__", ())
        if "Positional" in map(str, said):
            continue  # it is written without a name
        # An option may have another name on the command line than its field.
        names = (getattr(each, "name", None) for each in said)
        name = next((own for own in names if isinstance(own, str)), field.name)
        found[f"--{switch}{name.replace('_', '-')}"] = hints[field.name]
    return found


def _several(hint: object) -> bool:
    """Whether values of this type are written one after another."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(map(_several, typing.get_args(hint)))
    return typing.get_origin(hint) in (tuple, list)


def _nearest(word: str, known: Sequence[str]) -> str | None:
    """The known word that is most like this one, where one is like it at all."""
    return next(iter(difflib.get_close_matches(word[:80], known, n=1)), None)
