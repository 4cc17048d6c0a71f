"""What `resprune tpu-check` and `resprune gpu-check` share: rows compiled one by one, and shown.

Models of 7 billion parameters go through the compiler as shapes (`models.py`); `--selection`
compiles the selection engines instead (`selection.py`).
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import check_number, console, import_models, shown
from resprune_jax.experiments.compile_check.cases import CASES
from resprune_jax.experiments.compile_check.models import NEW_TOKENS, TEXT_TOKENS, case_rows
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.selection import selection_rows
from resprune_jax.experiments.compile_check.target import Target
from resprune_jax.experiments.info import bytes_text

TABLE_WIDTH = 210
"""Columns of the table, at least."""

ModelName = Literal[
    "llava-1.5-7b", "qwen2.5-vl-7b", "qwen2-vl-7b", "llava-next-7b", "llava-onevision-7b"
]

ProgramName = Literal["encode", "assemble", "prefill", "decode", "prune"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Compile 7B models for devices that are not there."""

    model: Annotated[
        tuple[ModelName, ...],
        shown("NAME ...", "llava-1.5-7b qwen2.5-vl-7b"),
    ] = ("llava-1.5-7b", "qwen2.5-vl-7b")
    """Models, in bfloat16: llava-1.5-7b, llava-next-7b, llava-onevision-7b, qwen2-vl-7b or
    qwen2.5-vl-7b."""
    batch: Annotated[tuple[int, ...], shown("ROWS ...", "1")] = (1,)
    """Prompts in a batch, each about an image of its own."""
    programs: Annotated[tuple[ProgramName, ...], shown("NAME ...", "all")] = ()
    """Show these programs alone: encode, assemble, prefill, decode or prune. What they get from
    others is compiled for them all the same."""
    selection: bool = False
    """Compile the selection engines in place of models, each for one device."""
    json: bool = False
    """Print JSON in place of a table."""
    debug: bool = False
    """Show the traceback when something fails."""


def check(options: CheckOptions) -> None:
    """Refuse what cannot work before a compiler is started.

    Raises:
        CallError: an option that cannot work.
    """
    if not options.model or not options.batch:
        raise CallError("give at least one --model and one --batch")
    for size in options.batch:
        check_number("--batch", size, 1)


def rows_of(options: CheckOptions, target: Target) -> Iterator[Row]:
    """The rows that the options ask for, each as soon as it is compiled."""
    if options.selection:
        yield from selection_rows(target)
        return
    for name in options.model:
        for batch in options.batch:
            yield from case_rows(name, CASES[name], target, batch, options.programs)


def carry_out(options: CheckOptions, targets: Mapping[str, Target], about: dict[str, Any]) -> int:
    """Compile for every target, and print what came out.

    Args:
        options: the command's options, checked.
        targets: what to compile for, and how to head the table of each ("" for the only one).
        about: what JSON says of all of them.

    Returns:
        0 if every program fits and decode updates its cache in place, else 1.

    Raises:
        CallError: an option that cannot work, or no compiler.
        RunError: a compiler that cannot start.
    """
    if "jax" not in sys.modules:  # the compiler alone: a device of this machine stays free
        os.environ["JAX_PLATFORMS"] = "cpu"
    import_models()
    made: dict[str, list[Row]] = {}
    for head, target in targets.items():
        made[head] = []
        for row in rows_of(options, target):
            made[head].append(row)
            print(f"{head}{': ' if head else ''}{progress(row)}", file=sys.stderr)
    if options.json:
        print(json.dumps(report(options, targets, made, about), indent=2))
    else:
        for head, rows in made.items():
            print_rows(rows, head)
    return 0 if all(row.passed for rows in made.values() for row in rows) else 1


def progress(row: Row) -> str:
    """A row in a line, as it is compiled."""
    sizes = ", ".join(f"{key} {value}" for key, value in row.setting.items() if value)
    said = "".join(f", {key} {value}" for key, value in row.figures.columns.items() if value)
    return (
        f"{row.name} {row.program} ({sizes}): {row.verdict}{said}, compiled in "
        f"{row.compiled.seconds:.0f} s"
    )


def report(
    options: CheckOptions,
    targets: Mapping[str, Target],
    made: Mapping[str, Sequence[Row]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """The figures as `--json` prints them; rows name their target where there may be several."""
    import jax

    told: dict[str, Any] = {"jax": jax.__version__, **about}
    if not options.selection:
        told |= {"dtype": "bfloat16", "text_tokens": TEXT_TOKENS, "new_tokens": NEW_TOKENS}
    rows = [dict(targets[head].label) | row.facts() for head, rows in made.items() for row in rows]
    return told | {"rows": rows}


def print_rows(rows: Sequence[Row], title: str = "") -> None:
    """Print the rows as a table, sizes per device."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("program", no_wrap=True)
    for head in rows[0].setting:
        table.add_column(head.replace("_", " "), justify="right")
    read = list(dict.fromkeys(head for row in rows for head in row.figures.columns))
    for head in read:
        table.add_column(head, justify="right")
    heads = ("arguments", "outputs", "temporary", "aliased", "code", "in all")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict")
    for row in rows:
        memory = row.compiled.memory
        sizes = [""] * len(heads)
        if memory is not None and row.total is not None:
            parts = (*dataclasses.astuple(memory), row.total)
            sizes = [bytes_text(part) if part else "0" for part in parts]
        shown = [str(value) if value else "" for value in row.setting.values()]
        shown += [row.figures.columns.get(head, "") for head in read]
        table.add_row(row.name, row.program, *shown, *sizes, row.verdict)
    screen = console()
    # Wider than an 80-column screen if need be: a line that wraps says more than one cut off.
    screen.width = max(screen.width, TABLE_WIDTH)
    screen.print(table)
