"""`resprune answer`: questions about images, one at a time or as a run that can be resumed."""

import functools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, printable
from resprune_jax.experiments import stopping
from resprune_jax.experiments.answer.options import AnswerOptions, check, settings_of
from resprune_jax.experiments.answer.results import Results
from resprune_jax.experiments.answer.rows import Row, read_rows
from resprune_jax.experiments.common import (
    Keep,
    console,
    load_asked,
    reason,
)
from resprune_jax.experiments.progress import compiles, progress
from resprune_jax.experiments.streams import print_json

logger = logging.getLogger("resprune_jax")

Load = Callable[..., Any]


MOST_LISTED = 8
"""Prompts whose visual tokens are listed before a run goes on."""


class Announcer:
    """Says what the images of the first prompts give and what is kept of them, once each."""

    def __init__(self) -> None:
        self._said: set[int] = set()

    def __call__(self, rows: Sequence[Row], found: Sequence[Any]) -> None:
        """Log the counts of a batch; `found` is what `LVLM.generate` announces."""
        for row, each in zip(rows, found, strict=True):
            if row.index in self._said or len(self._said) > MOST_LISTED:
                continue
            self._said.add(row.index)
            if len(self._said) > MOST_LISTED:
                logger.warning("the visual tokens of further rows are in their results")
                continue
            counts = " + ".join(str(count) for count in each.images) or "0"
            whole = f" = {sum(each.images)}" if len(each.images) > 1 else ""
            logger.warning("%s: %s%s visual tokens, %d kept", row.name, counts, whole, each.kept)


def _generate(
    lvlm: Any, options: AnswerOptions, rows: Sequence[Row], announcer: Announcer | None = None
) -> Any:
    announce = None if announcer is None else functools.partial(announcer, rows)
    budgets = [row.keep for row in rows]
    return lvlm.generate(
        [row.pictures() for row in rows],
        [row.prompt for row in rows],
        options=options.call(budgets, rng_seed=_seeds(options, rows)),
        announce=announce,
    )


def _seeds(options: AnswerOptions, rows: Sequence[Row]) -> int | list[int]:
    """Where rows draw from: each from its own number, in whatever batch a resumed run puts it."""
    if not (options.sample or options.temperature):
        return options.rng_seed
    return [(options.rng_seed + row.index) % 2**32 for row in rows]


def _results(rows: Sequence[Row], made: Any) -> list[dict[str, Any]]:
    """The result rows of a batch."""
    timings = {name: round(seconds, 6) for name, seconds in made.timings.items()}
    results = []
    for i, row in enumerate(rows):
        if made.errors[i] is not None:
            results.append(row.result(error=made.errors[i]))
            continue
        results.append(
            row.result(
                answer=made.texts[i],
                new_tokens=len(made.tokens[i]),
                kept=made.kept[i],
                visual_tokens=made.visual_tokens[i],
                nouns=list(made.nouns[i]),
                noun_backend=made.noun_backend,
                batch_rows=len(rows),
                timings=timings,
                **_costs(made, i),
            )
        )
    return results


def _costs(made: Any, row: int) -> dict[str, Any]:
    """Where a row lost visual tokens, and what those that stayed cost the LLM."""
    costs = made.costs[row]
    return {
        "drops": [list(drop) for drop in made.drops[row]],
        "layer_average": None if costs is None else round(costs.average, 3),
        "llm_flops": None if costs is None else costs.flops,
        "kv_bytes": None if costs is None else costs.kv_bytes,
    }


def answer_rows(
    lvlm: Any, options: AnswerOptions, rows: Sequence[Row], announcer: Announcer | None = None
) -> list[dict[str, Any]]:
    """Answer a batch; if it fails as a whole, find the bad rows, so that only they fail.

    Rows with unreadable images leave first and the others run together again, in the shapes that
    are compiled already; if that was not it, each row runs alone.

    Returns:
        One result a row, in order; a row that failed has "error" in place of "answer".

    Raises:
        KeyboardInterrupt: the run is to stop; a batch that was disturbed by that gives nothing.
    """
    stopping.check()
    try:
        found = _results(rows, _generate(lvlm, options, rows, announcer))
        stopping.check()
        return found
    except Exception as error:
        stopping.check()  # what a library made of the interrupt is no row's fault
        logger.debug("a batch of %d rows failed", len(rows), exc_info=True)
        if len(rows) == 1:
            return [rows[0].result(error=reason(error))]
    again = functools.partial(answer_rows, lvlm, options, announcer=announcer)
    bad = {row.index: row.result(error=why) for row in rows if (why := _unreadable(row))}
    if bad:
        good = [row for row in rows if row.index not in bad]
        answered = again(good) if good else []
        by_row = bad | {result["row"]: result for result in answered}
        return [by_row[row.index] for row in rows]
    return [again([row])[0] for row in rows]


def _unreadable(row: Row) -> str | None:
    """Why the image of a row cannot be read, or None if it can."""
    from resprune_jax.models.images.files import open_image

    return _why(row, open_image)


def _no_picture(row: Row) -> str | None:
    """What the first bytes of a row's images say against them, before a model is loaded."""
    from resprune_jax.models.images.files import check_kind

    return _why(row, check_kind)


def _why(row: Row, look: Callable[[Path], object]) -> str | None:
    try:
        for path in row.paths:
            look(path)
    except Exception as error:
        return reason(error)
    return None


def run(options: AnswerOptions, *, load: Load | None = None) -> int:
    """Carry out `resprune answer`.

    Args:
        options: the command's options.
        load: makes the model from the options; by default `load_model`.

    Returns:
        0, or 1 if a row of a run failed.

    Raises:
        CallError: a wrong call.
        RunError: the one image of a call failed.
    """
    keep = check(options)
    make = load or load_asked
    if options.rows:
        rows = read_rows(options.rows, keep=keep, prompt=options.prompt)
    else:
        rows = rows_of(options, keep)
    pruned = any(row.keep is not None for row in rows)
    if pruned and options.method == "none":
        index = next(row.index for row in rows if row.keep is not None)
        raise CallError(f"row {index} has a keep, but --method none keeps every token: drop one")
    if not pruned and not _budgeted(options):
        for name in (*options.settings, *(["tolerance"] if options.tolerance is not None else [])):
            logger.warning("--%s has no effect without --keep", name.replace("_", "-"))
    if not options.rows and len(rows) == 1:
        return _run_one(options, rows[0], make)
    return _run_many(options, rows, make)


def _budgeted(options: AnswerOptions) -> bool:
    """Whether the method's own settings say how many tokens stay."""
    if not options.method_settings or options.method == "none":
        return False
    from resprune_jax.methods import get_method

    return get_method(options.method, options.settings).budgeted


def rows_of(options: AnswerOptions, keep: Keep) -> list[Row]:
    """The prompts of `--image` and `--video`."""
    film: dict[str, Any] = {}
    if options.video is not None:
        film = {"video": str(options.video), "video_path": options.video, "fps": options.fps}
    if not film and not options.together:
        return [
            Row(i, str(path), options.prompt, keep, paths=(path,))
            for i, path in enumerate(options.image)
        ]
    names: Any = [str(path) for path in options.image] or None
    if names is not None and len(names) == 1:
        (names,) = names
    return [Row(0, names, options.prompt, keep, paths=options.image, **film)]


def _run_one(options: AnswerOptions, row: Row, load: Load) -> int:
    settings = settings_of(options)
    with ExitStack() as stack:
        results = None
        if options.output:
            results = stack.enter_context(Results(options.output, [row], settings))
        if results is not None and 0 in results.done:
            logger.warning("%s has this answer already: the model was not run", options.output)
            _print_answer(options, results.done[0])
            return 0
        if (why := _no_picture(row)) is not None:
            raise RunError(why)
        lvlm = load(options)
        with compiles(quiet=options.quiet):
            made = _generate(lvlm, options, [row], Announcer())
        (result,) = _results([row], made)
        if "error" in result:
            raise RunError(f"{row.name}: {result['error']}")
        stored = results.write(result) if results else {**result, "settings": settings}
    if options.overlay:
        _draw(options, row, lvlm, made)
        if options.json:
            stored["overlay"] = str(options.overlay)
    _print_answer(options, stored)
    if options.overlay and not options.json:
        console().print(f"picture  {options.overlay}", style="dim", markup=False)
    return 0


def _run_many(options: AnswerOptions, rows: Sequence[Row], load: Load) -> int:
    settings = settings_of(options)
    failed: list[dict[str, Any]] = []
    begin = time.perf_counter()
    with ExitStack() as stack:
        results = None
        if options.output:
            results = stack.enter_context(Results(options.output, rows, settings))

        def record(result: dict[str, Any]) -> None:
            if "error" in result:
                failed.append(result)
            if results is not None:
                results.write(result)
            else:
                print_json({**result, "settings": settings})

        done = set() if results is None else set(results.done)
        todo = [row for row in rows if row.index not in done]
        if done:
            logger.warning("%d of %d rows are answered already", len(done), len(rows))
        good = []
        for row in todo:
            stopping.check()
            why = row.error or _no_picture(row)
            if why is None:
                good.append(row)
            else:
                record(row.result(error=why))
        if todo := good:
            lvlm, announcer = load(options), Announcer()
            if results is not None:
                results.check(lvlm.settings)
            there = len(rows) - len(todo)
            step = stack.enter_context(progress("rows", len(rows), there, quiet=options.quiet))
            stack.enter_context(compiles(quiet=options.quiet, beside=True))
            for batch in _batches(todo, options.batch_size):
                for result in answer_rows(lvlm, options, batch, announcer):
                    record(result)
                    step()
    _print_summary(options, rows, failed, len(done), time.perf_counter() - begin)
    return 1 if failed else 0


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _print_summary(
    options: AnswerOptions,
    rows: Sequence[Row],
    failed: Sequence[dict[str, Any]],
    skipped: int,
    seconds: float,
) -> None:
    answered = len(rows) - skipped - len(failed)
    where = f" to {options.output}" if options.output else ""
    line = f"{answered} {'row' if answered == 1 else 'rows'} answered{where} in {seconds:.1f} s"
    if skipped:
        line += f", {skipped} were there"
    if failed:
        first = min(failed, key=lambda result: result["row"])
        line += f", {len(failed)} failed; the first is row {first['row']}: {first['error']}"
        if options.output:
            line += " (the same call again asks the failed rows again)"
    print(printable(f"resprune: {line}"), file=sys.stderr)


def _print_answer(options: AnswerOptions, result: dict[str, Any]) -> None:
    """One answer for a person, or as JSON."""
    if options.json:
        print_json(result)
        return
    from rich.text import Text

    out = console()
    out.print(Text(result["answer"]))
    kept, total = result["kept"], result["visual_tokens"]
    nouns = ", ".join(result["nouns"]) or "none found"
    facts = {"kept": f"{kept} of {total} visual tokens ({kept / total:.1%})"}
    if kept < total and result["noun_backend"] != "none":
        facts["nouns"] = f"{nouns} ({result['noun_backend']})"
    facts["time"] = times(result["timings"])
    out.print()
    for name, fact in facts.items():
        out.print(Text(f"{name:8} {fact}", style="dim"))


def times(timings: Mapping[str, float]) -> str:
    """How long the parts of an answer took; of a first call, how much of it was compiling."""
    parts = {name: seconds for name, seconds in timings.items() if name != "compile"}
    line = " · ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
    spent = timings.get("compile", 0.0)
    if spent < 0.005:
        return line
    return f"{line}, of which compiling {spent:.2f} s (the next call of these sizes does not)"


def _draw(options: AnswerOptions, row: Row, lvlm: Any, made: Any) -> None:
    from resprune_jax.experiments.answer.overlay import draw
    from resprune_jax.experiments.answer.views import panels_of

    assert options.overlay is not None
    picks = None
    if made.selections is not None:
        picks = [int(i) for i in made.selections.indices[0].ravel() if i < made.visual_tokens[0]]
    pictures = row.pictures()
    pictures = pictures if isinstance(pictures, list) else [pictures]
    panels = panels_of(lvlm.family, pictures, picks, image_aspect=options.image_aspect)
    draw(panels, question=row.prompt, answer=made.texts[0], path=options.overlay)
