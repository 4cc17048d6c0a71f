"""The page of the command line, made of what the commands say of themselves.

    python -m docs.tools.command_line > docs/reference/command_line.md

A test compares the page with what this prints.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from unittest import mock

from resprune_jax.experiments import cli

_HEAD = """\
# Command line

Written by `python -m docs.tools.command_line` from the commands' own help; a test compares.

`resprune COMMAND --help` prints the same, `resprune --version` the versions. Exit status 0: done.
1: a right call that failed, or rows that failed. 2: a wrong call. 130 and 143: Ctrl-C or SIGTERM
ended the run, at the next batch at the latest. Each failure is one line; `--debug` adds the
traceback. A value written NAME ... may be several, one behind the other.
"""


def asked(words: list[str]) -> str:
    """What a command prints for --help, each option's text in one line."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # else the boxes are drawn in ASCII
    with (
        mock.patch.dict(os.environ, COLUMNS="5000", NO_COLOR="1"),
        contextlib.redirect_stdout(said),
    ):
        try:
            cli.main([*words, "--help"])
        except SystemExit as stop:
            assert stop.code in (0, None), words
    said.seek(0)
    return said.read()


def boxes(text: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, (option, its text) each) of a help's boxes."""
    for title, body in re.findall(r"^╭─ (.+?) ─+╮\n(.*?)^╰─+╯", text, re.MULTILINE | re.DOTALL):
        found: list[tuple[str, str]] = []
        for line in body.splitlines():
            inside = line.removeprefix("│ ").removesuffix("│").rstrip()
            if inside.startswith("─"):
                continue
            option, _, about = re.sub(r" {2,}", "\0", inside, count=1).partition("\0")
            if inside.startswith(" ") or not option:
                name, before = found[-1]
                found[-1] = name, f"{before} {inside.strip()}".strip()
            else:
                found.append((option, about.strip()))
        yield title, found


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>\[\]])", r"\\\1", text)


def section(name: str) -> str:
    """One command: what it does and a table of its options."""
    text = asked(name.split())
    about = text.split("\n\n")[1].strip()
    lines = [f"## resprune {name}", "", _escaped(re.sub(r"\s+", " ", about)), ""]
    lines += ["| option | |", "|---|---|"]
    for _, options in boxes(text):
        for option, said in options:
            if not option.startswith("-h"):
                shown = option.replace("|", "\\|")
                lines.append(f"| `{shown}` | {_escaped(said)} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page, as Markdown."""
    return "\n\n".join([_HEAD.strip(), *map(section, cli.COMMANDS)]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
