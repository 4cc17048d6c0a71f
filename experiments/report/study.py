"""The case-study figure: one picture, the tokens that several methods keep of it, their answers."""

import logging
from collections.abc import Sequence
from pathlib import Path

from resprune_jax.errors import CallError, shown
from resprune_jax.experiments.report.cases import settings_shown
from resprune_jax.experiments.report.reading import answers_of
from resprune_jax.experiments.report.tables import Maker

logger = logging.getLogger("resprune_jax")

PANELS = 4  # one line of them


def draw_case(maker: Maker, key: str, folder: Path, kinds: Sequence[str]) -> list[Path]:
    """Ask the model about one example again, and draw what each method kept.

    Results hold no lists of kept tokens, so the model and the data of the run are loaded. Methods
    that keep no tokens (they merge, or make the picture smaller) are left out.

    Args:
        maker: the run's figures.
        key: of the example.
        folder: for the picture.
        kinds: "png", "pdf".

    Returns:
        The pictures.

    Raises:
        CallError: no such example, or a model or data set that is not the run's any more.
    """
    from resprune_jax.experiments.answer.overlay import View, draw
    from resprune_jax.experiments.answer.views import titled
    from resprune_jax.experiments.common import use_compilation_cache
    from resprune_jax.experiments.data.examples import open_dataset
    from resprune_jax.experiments.sweep.grid import Configuration
    from resprune_jax.experiments.sweep.identity import fingerprint

    use_compilation_cache()
    from resprune_jax.models.load import load_model

    run = maker.measured.results.run
    data = open_dataset(run["data"], int(run["examples"]))
    _same("data set", run["data"], data.fingerprint, run["data_fingerprint"])
    example = next((one for one in data.examples if one.key == key), None)
    if example is None:
        raise CallError(
            f"--case {shown(key)} is no example of this run: resprune report lists some"
        )
    lvlm = load_model(run["model"], dtype=run["precision"], clip=run.get("clip"))
    _same("model", run["model"], fingerprint(lvlm.path), run["model_fingerprint"])
    pictures = data.pictures(example)
    if not pictures:
        raise CallError(f"--case {shown(key)} has no picture: give an example that has one")
    views: list[View] = []
    for label, i in settings_shown(maker).items():
        if len(views) >= PANELS:
            break
        member = maker.measured.settings[i].members[0]
        told = dict(maker.measured.results.configurations[member])
        name = told.pop("name")
        own = {part: told.pop(part, None) for part in ("method", "keep", "settings", "draw")}
        axes = {axis: value for axis, value in told.items() if value is not None}
        one = Configuration(
            name, own["method"], own["keep"], own["settings"] or {}, own["draw"] or 0, axes
        )
        made = lvlm.generate(
            pictures[0] if len(pictures) == 1 else [pictures],
            example.question,
            options=one.options_for([key], max_new_tokens=run.get("max_new_tokens")),
        )
        full = one.method == "none"
        if made.selections is None and not full:
            continue
        said = answers_of(maker.measured.results, [name], [key])[name, key]
        if made.texts[0] != said:
            logger.warning(
                "%s answers %s about %s here, and %s in the results",
                name, shown(made.texts[0]), key, shown(said),
            )  # fmt: skip
        picks = None
        if not full and made.selections is not None:
            count = made.visual_tokens[0]
            picks = [int(token) for token in made.selections.indices[0] if token < count]
        title = f"{label}, {made.kept[0]}: {' '.join(made.texts[0].split())}"
        views += titled(lvlm.family, pictures, picks, title)
    asked = " ".join(example.question.split())
    answers = ", ".join(dict.fromkeys(example.answers))
    paths = [folder / f"case.{kind}" for kind in kinds]
    for path in paths:
        draw(views, question=f"{asked} (accepted: {answers})", path=path)
    return paths


def _same(what: str, name: str, found: str, recorded: str) -> None:
    if found != recorded:
        raise CallError(f"the {what} {name} is not what the results are of: it has changed since")
