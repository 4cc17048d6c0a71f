"""`resprune bench selection`: what choosing the tokens costs, against torch, in one process.

Every row is a size, a batch and a dtype; its sides take turns. Rows are written to the JSON file as
soon as they are measured, so that a run that was stopped goes on with --resume.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.errors import CallError
from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.fit import fit_all, growth_sizes
from resprune_jax.experiments.bench.problems import (
    QUESTIONS,
    QUICK_SIZES,
    SIZES,
    parse_size,
)
from resprune_jax.experiments.bench.rows import Row, TokenDType, measure
from resprune_jax.experiments.bench.timing import leave_memory_to_torch, machine, note, speeds
from resprune_jax.experiments.common import (
    check_number,
    check_target,
    import_models,
    make_folder,
    shown,
)

VERSION = 1
"""Of the JSON file's layout."""

QUICK_REPEATS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Measure what choosing the tokens costs: every engine, and torch's Algorithm 1 beside them."""

    sizes: Annotated[tuple[str, ...], shown("N,d,K ...", "the sizes of the supported models")] = ()
    """Visual tokens, their width, and how many are kept."""
    batch: Annotated[tuple[int, ...], shown("B ...", "1 8 32")] = (1, 8, 32)
    """Images that are chosen from together."""
    dtype: Annotated[tuple[TokenDType, ...], shown("{float32,bfloat16} ...", "both")] = (
        "float32",
        "bfloat16",
    )
    """Number formats of the tokens."""
    engines: Annotated[tuple[str, ...], shown("NAME ...", "all that are registered")] = ()
    """Engines to measure."""
    repeats: Annotated[int, shown("N", "20")] = 20
    """Rounds of a row; fewer where they would take more than 30 seconds."""
    limit: Annotated[float, shown("SECONDS", "60")] = 60.0
    """Leave out what would take longer than this a call."""
    quick: bool = False
    """Two sizes, one image, float32, five rounds: about four minutes of CPU time, most of it
    compiling; with --without-compile under two."""
    growth: bool = False
    """Also vary N, d, K and the batch one at a time, and fit how the time grows with them."""
    without_torch: bool = False
    """Leave torch out."""
    without_compile: bool = False
    """Leave torch.compile out, which needs a C++ compiler and takes its time."""
    without_questions: bool = False
    """Leave out the row of eight questions about one image."""
    resume: bool = False
    """Keep the rows that the JSON file holds already."""
    out: Annotated[Path, shown("DIR", "bench")] = Path("bench")
    """Folder for selection.json, selection.md and selection.png; made if missing."""
    debug: bool = False
    """Show the traceback when something fails."""


def plan_rows(options: SelectionOptions) -> list[Row]:
    """The rows that the options ask for, the most asked about first.

    Raises:
        CallError: an option that cannot work.
    """
    if not options.batch or not options.dtype:
        raise CallError("give at least one --batch and one --dtype")
    for count in options.batch:
        check_number("--batch", count, 1)
    check_number("--repeats", options.repeats, 1)
    check_number("--limit", options.limit, 0, above=True)
    sizes = tuple(map(parse_size, options.sizes)) or (QUICK_SIZES if options.quick else SIZES)
    batches = options.batch[:1] if options.quick else options.batch
    dtypes = options.dtype[:1] if options.quick else options.dtype
    rows = [Row(size, batch, dtype) for batch in batches for dtype in dtypes for size in sizes]
    if not options.without_questions:
        rows[1:1] = [Row(sizes[0], 1, dtype, QUESTIONS) for dtype in dtypes]
    if options.growth:
        rows += [Row(size, batch, dtypes[0]) for size, batch in growth_sizes(sizes[0])]
    return list(dict.fromkeys(rows))


def run(options: SelectionOptions) -> int:
    """Carry out `resprune bench selection`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a measurement in which something was compiled.
    """
    import_models()
    from resprune_jax.experiments.bench import report as bench_report
    from resprune_jax.experiments.bench.markdown import selection_markdown

    rows = plan_rows(options)
    make_folder(options.out, "--out")
    path, picture = options.out / "selection.json", options.out / "selection.png"
    for target in (path, picture):
        check_target(target, "--out")
    leave_memory_to_torch()
    about = machine()
    unknown = set(options.engines) - set(bench_engines.engine_names())
    if unknown:
        known = ", ".join(bench_engines.engine_names())
        raise CallError(f"--engines {min(unknown)!r} is no engine: there are {known}")
    report = start(path, about, "selection", options.resume)
    torch_missing = (
        bench_torch.why_not(about["platform"]) if not options.without_torch else "left out"
    )
    report["torch"] = torch_missing
    if torch_missing:
        note(f"torch rows: {torch_missing}")
    repeats = min(options.repeats, QUICK_REPEATS) if options.quick else options.repeats
    for row in rows:
        if row.name in report["rows"]:
            note(f"{row.name}: kept")
            continue
        note(f"{row.name} ...")
        found = measure(
            row, names=options.engines or bench_engines.engine_names(), repeats=repeats,
            limit=options.limit, speed=report["speeds"], torch_missing=torch_missing,
            torch_compile=not options.without_compile,
        )  # fmt: skip
        report["rows"][row.name] = found
        write(path, report)
        bench_report.print_row(row.name, found)
    report["fits"] = fit_all(report["rows"])
    write(path, report)
    bench_report.print_summary(report)
    bench_report.print_fits(report["fits"])
    bench_report.draw(report, picture)
    words = options.out / "selection.md"
    words.write_text(selection_markdown(report), encoding="utf-8")
    note(f"written: {path}, {words}, {picture}")
    return 0


def start(path: Path, about: dict[str, Any], kind: str, resume: bool) -> dict[str, Any]:
    """A new report, or the one of an earlier run on this machine.

    Args:
        path: of the JSON file.
        about: the machine.
        kind: of the report.
        resume: go on with what the file holds.

    Raises:
        CallError: a file to resume from that was measured elsewhere, or is none of ours.
    """
    fresh = {"kind": kind, "version": VERSION, "machine": about, "rows": {}}
    if resume and path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            stamp = [old[key] for key in ("kind", "version", "machine")]
        except (ValueError, KeyError, TypeError):
            raise CallError(f"--resume: {path} is no report of this command") from None
        if stamp != [kind, VERSION, about]:
            raise CallError(f"--resume: {path} was measured on another machine or version")
        return old
    note("measuring the machine")
    return fresh | {"speeds": speeds()}


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report whole, or not at all."""
    spare = path.with_suffix(".partial")
    spare.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    spare.replace(path)
