"""`resprune tpu-check`: does it fit a TPU? The real compiler's answer, without a TPU.

Models of 7 billion parameters go through the compiler as shapes, sharded over a described topology
(`models.py`); `--selection` compiles the selection engines instead (`selection.py`).
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    check_number,
    console,
    import_models,
    shown,
)
from resprune_jax.experiments.compile_check.compiler import (
    HBM,
    Row,
    chip_of,
    described_devices,
    require_libtpu,
)
from resprune_jax.experiments.compile_check.models import CASES, NEW_TOKENS, TEXT_TOKENS, model_rows
from resprune_jax.experiments.info import bytes_text

TABLE_WIDTH = 144
"""Columns of the table, at least."""

ModelName = Literal["llava-1.5-7b", "qwen2.5-vl-7b"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuCheckOptions:
    """Compile 7B models for TPU without one, and show the memory that each chip would need."""

    model: Annotated[tuple[ModelName, ...], shown("{llava-1.5-7b,qwen2.5-vl-7b} ...", "both")] = (
        "llava-1.5-7b",
        "qwen2.5-vl-7b",
    )
    """Models, in bfloat16."""
    topology: Annotated[str, shown("CHIP:GRID", "v5e:2x2")] = "v5e:2x2"
    """Chips that a model is sharded over."""
    chips: Annotated[int | None, shown("COUNT", "all")] = None
    """How many chips of the topology."""
    batch: Annotated[tuple[int, ...], shown("ROWS ...", "1 8")] = (1, 8)
    """Prompts in a batch, each about an image of its own."""
    selection: bool = False
    """Compile the selection engines in place of models, each for one chip of the topology."""
    json: bool = False
    """Print JSON in place of a table."""
    debug: bool = False
    """Show the traceback when something fails."""


def check(options: TpuCheckOptions) -> None:
    """Refuse what cannot work before libtpu is started.

    Raises:
        CallError: an option that cannot work, or no libtpu.
    """
    chip_of(options.topology)
    if not options.model or not options.batch:
        raise CallError("give at least one --model and one --batch")
    for size in options.batch:
        check_number("--batch", size, 1)
    if options.chips is not None:
        check_number("--chips", options.chips, 1)
    if options.selection and options.chips is not None:
        raise CallError("--selection compiles for one chip: leave out --chips")
    require_libtpu()


def rows_of(options: TpuCheckOptions) -> Iterator[Row]:
    """The rows that the options ask for, each as soon as it is compiled."""
    if options.selection:
        from resprune_jax.experiments.compile_check import selection as tpu_selection

        yield from tpu_selection.rows(options.topology)
        return
    devices = described_devices(options.topology)
    count = len(devices) if options.chips is None else options.chips
    if count > len(devices):
        raise CallError(f"--chips is {count}, but {options.topology} has {len(devices)}")

    import numpy as np
    from jax.sharding import AxisType, Mesh

    from resprune_jax.models.families.registry import read_model_config

    grid = np.array(devices[:count]).reshape(1, count)
    mesh = Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
    for name in options.model:
        case = CASES[name]
        for batch in options.batch:
            yield from model_rows(
                name, read_model_config(case.hf), mesh, size=case.size, keep=case.keep,
                batch=batch, limit=HBM[chip_of(options.topology)],
            )  # fmt: skip


def run(options: TpuCheckOptions) -> int:
    """Carry out `resprune tpu-check`.

    Args:
        options: the command's options.

    Returns:
        0 if every program fits and decode updates its cache in place, else 1.

    Raises:
        CallError: an option that cannot work, or no libtpu.
        RunError: libtpu cannot start.
    """
    check(options)
    import_models()
    rows = []
    for row in rows_of(options):
        rows.append(row)
        sizes = ", ".join(f"{key} {value}" for key, value in row.setting.items() if value)
        print(
            f"{row.name} {row.program} ({sizes}): {row.verdict}, compiled in "
            f"{row.compiled.seconds:.0f} s",
            file=sys.stderr,
        )
    if options.json:
        print(json.dumps(report(options, rows), indent=2))
    else:
        print_rows(rows)
    return 0 if all(row.passed for row in rows) else 1


def report(options: TpuCheckOptions, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures as `--json` prints them."""
    import jax

    about: dict[str, Any] = {
        "jax": jax.__version__,
        "libtpu": require_libtpu(),
        "topology": options.topology,
    }
    if not options.selection:
        about |= {
            "chips": options.chips,
            "dtype": "bfloat16",
            "text_tokens": TEXT_TOKENS,
            "new_tokens": NEW_TOKENS,
        }
    return about | {"rows": [row.facts() for row in rows]}


def print_rows(rows: Sequence[Row]) -> None:
    """Print the rows as a table, sizes per chip."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    table.add_column("program", no_wrap=True)
    for head in rows[0].setting:
        table.add_column(head.replace("_", " "), justify="right")
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
        table.add_row(row.name, row.program, *shown, *sizes, row.verdict)
    screen = console()
    # Wider than an 80-column screen if need be: a line that wraps says more than one cut off.
    screen.width = max(screen.width, TABLE_WIDTH)
    screen.print(table)
