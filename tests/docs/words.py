"""Commands as pages write them, with placeholders and optional parts, and whether they are real.

Nothing is run here but the parser of the command line.
"""

import dataclasses
import functools
import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from packaging.requirements import Requirement

from resprune_jax.errors import CallError
from resprune_jax.experiments import cli, words
from tests.docs.inputs import FOREIGN, PLACEHOLDERS, REQUIRED
from tests.docs.pages import ROOT, Page


class WordsError(ValueError):
    """A command that there is not: says why."""


def split(text: str) -> list[str]:
    """The words of a command, without its comment; the shell's continued lines are joined."""
    return shlex.split(text.replace("\\\n", " "), comments=True)


def filled(text: str) -> str:
    """A command with every placeholder that is a word of its own replaced."""

    def value(found: re.Match[str]) -> str:
        return shlex.quote(PLACEHOLDERS[found[0]])

    every = "|".join(sorted(map(re.escape, PLACEHOLDERS), key=len, reverse=True))
    return re.sub(rf"(?<![\w./:=\"'-])(?:{every})(?![\w./:=\"'-])", value, text)


def forms(text: str) -> Iterator[str]:
    """What a command that is written with `[optional parts]` and `a | b` can stand for."""
    optional = re.compile(r"(?<!\S)\[([^\[\]]*)\]")  # not the extras of `pip install .[serve]`
    groups = optional.findall(text)
    ways = [_alternatives(group) for group in groups]
    for turn in range(max(map(len, ways), default=1)):
        chosen = iter(way[min(turn, len(way) - 1)] for way in ways)
        form = optional.sub(lambda _: next(chosen), text)  # noqa: B023
        yield _without_gaps(form.split())


def _without_gaps(given: list[str]) -> str:
    """Without `...`; behind an option that needs a value it stands for one."""
    kept: list[str] = []
    for word in given:
        if word not in ("...", "…"):
            kept.append(word)
        elif kept and kept[-1] in REQUIRED:
            kept.append(shlex.quote(REQUIRED[kept[-1]]))
    return " ".join(kept)


def _alternatives(group: str) -> list[str]:
    """`--keep 128 | 0.222` as `--keep 128` and `--keep 0.222`."""
    first, *others = (part.strip() for part in group.split("|"))
    option = first.split()[0] if first.startswith("--") else ""
    return [first, *(own if own.startswith("-") else f"{option} {own}" for own in others)]


def known_options() -> set[str]:
    """Every option of every command."""
    every = {name for own in cli.COMMANDS.values() for name in words.named(own.options)}
    return every | {"--help", "--version"} | {name.replace("--no-", "--", 1) for name in every}


def _command(given: Sequence[str]) -> tuple[str, list[str]]:
    """The name of a command and the words behind it."""
    for count in (2, 1):
        name = " ".join(given[:count])
        if name in cli.COMMANDS or (count == 1 and name in cli.GROUPS):
            return name, list(given[count:])
    raise WordsError(f"there is no command {' '.join(given[:2])!r}")


def _is_positional(hint: Any) -> bool:
    return "Positional" in map(str, getattr(hint, "__metadata__", ()))


@functools.cache
def _required(name: str) -> list[str]:
    """The options that a command cannot do without, and "" for its positional argument."""
    options = cli.COMMANDS[name].options
    positional = {
        own.name for own in dataclasses.fields(options)
        if _is_positional(words.typing.get_type_hints(options, include_extras=True)[own.name])
    }  # fmt: skip
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    needed = [
        own.name for own in dataclasses.fields(options)
        if (own.default, own.default_factory) == missing
    ]  # fmt: skip
    return ["" if own in positional else f"--{own.replace('_', '-')}" for own in needed]


def check_resprune(given: Sequence[str], whole: bool = False) -> None:
    """Parse a call of `resprune` with its real parser.

    Args:
        given: the words behind `resprune`.
        whole: the call must be complete. Where prose names a command with one option of it, what
            else it needs is added.

    Raises:
        WordsError: no such command or option, a value that the option does not take.
    """
    if list(given) in (["--help"], ["--version"]):
        return
    name, rest = _command(given)
    if rest in ([], ["--help"]) and not whole:
        return
    if name in cli.GROUPS:
        raise WordsError(f"{name} has no command {rest[0]!r}")
    rest = [word for word in rest if word != "--help"]
    if not whole:
        last = rest[-1] if rest else ""
        if words.named(cli.COMMANDS[name].options).get(last, bool) is not bool:  # without its value
            rest = [*rest, REQUIRED[last]] if last in REQUIRED else rest[:-1]
        for option in _required(name):
            if option and option not in rest:
                rest += [option, REQUIRED[option]]
            elif not option and (not rest or rest[0].startswith("-")):
                rest = [REQUIRED[""], *rest]
    try:
        cli.parse([*name.split(), *rest])
    except CallError as error:
        raise WordsError(str(error)) from None
    except SystemExit:
        return  # the help


def check_pip(given: Sequence[str]) -> None:
    """See that `pip install` names extras that there are; whether it resolves is not asked.

    Raises:
        WordsError: a requirement that is none, an extra of this package that there is not.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in given:
        if word.startswith("-"):
            continue
        local = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", word)
        if local:
            extras = set(filter(None, (local[1] or "").split(",")))
        else:
            try:
                wanted = Requirement(word)
            except ValueError as error:
                raise WordsError(f"pip does not take {word!r}: {error}") from None
            extras = wanted.extras if wanted.name == project["name"] else set()
        if gone := extras - set(project["optional-dependencies"]):
            raise WordsError(f"there is no extra {sorted(gone)[0]!r}")


def check_make(given: Sequence[str]) -> None:
    """See that make knows what to do.

    Raises:
        WordsError: it does not.
    """
    done = subprocess.run(
        ["make", "-n", *given], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    if done.returncode:
        raise WordsError(f"make -n {' '.join(given)}: {done.stderr.strip()[-300:]}")


def check_pytest(given: Sequence[str]) -> None:
    """See that the files are there.

    Raises:
        WordsError: one is not.
    """
    for word in given:
        path = word.split("::")[0]
        if not word.startswith("-") and "/" in word and not (ROOT / path).exists():
            raise WordsError(f"there is no {path}")


def check_module(given: Sequence[str]) -> None:
    """See that a module that `python -m` would run is there.

    Raises:
        WordsError: it is not.
    """
    module, *rest = given
    if module == "pip":
        return check_pip(rest[1:])
    if module == "pytest":
        return check_pytest(rest)
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise WordsError(f"there is no module {module}")
    return None


CHECKS = {
    ("resprune",): check_resprune,
    ("make",): check_make,
    ("pip", "install"): check_pip,
    ("pytest",): check_pytest,
    ("python", "-m"): check_module,
}
"""What looks at a command without running it, by its first words."""


def check(start: tuple[str, ...], given: Sequence[str]) -> None:
    """Look at a command of a block, which is complete.

    Raises:
        WordsError: it cannot be run.
    """
    if start == ("resprune",):
        check_resprune(given, whole=True)
    else:
        CHECKS[start](given)


def check_inline(text: str) -> bool:
    """Look at a piece of inline code, if it is a command or begins with an option.

    Returns:
        Whether it was one.

    Raises:
        WordsError: a command or an option that there is not.
    """
    text = re.sub(r"^(?:[A-Z_]+=\S* )+", "", " ".join(text.split()))
    first = text.split(" ", 1)[0]
    if re.match(r"--[a-z]", text):
        options = re.findall(r"(?<!\S)(--[a-z][\w-]*)", text)
        if gone := [own for own in options if own not in known_options() | set(FOREIGN)]:
            raise WordsError(f"no command has an option {gone[0]}")
        return True
    if first in cli.GROUPS and " " in text and text.split()[1].isalpha():
        text = f"resprune {text}"
    for start, check in CHECKS.items():
        own = text.split()
        if tuple(own[: len(start)]) == start and len(own) > len(start):
            for form in forms(text):
                try:
                    given = split(filled(form))
                except ValueError as error:
                    raise WordsError(f"{form}: {error}") from None
                check(given[len(start) :])
            return True
    return False


def check_page(page: Page) -> tuple[int, list[str]]:
    """Look at all inline code of a page.

    Returns:
        How many pieces were commands or options, and what is wrong with which.
    """
    count = 0
    wrong = []
    for line, text in page.inline:
        try:
            count += check_inline(text)
        except WordsError as error:
            wrong.append(f"{page.name}:{line}: `{text}`: {error}")
    return count, wrong
