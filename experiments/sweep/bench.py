"""`resprune bench sweep`: a grid as a sweep, beside a call of `generate` for each configuration.

Three times for the same rows: `generate` for every configuration at its best batch size, its images
encoded once; the sweep; and its floor, prefilling and decoding the distinct keep lists alone.
Nothing compiles in any of them.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.common import (
    Checkpoint,
    check_number,
    check_target,
    console,
    shown,
    use_compilation_cache,
)
from resprune_jax.experiments.progress import progress
from resprune_jax.experiments.sweep.grid import Configuration, Grid, configurations

GRID = Grid(
    methods=("resprune",),
    alpha=(0.25, 0.5, 0.75, 1.0, 1.25),
    aggregate=("max", "mean", "pooled"),
    seed_rule=("cls_attention", "max_norm", "text", "mean_similarity", "center"),
)
"""Tables V, VI and VII crossed: 75 configurations at the paper's three budgets."""

BATCHES = (8, 16, 32, 64, 128)
"""Batch sizes of `generate` of which the best is taken."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepBenchOptions:
    """Measure a sweep of 75 configurations at three budgets beside answering each on its own."""

    model: Checkpoint = "pocket"
    """Checkpoint folder, Hub id, or pocket."""
    data: Annotated[str, shown("NAME_OR_PATH", None)] = "pocket:validation"
    """The data set."""
    examples: Annotated[int, shown("N", None)] = 300
    """Questions, the first ones."""
    alone: Annotated[int, shown("N", None)] = 15
    """Configurations that are answered on their own, evenly over the grid; the time of all is that
    of these in proportion. 225 measures every one."""
    block: Annotated[int, shown("N", None)] = 60
    """Examples of a block of the sweep."""
    batch: Annotated[int, shown("N", None)] = 64
    """Rows that the sweep answers together."""
    output: Annotated[Path | None, shown("OUT.json", "none")] = None
    """Write the figures to this file."""
    debug: bool = False
    """Show the traceback when something fails."""


def run(options: SweepBenchOptions) -> int:
    """Carry out `resprune bench sweep`.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a measurement in which something was compiled, or rows that failed.
    """
    check_number("--examples", options.examples, 1, 10**6)
    check_number("--alone", options.alone, 1, 10**4)
    check_number("--block", options.block, 1, 10**5)
    check_number("--batch", options.batch, 8, 10**5)
    if options.batch % 8:
        raise CallError(f"--batch {options.batch}: give a multiple of 8")
    if options.output is not None:
        check_target(options.output, "--output", (".json",))
    use_compilation_cache()
    figures = measure(options)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    from rich.table import Table

    table = Table(box=None)
    for head in ("", "seconds", "ms a row", "times the floor"):
        table.add_column(head)
    for name, seconds in figures["seconds"].items():
        table.add_row(
            name, f"{seconds:.1f}", f"{1e3 * seconds / figures['rows']:.2f}",
            f"{seconds / figures['seconds']['floor']:.2f}",
        )  # fmt: skip
    out = console()
    out.print(
        f"{figures['configurations']} configurations x {figures['examples']} examples ="
        f" {figures['rows']} rows, {figures['distinct']} distinct keep lists; generate measured on"
        f" {figures['alone']} configurations, batches of {figures['best_batch']}",
        markup=False,
    )
    out.print(table)
    out.print(f"the sweep is {figures['times_faster']:.1f} times as fast", markup=False)
    return 0


def measure(options: SweepBenchOptions) -> dict[str, Any]:
    """The three times, as plain data."""
    from resprune_jax.experiments.bench.timing import machine
    from resprune_jax.experiments.data.examples import open_dataset
    from resprune_jax.experiments.sweep.engine import Engine
    from resprune_jax.models.load import load_model
    from resprune_jax.models.prompts.options import CallOptions
    from resprune_jax.models.running.compiling import compiling

    lvlm = load_model(options.model, dtype="float32")
    data = open_dataset(options.data, options.examples)
    chosen = configurations([GRID])
    call = CallOptions(max_new_tokens=6 if options.model == "pocket" else None)
    engine = Engine(lvlm, data, chosen, call, size=options.block, batch=options.batch)
    for block in range(engine.blocks):  # compiles
        engine.run(block)
    with progress("blocks", engine.blocks) as step, compiling() as compiled:
        begin = time.perf_counter()
        rows, distinct, floor = [], 0, 0.0
        for block in range(engine.blocks):
            made, asked = engine.timed(block)
            rows += made
            distinct += len({(r["example"], r["distinct"]) for r in made})
            floor += asked
            step()
        whole = time.perf_counter() - begin
    _check("the sweep", compiled.seconds, rows)
    some = [chosen[round(n)] for n in _evenly(len(chosen), min(options.alone, len(chosen)))]
    single, batch, answers = _alone(lvlm, data.examples, data, some, call)
    by_key = {(row["configuration"], row["example"]): row["answer"] for row in rows}
    same = [by_key[key] == text for key, text in answers.items()]
    return {
        "machine": machine(),
        "configurations": len(chosen),
        "examples": len(data.examples),
        "rows": len(rows),
        "distinct": distinct,
        "alone": len(some),
        "best_batch": batch,
        "equal_answers": sum(same) / len(same),
        "seconds": {
            "generate, each configuration": single * len(chosen) / len(some),
            "sweep": whole,
            "floor": floor,
        },
        "times_faster": single * len(chosen) / len(some) / whole,
    }


def _evenly(many: int, few: int) -> list[float]:
    return [n * (many - 1) / max(1, few - 1) for n in range(few)]


def _check(what: str, compiled: float, rows: Sequence[dict[str, Any]]) -> None:
    if compiled > 0:
        raise RunError(f"{what} compiled for {compiled:.1f} s inside its measurement")
    if failed := [row["error"] for row in rows if row["error"] is not None]:
        raise RunError(f"{len(failed)} rows of {what} failed: {failed[0]}")


def _alone(
    lvlm: Any, examples: Sequence[Any], data: Any, some: Sequence[Configuration], call: Any
) -> tuple[float, int, dict[tuple[str, str], str]]:
    """Seconds for some configurations by `generate`, the best batch size, and the answers."""
    from resprune_jax.models.running.compiling import compiling

    encoded: dict[int, list[Any]] = {}

    def batches(size: int) -> list[Any]:
        """Every batch's images encoded, before anything is timed."""
        if size not in encoded:
            made = []
            for at in range(0, len(examples), size):
                own = list(examples[at : at + size])
                own += own[:1] * (size - len(own))
                made.append((lvlm.encode([data.pictures(one)[0] for one in own]), own))
            encoded[size] = made
        return encoded[size]

    def answered(one: Configuration, size: int) -> tuple[float, list[str]]:
        own = dataclasses.replace(one.options(), max_new_tokens=call.max_new_tokens)
        made = batches(size)
        begin = time.perf_counter()
        texts: list[str] = []
        for images, asked in made:
            texts += lvlm.generate(images, [each.question for each in asked], options=own).texts
        return time.perf_counter() - begin, texts[: len(examples)]

    def trial(size: int) -> float:
        for one in (some[0], some[-1]):
            answered(one, size)  # compiles
        return min(sum(answered(one, size)[0] for one in (some[0], some[-1])) for _ in range(2))

    sizes = [size for size in BATCHES if size <= len(examples)] or [BATCHES[0]]
    best = min(sizes, key=trial)
    for one in some:
        answered(one, best)
    seconds = 0.0
    found = {}
    with compiling() as compiled:
        for one in some:
            spent, texts = answered(one, best)
            seconds += spent
            for each, text in zip(examples, texts, strict=True):
                found[one.name, each.key] = text
    _check("generate", compiled.seconds, [])
    return seconds, best, found
