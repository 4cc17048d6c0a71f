"""The stages of training in order: what each draws and minimises, how long and how fast it goes.

A stage is an entry of the tuple that `stages_of` returns, and of SIZES; nothing else names one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.model.recipe import recipe
from resprune_jax.experiments.pocket.scenes.parts import TOP
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES
from resprune_jax.experiments.pocket.training.answers import Answer, Phase
from resprune_jax.experiments.pocket.training.stages import See, answer_loss, levelled, see_loss
from resprune_jax.experiments.pocket.training.trainer import Loss, Schedule


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        name: of its folder in the run, and in `--steps`.
        about: what it does, for the model card.
        batches: what a step sees; a function of the step.
        loss: what is minimised, of the graph that `stages.initial` gives.
        schedule: how it is optimised.
        begin: what is done with the graph and the last stage's parameters before it begins.
    """

    name: str
    about: str
    batches: See | Answer
    loss: Callable[[Any], Loss]
    schedule: Schedule
    begin: Callable[[Any, Any], Any] | None = None


SIZES: dict[str, dict[str, tuple[int, int, float]]] = {
    "cpu": {
        "see": (1950, 48, 1.5e-3),
        "drill": (500, 16, 1e-3),
        "answer": (3300, 16, 1e-3),
        "refine": (2500, 16, 8e-4),
    },
    "gpu": {
        "see": (4000, 64, 1e-3),
        "drill": (1000, 64, 7e-4),
        "answer": (12000, 64, 7e-4),
        "refine": (6000, 64, 5e-4),
    },
}
"""Steps, images a step and highest learning rate of each stage, by preset."""

SHIPPED = {
    "cpu": (
        "The shipped weights took 4.6 hours on two busy CPU cores, and turns that these stages"
        " straighten out: `see` learnt the words for places in its last 350"
        " steps only, at a rate of 8e-4; in `answer` the tower's share of the learning rate was"
        " 0.05 up to step 2100 and 0.15 from there on; and 400 more steps of `see`, at a rate of"
        " 6e-4, came between `answer` and `refine`."
    ),
}
"""What the training of the weights in the package had of its own, by preset."""

DRILLING = (
    Phase(0.5, ((1, 0.5), (2, 0.5)), 4, 0, 0.0, 1.0),
    Phase(1.0, ((1, 0.1), (2, 0.5), (3, 0.4)), 4, 0, 0.0, 1.0),
)
"""The curriculum of the stage that drills; the next one's is `answers.CURRICULUM`."""

_MORE = ("counting", "relations", "relations", "reading")
_HARD = ("what", "what", "read", "compare", "count", "where")
REFINING = (
    Phase(
        0.5, ((3, 0.2), (TOP, 0.8)), 2, 0, 0.5, 0.25, 0.3, kinds=_HARD, families=(*FAMILIES, *_MORE)
    ),
    Phase(
        1.0, ((3, 0.1), (TOP, 0.9)), 1, 0, 0.8, 0.25, 0.3,
        kinds=("what", "read"), families=(*FAMILIES, *_MORE),
    ),
)  # fmt: skip
"""The curriculum of the last stage: crowded scenes, what is learnt last more often, and images of
which a few tokens are left, as a pruner leaves them."""


def stages_of(preset: str, steps: Mapping[str, int] | None = None) -> tuple[Stage, ...]:
    """The stages of a preset; each begins with scenes that those before it have not drawn.

    Args:
        preset: "cpu" or "gpu".
        steps: of stages that are to be shorter or longer than the preset's, by name.

    Raises:
        CallError: an unknown preset or stage.
    """
    recipe(preset)
    sizes = SIZES[preset]
    if unknown := [name for name in steps or {} if name not in sizes]:
        raise CallError(f"stage {unknown[0]!r} is unknown: choose of {', '.join(sizes)}")
    count = {name: own[0] for name, own in sizes.items()} | dict(steps or {})
    images = {name: own[1] for name, own in sizes.items()}
    peak = {name: own[2] for name, own in sizes.items()}
    seen = count["see"] * images["see"]
    drilled = seen + count["drill"] * images["drill"]
    answered = drilled + count["answer"] * images["answer"]
    return (
        Stage(
            "see",
            "patches are told what they show, through the language model's own embedding table,"
            " and the class token what the image shows",
            See(preset, images["see"], count["see"]),
            see_loss,
            _schedule(count["see"], peak["see"], last=0.1),
        ),
        Stage(
            "drill",
            "the language model learns facts in few words, many a segment; the tower rests",
            Answer(
                preset, images["drill"], count["drill"], DRILLING, sparse_tokens=48, start=seen
            ),
            partial(answer_loss, questions=0.1, tower=False),
            _schedule(count["drill"], peak["drill"], tower=0.0, last=0.3),
            partial(_level, See(preset, images["see"], count["see"])),
        ),
        Stage(
            "answer",
            "everything learns to answer, from easy scenes to crowded ones, many segments an image"
            " that share its prefix: drills, lessons that describe and list, questions",
            Answer(preset, images["answer"], count["answer"], start=drilled),
            partial(answer_loss, questions=0.1, dense=0.5),
            _schedule(count["answer"], peak["answer"], tower=0.1, last=0.03),
        ),
        Stage(
            "refine",
            "the same on crowded scenes, counting, relations and reading more often than the rest;"
            " of some images a few tokens of some objects are left, as pruning leaves them",
            Answer(preset, images["refine"], count["refine"], REFINING, start=answered),
            partial(answer_loss, questions=0.1, dense=0.5),
            _schedule(count["refine"], peak["refine"], tower=0.1, last=0.03),
        ),
    )  # fmt: skip


def _level(see: See, graph: Any, params: Any) -> Any:
    return levelled(graph, params, see(see.steps))


def _schedule(steps: int, peak: float, **more: float) -> Schedule:
    return Schedule(steps, peak, warm_up=min(100, steps // 10), **more)
