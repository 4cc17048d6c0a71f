"""`resprune bench generate`: from the picture to the last token, full and pruned, choice included.

Random weights: the words are noise, the work is that of real weights. On a GPU or TPU the shapes
are those of LLaVA-1.5-7B in bfloat16, on a CPU those of a small model. The lines are measured in
the order of interest, and the files are written anew behind each of them: a run that ends early,
by its time budget or by a signal, leaves what it measured.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.bench import files
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.budget import OUT_OF_TIME, Budget
from resprune_jax.experiments.bench.engines import one_line
from resprune_jax.experiments.bench.generation.plan import Line, Way, plan_groups
from resprune_jax.experiments.bench.timing import leave_memory_to_torch, machine, note, speeds
from resprune_jax.experiments.common import (
    check_number,
    check_target,
    import_models,
    make_folder,
    shown,
)

ModelName = Literal["small", "llava-1.5-7b"]

VERSION = 2
"""Of the JSON file's layout."""
ROUND_SECONDS = 40.0
"""No round of a group begins after so many."""
HURRY = 8
"""With a time budget, rounds take at most this part of what is left."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Measure whole answers with random weights: full against pruned, selection included."""

    model: Annotated[
        ModelName | None, shown("{small,llava-1.5-7b}", "small on a CPU, else llava-1.5-7b")
    ] = None
    """Shapes of the model."""
    keep: Annotated[tuple[int, ...], shown("COUNT ...", "192 128 64")] = (192, 128, 64)
    """Visual tokens to keep, each set against the full model."""
    batch: Annotated[tuple[int, ...], shown("B ...", "1 8 32")] = (1, 8, 32)
    """Prompts in a batch, each about an image of its own."""
    new_tokens: Annotated[int, shown("N", "32")] = 32
    """Tokens of an answer."""
    repeats: Annotated[int, shown("N", "10")] = 10
    """Rounds of a batch; fewer where they would take more than 40 seconds."""
    minutes: Annotated[float | None, shown("M", "as long as it takes")] = None
    """Begin no line that would end after so many minutes; the full model and one budget of every
    batch then come before the other budgets."""
    quick: bool = False
    """One image, 128 tokens, three rounds."""
    without_torch: bool = False
    """Leave transformers out."""
    without_compile: bool = False
    """Leave torch.compile out, which needs a C++ compiler and takes its time."""
    resume: bool = False
    """Keep the lines that the JSON file holds already."""
    out: Annotated[Path, shown("DIR", "bench")] = Path("bench")
    """Folder for generate.json, generate.md and generate.png; made if missing."""
    debug: bool = False
    """Show the traceback when something fails."""


def check(options: GenerateOptions) -> None:
    """Refuse what cannot work before a model is made.

    Raises:
        CallError: an option that cannot work.
    """
    if not options.keep or not options.batch:
        raise CallError("give at least one --keep and one --batch")
    for name, counts in (("--keep", options.keep), ("--batch", options.batch)):
        for count in counts:
            check_number(name, count, 1)
    check_number("--new-tokens", options.new_tokens, 2)
    check_number("--repeats", options.repeats, 1)
    if options.minutes is not None:
        check_number("--minutes", options.minutes, 0, above=True)
    make_folder(options.out, "--out")
    for name in ("generate.json", "generate.md", "generate.png"):
        check_target(options.out / name, "--out")


def run(options: GenerateOptions) -> int:
    """Carry out `resprune bench generate`.

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
    from resprune_jax.experiments.bench.generation import model as bench_model
    from resprune_jax.experiments.bench.generation import report as bench_report
    from resprune_jax.experiments.bench.generation.columns import count_parameters, model_work
    from resprune_jax.experiments.bench.generation.measuring import Bench
    from resprune_jax.models.families.registry import read_model_config

    check(options)
    leave_memory_to_torch()
    about = machine()
    name = options.model or ("small" if about["platform"] == "cpu" else "llava-1.5-7b")
    hf, dtype = bench_model.model_config(name)
    config: Any = read_model_config(hf)
    total = config.num_visual_tokens
    if worst := [count for count in options.keep if count >= total]:
        raise CallError(f"--keep {worst[0]}: the model has {total} visual tokens; keep fewer")
    path = options.out / "generate.json"
    report = files.start(path, about, "generate", VERSION, options.resume, speeds)
    model = {
        "name": name, "dtype": dtype, "visual_tokens": total,
        "parameters": count_parameters(config, dtype), "work": model_work(config, dtype).facts(),
    }  # fmt: skip
    check_same(report, model, options.new_tokens)
    report["model"] = model
    theirs = opponents(options, about["platform"], dtype, report)
    keep = options.keep if not options.quick else (128,) if total > 128 else options.keep[:1]
    groups = plan_groups(
        options.batch[:1] if options.quick else options.batch, keep, theirs,
        hurried=options.minutes is not None,
    )  # fmt: skip
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    bench = Bench(hf, config, dtype, options.new_tokens, same_weights=name == "small")
    run = Run(bench, report, options.out, budget, repeats, hurried=options.minutes is not None)
    with contextlib.ExitStack() as stack:
        if "compiled" in theirs:
            from resprune_jax.experiments.bench.generation.hf import compiling

            stack.enter_context(compiling())
        run.measure(groups)
    bench_report.print_end(report)
    bench_report.draw(report, options.out / "generate.png")
    note("written: " + ", ".join(str(path.with_suffix(end)) for end in (".json", ".md", ".png")))
    return 0


def check_same(report: dict[str, Any], model: dict[str, Any], new_tokens: int) -> None:
    """Refuse to go on with a report of another model or of answers of another length.

    Raises:
        CallError: it is one.
    """
    if report.get("model", model) != model:
        raise CallError(f"--resume: the file is about another model than {model['name']}")
    for name, row in report["rows"].items():
        if row["new_tokens"] != new_tokens:
            raise CallError(
                f"--resume: {name} was measured with --new-tokens {row['new_tokens']}, not"
                f" {new_tokens}: give the same number"
            )


def opponents(
    options: GenerateOptions, platform: str, dtype: str, report: dict[str, Any]
) -> list[Way]:  # fmt: skip
    """The ways through transformers' model that this machine can take, the best ones first.

    Args:
        options: the command's options.
        platform: JAX's backend.
        dtype: of the weights.
        report: is told in "torch" and "left_out" what cannot take part, and why.
    """
    missing = bench_torch.why_not(platform) if not options.without_torch else "left out"
    report["torch"], report["left_out"] = missing, {}
    if missing:
        note(f"transformers: {missing}")
        return []
    from resprune_jax.experiments.bench.generation import hf

    ways: list[Way] = ["eager"]
    if options.without_compile:
        report["left_out"]["compiled"] = "--without-compile"
    else:
        ways.insert(0, "compiled")
    if why := hf.no_flash(bench_torch.device_of(platform), dtype):
        report["left_out"]["flash"] = why
    else:
        ways.append("flash")
    return ways


class Run:
    """Lines one behind the other, and the files that are written behind each."""

    def __init__(
        self, bench: Any, report: dict[str, Any], out: Path, budget: Budget, repeats: int, *,
        hurried: bool,
    ) -> None:  # fmt: skip
        """Lay out a run.

        Args:
            bench: measures a line.
            report: as the JSON file holds it; grows.
            out: folder of the files.
            budget: of time.
            repeats: rounds of a group.
            hurried: rounds leave most of the time to the lines that follow.
        """
        self.bench, self.report, self.out = bench, report, out
        self.budget, self.repeats, self.hurried = budget, repeats, hurried

    def measure(self, groups: list[list[Line]]) -> None:
        """Measure every group; whatever ends it, the files hold what was measured."""
        from resprune_jax.experiments.bench.generation import report as bench_report

        for group in groups:
            for line in group:
                if self._entry(line) is None:
                    self._put_off(line, "not reached")
        try:
            self.save()
            for group in groups:
                if self._group(group):
                    bench_report.print_row(group[0].row, self.report["rows"][group[0].row])
        except KeyboardInterrupt:
            self._ended("not measured (stopped)")
            raise
        except Exception:
            self._ended("not measured (the run failed)")
            raise

    def _group(self, group: list[Line]) -> bool:
        """First figures of every line, then all of them in turn; whether any was measured."""
        from resprune_jax.experiments.bench.generation.measuring import UnmeasuredError

        measured = False
        for line in group:
            if self._entry(line) is not None:
                note(f"{line.name}: kept")
                continue
            if not self.budget.allows(line.way):
                self._put_off(line, OUT_OF_TIME)
                continue
            note(f"{line.name} ...")
            try:
                entry = self.bench.look(line)
            except UnmeasuredError as why:
                note(f"{line.name}: {why}")
                self._put_off(line, str(why))
            else:
                measured = True
                self._keep(line, entry)
                self.budget.took(line.way, self.bench.took)
            self.save()
        seconds = min(ROUND_SECONDS, self.budget.left / (HURRY if self.hurried else 1))
        try:
            found = self.bench.rounds(group, self.repeats, seconds)
        except RunError:
            raise
        except Exception as error:  # together they may need more memory than each by itself
            found = {}
            self._row(group[0])["notes"].append(f"no rounds in turn: {one_line(error)}")
        for line, ms in found.items():
            entry = self._entry(line)
            entry["ms"], entry["in_turn"] = ms, True
        self._compare_tokens(group)
        self.bench.release()
        self.save()
        return measured

    def save(self) -> None:
        """Write the JSON and the Markdown file anew, each whole or not at all."""
        from resprune_jax.experiments.bench.generation.columns import add_columns
        from resprune_jax.experiments.bench.generation.report import markdown

        with stopping.whole():  # a signal that came is heard behind both
            add_columns(self.report)
            files.write(self.out / "generate.json", self.report)
            files.write_text(self.out / "generate.md", markdown(self.report))

    def _row(self, line: Line) -> dict[str, Any]:
        from resprune_jax.experiments.bench.generation.measuring import TEXT_TOKENS

        fresh = {
            "batch": line.batch, "new_tokens": self.bench.new_tokens, "text_tokens": TEXT_TOKENS,
            "sides": [], "not_measured": [], "notes": [],
        }  # fmt: skip
        row: dict[str, Any] = self.report["rows"].setdefault(line.row, fresh)
        return row

    def _entry(self, line: Line) -> Any:
        """What was measured of a line, or None."""
        sides = self._row(line)["sides"]
        return next((side for side in sides if line.head.items() <= side.items()), None)

    def _put_off(self, line: Line, why: str) -> None:
        """Say why there is no time of a line."""
        row = self._row(line)
        row["not_measured"] = [
            one for one in row["not_measured"] if not line.head.items() <= one.items()
        ] + [line.head | {"why": why}]

    def _keep(self, line: Line, entry: dict[str, Any]) -> None:
        """Take the times of a line into the report."""
        row = self._row(line)
        row["sides"].append(entry)
        row["not_measured"] = [
            one for one in row["not_measured"] if not line.head.items() <= one.items()
        ]
        ms = entry["ms"]
        note(
            f"  first token {ms['first_token']['median']:.3g} ms, a further one"
            f" {ms['token']['median']:.3g} ms; ready in {entry['ready_s']:.1f} s"
        )

    def _compare_tokens(self, group: list[Line]) -> None:
        """Whether the ways through one model generate the same tokens, and the two models."""
        for line in group:
            if (entry := self._entry(line)) is None or line.where == "here":
                continue
            eager = dataclasses.replace(line, way="eager")
            entry["equal_to_eager"] = self.bench.equal_tokens(line, eager)
            if self.bench.same_weights and line.keep is None and line.way == "eager":
                ours = dataclasses.replace(line, way="here")
                self._row(line)["tokens_equal"] = self.bench.equal_tokens(line, ours)

    def _ended(self, why: str) -> None:
        """The run ends early: say so of every line that was not reached."""
        for row in self.report["rows"].values():
            for one in row["not_measured"]:
                if one["why"] == "not reached":
                    one["why"] = why
        self.save()
