"""Command lines: options of every kind with values of every kind, names nearly right, odd paths.

Of two cases one is made by chance; the other visits one option of one command and gives it several
values. Those that can be none must be refused by the option's name, as a wrong call.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
import tempfile
import typing
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from tests.attacks.harness import BAD_MESSAGE, WRONG, Fault, Fuzzer, draw, message_fault

NAME = "command lines"
LONG = 200_000

_ODD = (
    *("", " ", "-", "--", "---", "=", "--=", "-h=", "nan", "inf", "-inf", "None", "true", "-1"),
    *("1.0", "1e400", "9" * 30, "0x10", "1_000", "\u0661\u0662", "\0", "a\0b", "\n", "\x1b[31mred"),
    *("\ud83d", "\udcff.png", "\u202egnp.exe", "é", "图片.png", "🙂", "%s%n", "{}", "[red]x[/]"),
    *("~", "~nobody-of-this-name/x", "$HOME", "/", ".", "..", "//", "/dev/null", "/dev/zero"),
    *("/proc/self/mem", "CON", "C:\\x", "https://example.org/a.jpg", "file:///etc/hosts"),
    *("data:image/png;base64,AA", "s3://bucket/x.png", "loop", "loop/x", "folder", "missing.png"),
    *("a.png", "text.png", "empty.png", "cut.png", "rows.jsonl", "odd.jsonl", "pipe", "secret.png"),
    *("x" * 300, "y" * LONG, "a/" * 3000, "\n" * LONG, "../" * 2000 + "etc/passwd"),
)  # fmt: skip


@functools.cache
def _place() -> Path:
    """A folder with files of every kind."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="attack-words-"))
    Image.new("RGB", (9, 7), "red").save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:45])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "secret.png").write_bytes(b"\x89PNG")
    (folder / "secret.png").chmod(0)
    (folder / "rows.jsonl").write_text('{"image": "a.png", "prompt": "what?"}\n')
    (folder / "odd.jsonl").write_bytes(b'\xff\n{"prompt": NaN}\n[[[[\n{"id": "\\ud800"}\n')
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


def _load(options: Any) -> Any:
    """No model is at hand: what reaches it was a right call."""
    from resprune_jax.errors import RunError

    raise RunError("the model was asked for")


def prepare() -> None:
    """Import the commands, and keep those that compute from running."""
    from resprune_jax.experiments import cli
    from resprune_jax.experiments.answer import command as answer

    answer.load_asked = _load
    for name, command in list(cli.COMMANDS.items()):
        if name != "answer":
            cli.COMMANDS[name] = cli.Command(command.options, _load)
    _place()


@functools.cache
def _options(command: str) -> dict[str, Any]:
    """The options of a command and the types of their values."""
    from resprune_jax.experiments import cli, words

    return words.named(cli.COMMANDS[command].options)


def _parts(hint: Any) -> list[Any]:
    """The types and choices that a type is made of."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    inside = typing.get_args(hint)
    return [part for one in inside for part in _parts(one)] if inside else [hint]


def _value(rng: np.random.Generator, hint: Any = str) -> str:
    """A value: mostly one that the parser lets through, odd in another way."""
    kind = rng.random()
    if kind < 0.1:
        return "".join(map(chr, rng.integers(1, 0x3000, rng.integers(1, 12)).tolist()))
    parts = [part for part in _parts(hint) if part is not type(None)]
    choices = [part for part in parts if isinstance(part, str)]
    if choices and kind < 0.9:
        return choices[rng.integers(len(choices))]
    if kind < 0.9 and (int in parts or float in parts):
        whole = ("0", "1", "-1", "7", "128", "4294967295", "4294967296", "9" * 30)
        broken = ("0.5", "1.0", "-0.5", "nan", "inf", "1e400", "1e-400", "1e9")
        each = whole if float not in parts else whole + broken
        return each[rng.integers(len(each))]
    return _ODD[rng.integers(len(_ODD))]


def _misspelt(rng: np.random.Generator, word: str) -> str:
    at = int(rng.integers(len(word) + 1))
    return word[:at] + str(rng.choice(["", "x", "-", "\x1b", word[at : at + 1]])) + word[at + 1 :]


def make(seed: int) -> list[str]:
    """The words of a case."""
    from resprune_jax.experiments import cli

    rng = draw(NAME, seed)
    commands = list(cli.COMMANDS)
    command = commands[rng.integers(len(commands))] if rng.random() < 0.4 else "answer"
    words = command.split()
    if rng.random() < 0.05:
        words[-1] = _misspelt(rng, words[-1])
    if command == "answer" and rng.random() < 0.8:
        words += ["--model", "m"]
        if rng.random() < 0.5:
            words += ["--image", "a.png", "--prompt", "what?"]
        elif rng.random() < 0.5:
            words += ["--rows", str(rng.choice(["rows.jsonl", "odd.jsonl"]))]
    names = list(_options(command))
    for _ in range(rng.integers(0, 5)):
        name = names[rng.integers(len(names))]
        hint = _options(command)[name]
        few = [0, 1] if hint is bool and rng.random() < 0.05 else [0] if hint is bool else [1]
        values = [_value(rng, hint) for _ in range(rng.choice(few))]
        if rng.random() < 0.08:
            values = [_value(rng, hint) for _ in range(rng.integers(0, 4))]
        if rng.random() < 0.03:
            name = _misspelt(rng, name)
        if rng.random() < 0.1:
            name = name.replace("-", "_").replace("__", "--")
        if values and rng.random() < 0.2:
            words.append(f"{name}={values[0]}")
        else:
            words += [name, *values]
    if rng.random() < 0.06:
        words.insert(int(rng.integers(len(words) + 1)), _value(rng))
    return words


def _listed(line: str) -> bool:
    """Whether an option that is said not to be there is in the command's help."""
    command, _, rest = line.removeprefix("resprune: ").partition(" has no option ")
    said = rest.split("'")[1] if rest.count("'") > 1 else ""
    return re.search(f"{re.escape(said)}(?![a-z-])", _help(command)) is not None if said else False


@functools.cache
def _help(command: str) -> str:
    """What a command says of itself."""
    from resprune_jax.experiments import cli

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([*command.split(), "--help"])
    return out.getvalue()


def judge(words: list[str], status: int, said: str) -> None:
    """What a command line may come to: an exit status, and lines that can be read.

    Raises:
        Fault: another status, an unforeseen error, a line that is not fit to be printed.
    """
    lines = said.split("\n")[:-1]
    if status not in (0, 1, 2):
        raise Fault(WRONG, f"status {status} of {words!r}"[:400])
    if status and (not lines or not lines[-1].startswith("resprune: ")):
        raise Fault(WRONG, f"status {status} without a reason of {words!r}"[:400])
    for line in lines:
        if "has no option" in line and _listed(line):
            raise Fault(WRONG, f"an option that the help lists: {line[:300]}")
        if fault := message_fault(line):
            raise Fault(BAD_MESSAGE, f"{fault} in {line[:300]!r}")
        if "unexpected " in line and "Error" in line:
            raise Fault("traceback", f"{line[:300]} of {words!r}"[:600])


def run(seed: int) -> None:
    if seed % 2:
        visit(seed // 2)
    else:
        words = make(seed)
        judge(words, *_said(words))


def _said(words: list[str]) -> tuple[int, str]:
    """The exit status of a command line and its standard error; no wrong call may leave a file."""
    from resprune_jax.experiments import cli

    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(_place())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = cli.main(words)
            except SystemExit as stop:  # the help, the version
                if stop.code not in (0, None):
                    raise
                status = 0
    finally:
        os.chdir(before)
    strays = {path.name for path in _place().iterdir()} - set(_KNOWN)
    for name in strays:
        with contextlib.suppress(OSError):
            (_place() / name).unlink()
    if status == 2 and strays:
        raise Fault(WRONG, f"a wrong call left {sorted(strays)}: {words!r}"[:400])
    return status, err.getvalue() if "--debug" not in words else "resprune: -\n"


# --- option by option -----------------------------------------------------------------------------

_NO_NUMBER = ("x", "", "0x10", "1,5", "\x1b[31m5", "five\n", "y" * LONG, "--", "1 2")
_NOT_FINITE = ("9" * 5000, "nan", "inf", "-inf", "1e400", "-1e400")
_NO_CHOICE = ("fastest", "", "\x1b[2J", "\u202egnp", "a\nb", "z" * LONG, "None?")
_NO_SWITCH = ("=", "=yes", "=\x1b[31m", "=" + "q" * LONG)


@functools.cache
def visits() -> list[tuple[str, str]]:
    """(command, option) of all there are, in the order of the visits."""
    from resprune_jax.experiments import cli

    found = [(command, option) for command in cli.COMMANDS for option in _options(command)]
    return [found[index] for index in np.random.default_rng(1).permutation(len(found))]


def visit(turn: int) -> None:
    """Give one option values that it cannot have, and odd ones."""
    before, index = divmod(turn, len(visits()))
    command, option = visits()[index]
    hint = _options(command)[option]
    parts = [part for part in _parts(hint) if part is not type(None)]
    wrong: tuple[str, ...] = ()
    if hint is bool:
        wrong = _NO_SWITCH
    elif all(isinstance(part, str) for part in parts):
        wrong = _NO_CHOICE
    elif set(parts) <= {int, float}:
        # Only the commands themselves look at what a number is, and all but one are stand-ins.
        wrong = _NO_NUMBER + _NOT_FINITE * (command == "answer" or float not in parts)
    for value in wrong:
        words = [
            *_good(command, option),
            f"{option}{value}" if hint is bool else f"{option}={value}",
        ]
        status, said = _said(words)
        judge(words, status, said)
        if status != 2 or option not in said:
            raise Fault(WRONG, f"status {status} of {words!r}: {said!r}"[:600])
    odd = [_ODD[(3 * (turn + before) + more) % len(_ODD)] for more in range(3)]
    for value in odd:
        words = [*_good(command, option), *([option, value] if hint is not bool else [option])]
        judge(words, *_said(words))


def _good(command: str, option: str) -> list[str]:
    """A right call of a command, without one of its options."""
    from resprune_jax.experiments import cli

    words = command.split()
    good = {"--model": "m", "--image": "a.png", "--prompt": "what?"} if command == "answer" else {}
    own = cli.COMMANDS[command].options
    hints = typing.get_type_hints(own, include_extras=True)
    for field in dataclasses.fields(own):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if tyro.conf.Positional in getattr(hints[field.name], "__metadata__", ()):
                words.append("a.png")
            else:
                good.setdefault(f"--{field.name.replace('_', '-')}", "a.png")
    if option == "--rows":
        good.pop("--image", None)
    for name, value in good.items():
        if name != option:
            words += [name, value]
    return words


_KNOWN = (
    *("a.png", "cut.png", "text.png", "empty.png", "secret.png", "rows.jsonl", "odd.jsonl"),
    *("folder", "loop", "pipe"),
)

FUZZERS = [Fuzzer(NAME, run, cases=500, quick=80, prepare=prepare)]
