"""`resprune compare`: one question, many methods: answers, kept tokens, and what choosing costs."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.experiments.answer.options import PICTURES
from resprune_jax.experiments.common import (
    ClipCheckpoint,
    ModelOptions,
    WeightsDType,
    check_file,
    check_number,
    check_target,
    console,
    method_and_settings,
    parse_keep,
    shown,
    use_compilation_cache,
)
from resprune_jax.experiments.progress import progress

if TYPE_CHECKING:
    from resprune_jax.methods import Method
    from resprune_jax.models.api import LVLM

FULL = "none"
"""The full model, which is always the first row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(ModelOptions):
    """Ask one question with many pruning methods: answers, kept tokens, times."""

    image: Annotated[Path, shown("FILE", None)]
    """The image."""
    prompt: Annotated[str, shown("TEXT", None)]
    """The question."""
    keep: Annotated[str, shown("COUNT|RATIO", None)]
    """Visual tokens to keep: a count such as 64, or a ratio such as 0.111."""
    method: Annotated[tuple[str, ...], shown("NAME ...", "every one that needs no setting")] = ()
    """Methods by name, with settings as scope:combine=add; FILE.py:NAME for your own."""
    output: Annotated[Path | None, shown("OUT.png", "none")] = None
    """Draw what each of them keeps in this picture."""
    repeats: Annotated[int, shown("N", None)] = 3
    """Calls behind the one that compiles; times are their medians."""
    max_new_tokens: Annotated[int, shown("N", None)] = 32
    """The most tokens to generate."""
    dtype: WeightsDType = None
    clip: ClipCheckpoint = None
    json: bool = False
    """Print JSON in place of a table."""


def chosen(options: CompareOptions) -> dict[str, "Method"]:
    """The methods by name as they were written.

    Raises:
        CallError: an unknown one, or settings that it does not have.
    """
    from resprune_jax.methods import get_method, method_class

    if options.method:
        return {each: get_method(*method_and_settings(each)) for each in options.method}
    missing = dataclasses.MISSING
    return {
        name: get_method(name)
        for name in METHODS
        if all(f.default is not missing for f in dataclasses.fields(method_class(name)))
    }


def run(options: CompareOptions) -> int:
    """Carry out `resprune compare`.

    Raises:
        CallError, RunError: a wrong call; a call that failed.
    """
    check_file(options.image, "--image")
    keep = parse_keep(options.keep)
    if keep is None:
        raise CallError("--keep full compares nothing: give a count or a ratio")
    if not options.prompt.strip():
        raise CallError("--prompt is empty: write a question")
    check_number("--repeats", options.repeats, 1)
    check_number("--max-new-tokens", options.max_new_tokens, 1)
    if options.output is not None:
        check_target(options.output, "--output", PICTURES)
    methods = chosen(options)
    use_compilation_cache()
    from resprune_jax.models.load import load_model

    lvlm = load_model(
        options.model, revision=options.revision, dtype=options.dtype, clip=options.clip
    )
    rows = compare(lvlm, options, methods, keep)
    if options.output is not None:
        _draw(lvlm, options, rows)
    if options.json:
        print(json.dumps([{k: v for k, v in row.items() if k != "picks"} for row in rows]))
    else:
        _print(options, rows)
    return 0


def compare(
    lvlm: "LVLM", options: CompareOptions, methods: dict[str, "Method"], keep: Any
) -> list[dict[str, Any]]:
    """A row a method: its answer, its picks, and the medians of its times in seconds.

    The image is encoded once, with all that any method reads. A method that reads what this model
    does not have, or that cannot meet the budget, is a row with the reason. Inside the LLM choosing
    is a part of prefill.
    """
    from resprune_jax.methods.inputs import ON_REQUEST
    from resprune_jax.models.prompts.options import CallOptions

    runs: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, method in methods.items():
        call = {"method": method, "keep": keep}
        if name == "resprune":  # by name it has this family's settings
            call["method"] = name
        try:
            lvlm.method_of(CallOptions(**call))
        except CallError as error:
            refused[name] = str(error)
        else:
            runs[name] = call
    needs = {part for name in runs for part in methods[name].needs & ON_REQUEST}
    encoded = lvlm.encode(options.image, needs=needs)
    rows = []
    with progress("calls", (len(runs) + 1) * (options.repeats + 1)) as step:
        for name, call in {FULL: {"method": FULL}, **runs}.items():
            # What makes pictures smaller takes the picture, and encodes it in every call.
            small = name != FULL and methods[name].stage == "pixels"
            seen = options.image if small else encoded
            times: dict[str, list[float]] = {"select": [], "prefill": []}
            try:
                for turn in range(options.repeats + 1):
                    made = lvlm.generate(
                        seen, options.prompt, max_new_tokens=options.max_new_tokens, **call
                    )
                    if turn:
                        for part, seconds in times.items():
                            seconds.append(made.timings[part])
                    step(1)
            except CallError as error:
                refused[name] = str(error)
                continue
            picks, cost = None, made.costs[0]
            if made.selections is not None:
                picks = [int(i) for i in made.selections.indices[0] if i < made.visual_tokens[0]]
            rows.append(
                {
                    "method": name,
                    "kept": made.kept[0],
                    "layer_average": None if cost is None else cost.average,
                    "answer": made.texts[0],
                    "error": made.errors[0],
                    **{f"{part}_s": statistics.median(own) for part, own in times.items()},
                    "picks": picks,
                }
            )
    return [*rows, *({"method": name, "error": why} for name, why in refused.items())]


def _print(options: CompareOptions, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("method", "kept", "a layer", "answer", "choosing, ms", "prefill, ms", box=None)
    for row in rows:
        if "kept" not in row:
            table.add_row(row["method"], "", "", Text(f"not here: {row['error']}", style="dim"))
            continue
        said = row["error"] or row["answer"]
        times = [f"{1000 * row[part]:.1f}" for part in ("select_s", "prefill_s")]
        counts = str(row["kept"]), f"{row['layer_average']:.1f}"
        table.add_row(row["method"], *counts, Text(said), *times)
    out = console()
    out.print(table)
    out.print(
        Text(
            f"Medians of {options.repeats} calls of one prompt; choosing and prefill are waited for"
            " one after the other; inside the LLM choosing is a part of prefill.",
            style="dim",
        )
    )


def _draw(lvlm: "LVLM", options: CompareOptions, rows: list[dict[str, Any]]) -> None:
    from resprune_jax.experiments.answer.overlay import draw
    from resprune_jax.experiments.answer.views import titled

    assert options.output is not None
    panels: list[Any] = []
    for row in rows:
        if "kept" in row:
            title = f"{row['method']}, {row['kept']}: {' '.join(row['answer'].split())}"
            panels += titled(lvlm.family, [options.image], row["picks"], title)
    draw(panels, question=options.prompt, path=options.output)
