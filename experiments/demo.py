"""`resprune demo`: questions about drawn scenes, answered from all visual tokens and from few.

The pocket model that comes with the package is small and truly trained: a test bench that fits any
machine, not a claim about models of 7B parameters.
"""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from resprune_jax.errors import RunError
from resprune_jax.experiments.common import (
    Checkpoint,
    console,
    make_folder,
    use_compilation_cache,
)
from resprune_jax.models.checkpoint.shipped import POCKET

if TYPE_CHECKING:
    from rich.table import Table

    from resprune_jax.experiments.pocket.scenes.parts import Scene
    from resprune_jax.experiments.pocket.scenes.questions import Question
    from resprune_jax.models.api import LVLM
    from resprune_jax.models.running.generation import Generation

SCENES = 3
RATIOS: tuple[Fraction | None, ...] = (None, Fraction(1, 3), Fraction(2, 9), Fraction(1, 9))
WARM_RUNS = 5
PICTURED = ("attributes", "relations", "reading")
"""Families of the questions that the pictures show, one a scene."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Show it working, offline: a small trained model answers from all tokens and from few."""

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("demo")
    """Folder for the pictures; made if missing."""
    model: Checkpoint = POCKET
    """Another pocket model: the folder of its checkpoint."""
    debug: bool = False
    """Show the traceback when something fails."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question of the demo and the scene it is about."""

    scene: "Scene"
    question: "Question"


@dataclasses.dataclass(frozen=True)
class Answered:
    """What one budget gave.

    Attributes:
        made: answers, tokens kept and residual energies, a row a question.
        seconds: medians of the warm runs, by part.
    """

    made: "Generation"
    seconds: dict[str, float]


def run(options: DemoOptions, *, say: Callable[..., None] | None = None) -> int:
    """Carry out `resprune demo`.

    Args:
        options: the command's options.
        say: prints for the user; by default to standard output.

    Returns:
        0.

    Raises:
        CallError: the folder cannot be made, or the model is none of pocket scenes.
        RunError: an answer failed.
    """
    from rich.markup import escape

    say = say or console().print
    make_folder(options.out, "--out")
    use_compilation_cache()
    from resprune_jax.experiments.pocket.evaluation.measure import preset_of
    from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
    from resprune_jax.models.load import load_model

    lvlm = load_model(options.model, dtype="float32")
    items = frozen_set(preset_of(lvlm), SCENES)
    asked = [Asked(scene, question) for scene, questions in items for question in questions]
    total = lvlm.config.num_visual_tokens
    say(
        f"A pocket LLaVA of {_millions(lvlm)} million parameters, {total} visual tokens an image:"
        " [bold]a test bench, not a claim about 7B models[/bold]."
    )
    say(
        f"The first {len(items)} scenes of its frozen test set, which training never saw, with a"
        " question of each of five families; nothing is chosen by hand."
    )
    with console(stderr=True).status("compiling and answering, once for each budget"):
        answered = [answer(lvlm, asked, ratio) for ratio in RATIOS]
    say(_answers(asked, answered))
    say(_costs(lvlm, answered))
    say(
        "Energy: the share of the visual tokens' energy that the kept ones span. Times:"
        f" milliseconds for all {len(asked)} questions in one batch, medians of {WARM_RUNS} warm"
        " runs, compiling left out. FLOPs and KV cache: of one image's visual tokens."
    )
    pruned = answered[1].made
    say(f"Nouns that guided the choice were found by {escape(pruned.noun_backend)}.")
    for path in pictures(lvlm, asked, answered, options.out):
        say(f"Picture of the tokens kept: {escape(str(path))}")
    return 0


def answer(lvlm: "LVLM", asked: Sequence[Asked], ratio: Fraction | None) -> Answered:
    """Answer all questions from a share of the visual tokens: once to compile, then timed.

    Args:
        lvlm: the model.
        asked: the questions.
        ratio: share of the visual tokens, or None for them all.

    Raises:
        RunError: a row failed.
    """
    from resprune_jax.experiments.pocket.evaluation.measure import NEW_TOKENS
    from resprune_jax.experiments.pocket.scenes.scene import render

    images = [render(one.scene) for one in asked]
    prompts = [one.question.prompt for one in asked]
    keep = None if ratio is None else float(ratio)
    runs = [
        lvlm.generate(images, prompts, keep=keep, max_new_tokens=NEW_TOKENS)
        for _ in range(1 + WARM_RUNS)
    ]
    if failed := [why for why in runs[0].errors if why]:
        raise RunError(f"the demo failed with {ratio or 'all'} of the visual tokens: {failed[0]}")
    parts = runs[0].timings
    return Answered(
        runs[0], {part: statistics.median(one.timings[part] for one in runs[1:]) for part in parts}
    )


def _millions(lvlm: "LVLM") -> str:
    import jax

    return f"{sum(leaf.size for leaf in jax.tree.leaves(lvlm.state)) / 1e6:.1f}"


def is_right(asked: Asked, text: str) -> bool:
    """Whether an answer is the right one."""
    from resprune_jax.experiments.pocket.judge import is_right

    return is_right(text, asked.question.answer)


def _heads(answered: Sequence[Answered]) -> list[str]:
    """The budgets as column heads: "all 144", "48", ..."""
    kept = [one.made.kept[0] for one in answered]
    return [f"all {kept[0]}", *map(str, kept[1:])]


def _answers(asked: Sequence[Asked], answered: Sequence[Answered]) -> "Table":
    """Every question with the right answer and those given at each budget."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("question")
    table.add_column("right")
    for head in _heads(answered):
        table.add_column(head, no_wrap=True, max_width=12, overflow="ellipsis")
    before = asked[0].scene
    for row, one in enumerate(asked):
        if one.scene is not before:
            table.add_section()
            before = one.scene
        cells = []
        for budget in answered:
            text = budget.made.texts[row]
            mark = "[green]✓[/green]" if is_right(one, text) else "[red]✗[/red]"
            cells.append(f"{mark} {escape(text)}")
        table.add_row(escape(one.question.question), escape(one.question.answer), *cells)
    table.add_section()
    counts = [_right(asked, budget) for budget in answered]
    table.add_row("right answers", str(len(asked)), *map(str, counts))
    return table


def _right(asked: Sequence[Asked], budget: Answered) -> int:
    return sum(is_right(one, text) for one, text in zip(asked, budget.made.texts, strict=True))


def _costs(lvlm: "LVLM", answered: Sequence[Answered]) -> "Table":
    """The budgets side by side: what they keep, how long they take, what they cost."""
    from rich import box
    from rich.table import Table

    from resprune_jax.costs import budget_table
    from resprune_jax.experiments.info import bytes_text, decoder_shape, flops_text

    shape = decoder_shape(lvlm.config, lvlm.dtype.itemsize)
    kept = [one.made.kept[0] for one in answered]
    costs = budget_table(kept[0], kept[1:], shape)
    parts = ("encode", "select", "prefill", "decode", "total")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for head in ("tokens", "energy", *parts, "LLM FLOPs", "KV cache"):
        table.add_column(head, justify="right", no_wrap=True)
    for one, cost in zip(answered, costs, strict=True):
        table.add_row(
            str(one.made.kept[0]),
            f"{energy_kept(one.made):.1%}",
            *(f"{1000 * one.seconds[part]:.0f}" for part in parts),
            flops_text(cost.flops),
            bytes_text(cost.kv_bytes),
        )
    return table


def energy_kept(made: "Generation") -> float:
    """The share of the visual tokens' energy that the kept ones span, mean over the rows."""
    if made.selections is None:
        return 1.0
    energy = made.selections.energy  # [B, K + 1]
    assert energy is not None  # ResPrune measures it
    shares = [
        1 - float(row[kept]) / float(row[0]) for row, kept in zip(energy, made.kept, strict=True)
    ]
    return statistics.fmean(shares)


def pictures(
    lvlm: "LVLM", asked: Sequence[Asked], answered: Sequence[Answered], folder: Path
) -> list[Path]:
    """Draw, for a question about each scene, the tokens kept at each budget and the answers.

    Args:
        lvlm: the model.
        asked: the questions.
        answered: what each budget gave.
        folder: where to write.

    Returns:
        The pictures, kept_tokens_1.png and so on.
    """
    import numpy as np

    from resprune_jax.experiments.answer.overlay import Panel, overlay
    from resprune_jax.experiments.pocket.scenes.scene import render

    total = lvlm.config.num_visual_tokens
    grid = lvlm.config.vision.grid
    scenes = list(dict.fromkeys(one.scene.rng_seed for one in asked))
    paths = []
    for number, (rng_seed, family) in enumerate(zip(scenes, PICTURED, strict=True), start=1):
        row, one = next(
            (row, one)
            for row, one in enumerate(asked)
            if (one.scene.rng_seed, one.question.family) == (rng_seed, family)
        )
        panels: list[Panel] = []
        for budget in answered:
            made = budget.made
            chosen = None
            if made.selections is not None:
                chosen = np.asarray(made.selections.indices[row])[: made.kept[row]]
            share = f"all {total}" if chosen is None else f"{made.kept[row]} of {total}"
            mark = "✓" if is_right(one, made.texts[row]) else "✗"
            text = made.texts[row]
            short = text if len(text) <= 12 else text[:11] + "…"
            panels.append((f"{share}:  {short} {mark}", chosen))
        paths.append(
            overlay(
                render(one.scene),
                panels,
                (grid, grid),
                question=f"{one.question.question}  Answer: {one.question.answer}",
                image_aspect="processor",
                image_size=lvlm.config.vision.image_size,
                path=folder / f"kept_tokens_{number}.png",
            )
        )
    return paths
