"""`resprune bench selection`: what choosing the tokens costs, against torch, in one process.

Every row is a size, a batch and a dtype; its sides take turns. Rows are written to the JSON file as
soon as they are measured, so that a run that was stopped goes on with --resume.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.choices import TokenDType
from resprune_jax.errors import CallError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench import files
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.budget import OUT_OF_TIME, Budget
from resprune_jax.experiments.bench.fit import fit_all, growth_sizes
from resprune_jax.experiments.bench.problems import (
    QUESTIONS,
    QUICK_SIZES,
    SIZES,
    parse_size,
)
from resprune_jax.experiments.bench.rows import Row, measure
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
    torch_limit: Annotated[float, shown("SECONDS", "10")] = 10.0
    """Leave torch out of rows of more than 4,000 tokens or so where its calls would take longer
    than this in all: foretold from its time at smaller sizes."""
    minutes: Annotated[float | None, shown("M", "as long as it takes")] = None
    """Begin no row that would end after so many minutes."""
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
    check_number("--torch-limit", options.torch_limit, 0)
    if options.minutes is not None:
        check_number("--minutes", options.minutes, 0, above=True)
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
    budget = Budget(options.minutes)
    import_models()
    from resprune_jax.experiments.bench import report as bench_report

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
    report = files.start(path, about, "selection", VERSION, options.resume, speeds)
    torch_missing = (
        bench_torch.why_not(about["platform"]) if not options.without_torch else "left out"
    )
    report["torch"] = torch_missing
    if torch_missing:
        note(f"torch rows: {torch_missing}")
    repeats = min(options.repeats, QUICK_REPEATS) if options.quick else options.repeats
    report["not_measured"] = {
        row.name: "not reached" for row in rows if row.name not in report["rows"]
    }
    try:
        write(path, report)
        for row in rows:
            if row.name in report["rows"]:
                note(f"{row.name}: kept")
                continue
            kind = str(row.size.n)
            if not budget.allows(kind):
                report["not_measured"][row.name] = OUT_OF_TIME
                continue
            note(f"{row.name} ...")
            begun = time.perf_counter()
            found = measure(
                row, names=options.engines or bench_engines.engine_names(), repeats=repeats,
                limit=options.limit, speed=report["speeds"], torch_missing=torch_missing,
                torch_compile=not options.without_compile, torch_limit=options.torch_limit,
            )  # fmt: skip
            budget.took(kind, time.perf_counter() - begun)
            report["rows"][row.name] = found
            del report["not_measured"][row.name]
            write(path, report)
            bench_report.print_row(row.name, found)
    except KeyboardInterrupt:
        left = dict.fromkeys(report["not_measured"], "not measured (stopped)")
        report["not_measured"] = left
        write(path, report)
        raise
    report["fits"] = fit_all(report["rows"])
    write(path, report)
    bench_report.print_summary(report)
    bench_report.print_fits(report["fits"])
    bench_report.draw(report, picture)
    note(f"written: {path}, {path.with_suffix('.md')}, {picture}")
    return 0


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the JSON and the Markdown file anew, each whole or not at all."""
    from resprune_jax.experiments.bench.markdown import selection_markdown

    with stopping.whole():  # a signal that came is heard behind both
        files.write(path, report)
        files.write_text(path.with_suffix(".md"), selection_markdown(report))
