"""`resprune pocket eval`: accuracy on the frozen test set, full, blind and pruned, in figures.

The module is light: JAX comes in when something is measured.
"""

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.common import (
    Checkpoint,
    ClipCheckpoint,
    check_file,
    check_number,
    check_target,
    console,
    model_name,
    shown,
    use_compilation_cache,
)
from resprune_jax.experiments.progress import progress

MOST = 2500
EACH = 5  # questions about a scene, one of every family
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure a model on pocket scenes: accuracy with all tokens, with none to see, and pruned."""

    model: Checkpoint = "pocket"
    """Checkpoint folder, Hub id, or pocket for the one that comes with the package."""
    clip: ClipCheckpoint = None
    split: Literal["test", "validation"] = "test"
    """Scenes of the frozen test set, or others of the same kind, to choose settings by."""
    questions: Annotated[int, shown("N", None)] = MOST
    """How many questions, the first ones; a multiple of five, which each scene has."""
    methods: Annotated[tuple[str, ...], shown("NAME", None)] = (
        "full", "blank", "resprune", "alpha0", "random", "oracle",
    )  # fmt: skip
    """What to ask with: full, which is always among them, blank, oracle, alpha0, or any pruning
    method by name (resprune methods), with settings as agilepruner:average=9,most=0.3; all stands
    for every one that the model can run without settings."""
    ratios: Annotated[tuple[str, ...], shown("RATIO", None)] = ("1/3", "2/9", "1/9")
    """Shares of the visual tokens that pruning methods keep."""
    draws: Annotated[int, shown("N", None)] = 1
    """How often random tokens are drawn; their figures are the mean."""
    rng_seed: Annotated[int, shown("N", None)] = 0
    """Seed of random tokens and of the intervals."""
    resume: Annotated[Path | None, shown("FOLDER", "none")] = None
    """Keep here what each method said, and ask only those that are not there yet."""
    output: Annotated[Path | None, shown("OUT.json", "none")] = None
    """Write the figures to this file."""
    figure: Annotated[Path | None, shown("OUT.png", "none")] = None
    """Draw accuracy against the tokens kept in this picture."""
    card: Annotated[Path | None, shown("OUT.md", "none")] = None
    """Write a model card with the figures to this file."""
    results: Annotated[Path | None, shown("FILE.json", "measure now")] = None
    """Show the figures of this file, written by --output, in place of measuring."""
    markdown: bool = False
    """Print Markdown in place of tables."""
    debug: bool = False
    """Show the traceback when something fails."""


def run(options: EvalOptions) -> int:
    """Carry out `resprune pocket eval`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: a wrong call.
        RunError: a checkpoint or a results file that is broken, or a row that failed.
    """
    check_number("--questions", options.questions, EACH, MOST)
    if options.questions % EACH:
        raise CallError(
            f"--questions {options.questions}: every scene has {EACH}, give a multiple of {EACH}"
        )
    check_number("--draws", options.draws, 1, 100)
    check_number("--rng-seed", options.rng_seed, 0, 2**32 - 1)
    ratios_of(options.ratios)
    for path, name, suffixes in (
        (options.output, "--output", (".json",)),
        (options.figure, "--figure", _PICTURES),
        (options.card, "--card", (".md",)),
    ):
        if path is not None:
            check_target(path, name, suffixes)
    figures = measured(options) if options.results is None else read_figures(options.results)
    if options.output is not None:
        text = json.dumps(figures, indent=1) + "\n"
        options.output.write_text(text, encoding="utf-8")
    if options.figure is not None:
        from resprune_jax.experiments.pocket.evaluation.figures import accuracy_figure

        accuracy_figure(figures, options.figure)
    if options.card is not None:
        from resprune_jax.experiments.pocket.evaluation.card import card

        options.card.write_text(card(figures), encoding="utf-8")
    from resprune_jax.experiments.pocket.evaluation.tables import markdown, show

    if options.markdown:
        print(markdown(figures), end="")
    else:
        show(figures, console())
    return 0


def ratios_of(words: Sequence[str]) -> list[Fraction]:
    """Read `--ratios`.

    Raises:
        CallError: a word that is no fraction between 0 and 1, or one given twice.
    """
    ratios: list[Fraction] = []
    for word in words:
        try:
            ratio = Fraction(word)
        except (ValueError, ZeroDivisionError):
            ratio = Fraction(0)
        if not 0 < ratio < 1 or ratio in ratios:
            raise CallError(f"--ratios {word}: give different shares between 0 and 1, such as 2/9")
        ratios.append(ratio)
    return ratios


def read_figures(path: Path) -> dict[str, Any]:
    """Figures that `--output` wrote.

    Raises:
        CallError: no such file.
        RunError: a file that holds something else.
    """
    check_file(path, "--results")
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not JSON: {error}") from None
    needed = {"settings", "comparisons", "relevance_auc", "slice", "visual_tokens", "questions"}
    missing = needed - set(figures) if isinstance(figures, dict) else needed
    if missing:
        raise RunError(f"{path} has no {', '.join(sorted(missing))}: give what --output wrote")
    return figures


def measured(options: EvalOptions) -> dict[str, Any]:
    """Measure as the options say."""
    use_compilation_cache()
    from resprune_jax.experiments.pocket.evaluation.measure import (
        measure,
        of_the_model,
        preset_of,
        settings,
    )
    from resprune_jax.experiments.pocket.evaluation.parts import in_parts
    from resprune_jax.experiments.pocket.evaluation.summary import summary
    from resprune_jax.experiments.pocket.scenes.frozen import balanced_set
    from resprune_jax.models.load import load_model

    methods = list(options.methods)
    left_out: dict[str, str] = {}
    lvlm = load_model(options.model, dtype="float32", clip=options.clip)
    if "all" in methods:
        can, left_out = of_the_model(lvlm, ratios_of(options.ratios))
        methods = [name for name in methods if name != "all"]
        methods += [name for name in can if name not in methods]
    chosen = settings(methods, ratios_of(options.ratios), options.draws)
    preset = preset_of(lvlm)
    items = list(islice(balanced_set(preset, options.split), options.questions // EACH))
    total = len(chosen) * sum(len(questions) for _, questions in items)
    with progress("questions", total) as step:
        if options.resume is None:
            said = measure(lvlm, items, chosen, rng_seed=options.rng_seed, step=step)
        else:
            said = in_parts(
                options.resume, lvlm, items, chosen, rng_seed=options.rng_seed, step=step
            )
    name = Path(model_name(options.model)).name
    made = summary(lvlm, said, model=name, split=options.split, rng_seed=options.rng_seed)
    return made | {"left_out": left_out}
