"""`resprune benchmark`: one of the paper's benchmarks, answered, scored, ready to be handed in.

The module is light: JAX comes in when something is asked.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from resprune_jax.choices import OcrLine
from resprune_jax.errors import CallError
from resprune_jax.experiments.benchmark.run.catalogue import FACTS, facts_of
from resprune_jax.experiments.common import ChatTemplate, check_file, console, model_name, shown
from resprune_jax.experiments.sweep.command import GridOptions, answer_all, check_options
from resprune_jax.experiments.sweep.grid import Grid

if TYPE_CHECKING:
    from resprune_jax.experiments.benchmark.run.data import Benchmark
    from resprune_jax.experiments.benchmark.run.scores import Scores

OFF = "off"
"""TextVQA without the line of OCR words."""

Paper = Literal["auto", "none", "llava-1.5", "llava-next", "qwen2.5-vl"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(GridOptions):
    """Answer one of the paper's benchmarks under every configuration, score it, write submissions.

    Image work is shared between methods and budgets. A second call goes on where the first was
    stopped. docs/how_to/evaluation.md says what to download.
    """

    name: Annotated[str, shown("{" + ",".join(FACTS) + "}", None)]
    """Which benchmark."""
    data: Annotated[str, shown("DIR_OR_FILE", None)]
    """Its rows: a .parquet or .jsonl file, or a folder of Parquet files, with lmms-lab's columns;
    one split of several as DIR:SPLIT."""
    methods: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name="method", metavar="NAME", help_behavior_hint="(default: none resprune)"),
    ] = ("none", "resprune")
    """Methods (resprune methods lists them), with settings as agilepruner:average=9,most=0.3; none
    keeps every token, and is what the others are relative to."""
    images: Annotated[Path | None, shown("DIR_OR_FILE", "in the data")] = None
    """Where the pictures lie, of data that only name them: a folder of picture files, for gqa also
    Parquet files of id and image."""
    ocr_line: Annotated[
        tuple[OcrLine | Literal["off"], ...], shown("{strip,keep,off}", "strip")
    ] = ()  # type: ignore[assignment]
    """TextVQA's line of OCR words: in the prompt, without it being read for nouns (strip) or with
    (keep), or not in the prompt (off), as lmms-eval asks."""
    image_aspect: Annotated[Literal["auto", "processor"], shown("{auto,processor}", None)] = "auto"
    """How pictures are prepared: as the model's authors do, who pad LLaVA-1.5's to a square, or as
    the checkpoint's own processor, which crops them."""
    template: ChatTemplate = None
    max_new_tokens: Annotated[int | None, shown("N", "128; mm-vet 1024; pocket 6")] = None
    """The most tokens of an answer."""
    ids: Annotated[Path | None, shown("FILE", "those asked")] = None
    """vqav2: the questions of the whole test set, all of which its server wants to see."""
    paper: Annotated[Paper, shown("{auto,none,llava-1.5,llava-next,qwen2.5-vl}", "auto")] = "auto"
    """Whose printed numbers stand beside the measured ones; auto goes by the checkpoint's name."""


def run(options: BenchmarkOptions) -> int:
    """Carry out `resprune benchmark`.

    Args:
        options: the command's options.

    Returns:
        0, or 1 where a row failed.

    Raises:
        CallError: a wrong call, or a folder of another run.
        RunError: data that are broken, or results that cannot be written.
    """
    facts = facts_of(options.name)
    check_options(options)
    if OFF in options.ocr_line and len(options.ocr_line) > 1:
        raise CallError("--ocr-line off asks other prompts: give it alone, in a run of its own")
    if options.ocr_line and options.name != "textvqa":
        raise CallError(f"--ocr-line is for textvqa: {options.name} has no such line")
    template = None
    if options.template is not None:
        check_file(options.template, "--chat-template")
        template = hashlib.sha256(options.template.read_bytes()).hexdigest()
    asked_with = OFF not in options.ocr_line
    axes = {own.name: getattr(options, own.name) for own in dataclasses.fields(Grid)}
    if not asked_with:
        axes["ocr_line"] = ()
    held: dict[str, Any] = {}

    def opened() -> "Benchmark":
        from resprune_jax.experiments.benchmark.run.data import open_benchmark
        from resprune_jax.experiments.benchmark.run.submissions import read_ids

        bench = open_benchmark(
            options.name, options.data, images=options.images, limit=options.examples,
            ocr_line=asked_with,
        )  # fmt: skip
        held["bench"] = bench
        held["ids"] = None if options.ids is None else read_ids(options.ids, bench)
        return bench

    def done() -> None:
        held["scores"] = finish(options, held["bench"], held["ids"])

    status = answer_all(
        options, [Grid(**axes)], opened, most=facts.tokens, done=done,
        aspect=None if options.image_aspect == "auto" else options.image_aspect,
        template=options.template,
        about={
            "benchmark": options.name, "ocr_line": asked_with,
            "chat_template": template,
        },
    )  # fmt: skip
    if (scores := held.get("scores")) is not None:
        show(scores, options)
        # Also of rows that an earlier call answered.
        return int(any(one.failed for one in scores.configurations))
    return status


def finish(
    options: BenchmarkOptions, bench: "Benchmark", ids: Sequence[str] | None
) -> "Scores | None":
    """Score a run whose rows are all there, and write what is handed in.

    Args:
        options: the command's.
        bench: what was asked.
        ids: see `submissions.read_ids`.

    Returns:
        None where blocks of other processes are missing.
    """
    from resprune_jax.experiments.sweep.shards import hold

    # Processes that end together write the same files, one after the other.
    with hold(options.output / ".lock-scores", shared=False, wait=True):
        return _finish(options, bench, ids)


def _finish(
    options: BenchmarkOptions, bench: "Benchmark", ids: Sequence[str] | None
) -> "Scores | None":
    from resprune_jax.experiments.benchmark.run.answers import (
        check_all,
        missing_blocks,
        read_answers,
    )
    from resprune_jax.experiments.benchmark.run.scores import backbone_of, score
    from resprune_jax.experiments.benchmark.run.submissions import write
    from resprune_jax.experiments.sweep.shards import read_manifest, replace

    if missing := missing_blocks(options.output):
        console().print(
            f"{missing} blocks are not there yet: the scores come when the last process ends, or"
            " with this command again",
            markup=False,
        )
        return None
    run, rows = read_manifest(options.output), read_answers(options.output)
    check_all(rows, bench.rows.keys(), options.output)
    backbone = backbone_of(options.model) if options.paper == "auto" else options.paper
    made = score(
        bench, rows, run["configurations"], backbone=None if backbone == "none" else backbone,
        tokens=int(run["visual_tokens"]),
    )  # fmt: skip
    folders = folders_of([one["name"] for one in run["configurations"]])
    for one in run["configurations"]:
        answers = {key: said.answer for key, said in rows[one["name"]].items()}
        where = options.output / "answers" / folders[one["name"]]
        write(where, bench, answers, model_name(options.model), {"configuration": one["name"]}, ids)
    text = json.dumps(made.record(), indent=1, ensure_ascii=False) + "\n"
    replace(options.output / "scores.json", text.encode("utf-8", "backslashreplace"))
    return made


def folders_of(names: Sequence[str]) -> dict[str, str]:
    """A folder's name for each configuration, no two alike."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9.=,+-]+", "-", name.replace("/", "of")).strip(".-") or "x"
        number, own = 1, plain[:120]
        while own.lower() in map(str.lower, found.values()):
            number += 1
            own = f"{plain[:120]}-{number}"
        found[name] = own
    return found


def show(scores: "Scores", options: BenchmarkOptions) -> None:
    """Print the scores as a Markdown table, with what a reader must know of them."""
    out = console()
    for line in lines_of(scores):
        out.print(line, markup=False)
    out.print(
        f"{options.output / 'scores.json'}; answers and submissions: {options.output / 'answers'}",
        markup=False,
    )


def lines_of(scores: "Scores") -> list[str]:
    """The scores as a Markdown table, and notes below it."""
    from resprune_jax.experiments.bench.markdown import table

    lines = []
    if scores.headline:
        any_printed = any(one.printed for one in scores.configurations)
        extra = [
            figure
            for figure in EXTRA.get(scores.benchmark, ())
            if all(figure in one.figures for one in scores.configurations if one.figures)
        ]
        heads = ["configuration", "tokens", f"{scores.headline} (95 %)", *extra, "% of full"]
        rows = []
        for one in scores.configurations:
            own = [one.name, f"{one.kept:.0f}", _text(one.figures[scores.headline])]
            own += [f"{one.figures[figure].value:.1f}" for figure in extra]
            own.append("" if one.relative is None else _text(one.relative))
            rows.append(own)
        if any_printed:
            heads.append("printed in the paper")
            for own, one in zip(rows, scores.configurations, strict=True):
                text = ""
                if one.printed is not None:
                    found = one.printed
                    text = f"{found.value:g} (Table {found.table}, {found.row})"
                own.append(text)
        lines += table(heads, rows).splitlines()
    return lines + [f"note: {note}" for note in scores.notes]


EXTRA: Mapping[str, Sequence[str]] = {
    "pope": ("f1", "accuracy", "precision", "recall", "yes ratio"),
    "mme": ("perception", "cognition"),
    "mmbench-en": ("plain", "undecided"),
    "gqa": ("accuracy/binary", "accuracy/open"),
    "vqav2": ("accuracy/yes/no", "accuracy/number", "accuracy/other"),
    "vizwiz": ("accuracy/unanswerable", "accuracy/other"),
}
"""Figures that are shown beside the headline; scores.json has all."""


def _text(value: Any) -> str:
    if value.value != value.value:  # a share of nothing
        return "n/a"
    if value.low != value.low:  # no interval
        return f"{value.value:.1f}"
    return f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})"
