"""Batches of the second stage: images, the visual tokens they keep, and questions as segments."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from resprune_jax.experiments.pocket.model import tokenizer
from resprune_jax.experiments.pocket.model.recipe import recipe
from resprune_jax.experiments.pocket.scenes.frozen import split_seed
from resprune_jax.experiments.pocket.scenes.labels import owners
from resprune_jax.experiments.pocket.scenes.parts import PAGES, TOP, Scene
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES, ask_many
from resprune_jax.experiments.pocket.scenes.scene import make_scene
from resprune_jax.experiments.pocket.scenes.words import Draw
from resprune_jax.experiments.pocket.training.drills import DRILLS, OPENINGS, Fact, drill
from resprune_jax.experiments.pocket.training.lessons import lesson
from resprune_jax.experiments.pocket.training.targets import targets

OPENING = "USER: <image>"
LESSON = len(FAMILIES)
NAMES = (*FAMILIES, "lesson", *DRILLS)
"""What segments are, by number."""

_LEVELS, _ASKS, _DROPS = 3, 4, 5  # streams of random draws


@lru_cache
def _tokenizer() -> Any:
    return tokenizer.make_tokenizer()


@lru_cache
def opening_ids() -> tuple[int, ...]:
    """Token ids of the template up to the image, which stands behind them."""
    ids = _tokenizer().encode(OPENING).ids
    return tuple(ids[: ids.index(tokenizer.IMAGE)])


@dataclass(frozen=True)
class Phase:
    """A part of the curriculum.

    Attributes:
        until: share of the stage's steps at which it ends.
        levels: (level, weight) of scenes.
        drills: how many of an image's chunks hold a drill.
        lessons: how many of an image's other segments are lessons.
        instructions: share of batches whose questions carry their instruction.
        sparse: share of batches whose images come without most of their background.
        partial: share of batches whose images come with a few tokens of some objects alone.
        kinds: of drills; one that is named twice is drilled twice as often.
        families: of questions; one that is named twice is asked twice as often.
    """

    until: float
    levels: tuple[tuple[int, float], ...]
    drills: int
    lessons: int
    instructions: float
    sparse: float
    partial: float = 0.0
    kinds: tuple[str, ...] = DRILLS
    families: tuple[str, ...] = FAMILIES


CURRICULUM = (
    Phase(0.06, ((1, 0.5), (2, 0.5)), 4, 0, 0.0, 0.7),
    Phase(0.25, ((1, 0.1), (2, 0.5), (3, 0.4)), 3, 1, 0.0, 0.7),
    Phase(0.50, ((2, 0.3), (3, 0.5), (TOP, 0.2)), 2, 1, 0.2, 0.6),
    Phase(0.75, ((2, 0.05), (3, 0.35), (TOP, 0.5), (PAGES, 0.1)), 1, 1, 0.4, 0.5),
    Phase(1.00, ((3, 0.2), (TOP, 0.8)), 0, 0, 0.7, 0.4),
)
"""From drills about one or two objects to instructed questions about crowded scenes."""


@dataclass(frozen=True)
class Answer:
    """Batches of the second stage.

    Attributes:
        preset: "cpu" or "gpu".
        images: a batch.
        steps: of the stage.
        phases: the curriculum.
        chunks: an image has, as in `run_segments`; they are filled with lessons and questions.
        size: tokens a chunk.
        sparse_tokens: visual tokens of an image that comes without most of its background.
        partial_tokens: visual tokens of an image of which some objects are left.
        start: number of the first training scene.
    """

    preset: str
    images: int
    steps: int
    phases: tuple[Phase, ...] = CURRICULUM
    chunks: int = 4
    size: int = 64
    sparse_tokens: int = 72
    partial_tokens: int = 16
    start: int = 0

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        sizes = recipe(self.preset)
        phase = next(p for p in self.phases if step < p.until * self.steps or p is self.phases[-1])
        coin = Draw(step, _DROPS)
        instructed = coin.unit() < phase.instructions
        chance = coin.unit()
        partial = phase.sparse <= chance < phase.sparse + phase.partial
        rows: list[dict[str, np.ndarray]] = []
        for index in range(step * self.images, (step + 1) * self.images):
            rng_seed = split_seed("train", self.start + index)
            level = Draw(rng_seed, _LEVELS).weighted(phase.levels)
            scene = make_scene(sizes.scenes.at_level(level), rng_seed)
            shown = targets(scene)
            draw = Draw(rng_seed, _ASKS)
            keep = None
            if partial:
                # What is asked is true of what is left: the rest might as well not be there.
                scene, keep = _part(scene, self.partial_tokens, rng_seed)
            elif chance < phase.sparse:
                keep = _foreground(scene, self.sparse_tokens, rng_seed)
            drills = _drilled(scene, draw, phase)
            asked = []
            if phase.drills < self.chunks:
                asked = _asked(scene, draw, phase, instructed)
            row = pack([*drills, *asked], self.chunks, self.size) | vars(shown)
            if keep is not None:
                row["keep"] = keep
            rows.append(row)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


MOST = 24
"""Questions an image, at most."""


Segment = tuple[list[Fact], int]
"""Facts (what is said, what follows and is learnt), and a number in NAMES."""


def _drilled(scene: Scene, draw: Draw, phase: Phase) -> list[Segment]:
    """Drills of different kinds, each filling a chunk as far as the scene has facts."""
    kinds = list(phase.kinds)
    draw.shuffle(kinds)
    drills: list[Segment] = []
    for kind in kinds:
        facts = drill(scene, draw, kind) if len(drills) < phase.drills else []
        if facts:
            said, learnt = facts[0]
            facts[0] = (f"\n{OPENINGS[kind]}: {said}", learnt)
            drills.append((facts, NAMES.index(kind)))
    return drills


def _asked(scene: Scene, draw: Draw, phase: Phase, instructed: bool) -> list[Segment]:
    """Lessons and questions about a scene, mixed."""
    asked: list[tuple[str, str, int]] = []
    seen = set()
    for _ in range(6 * phase.lessons):
        made = lesson(scene, draw)
        if made is not None and made[0] not in seen and len(asked) < phase.lessons:
            seen.add(made[0])
            asked.append((*made, LESSON))
    for q in ask_many(scene, draw, MOST - len(asked), phase.families):
        text = q.prompt if instructed else q.question
        asked.append((text, q.answer, FAMILIES.index(q.family)))
    return [([(f"\n{text} ASSISTANT:", answer)], own) for text, answer, own in asked]


def pack(segments: list[Segment], chunks: int, size: int) -> dict[str, np.ndarray]:
    """Lay segments out in chunks, as many as there is room for, the first ones first.

    Args:
        segments: of one fact each (a question and its answer), or of several, of which as many are
            taken as one chunk has room for.
        chunks: C.
        size: W.

    Returns:
        Of shape (C, W): `ids`, `segment` (its number, -1 for padding), `place` and `learn` (the
        token is part of an answer); of shape (MOST,): `family`, of the segments; -1 for none.
    """
    ids = np.full((chunks, size), tokenizer.PAD, np.int32)
    segment = np.full((chunks, size), -1, np.int32)
    place = np.zeros((chunks, size), np.int32)
    learn = np.zeros((chunks, size), bool)
    family = np.full(MOST, -1, np.int32)
    used = np.zeros(chunks, int)
    facts = [fact for segment_facts, _ in segments for fact in segment_facts]
    said = iter(_encode([fact[0] for fact in facts]))
    learnt = iter(_encode([fact[1] for fact in facts]))
    number = 0
    for segment_facts, own in segments:
        whole: list[int] = []
        learns: list[bool] = []
        for index in range(len(segment_facts)):
            prompt, answer = next(said), next(learnt)
            if index and len(whole) + len(prompt) + len(answer) >= size:
                continue
            whole += [*prompt, *answer]
            learns += [False] * len(prompt) + [True] * len(answer)
        whole.append(tokenizer.END)
        learns.append(True)
        fitting = np.flatnonzero(used + len(whole) <= size)
        if not len(fitting) or number == MOST:
            continue
        chunk = fitting[used[fitting].argmax()]  # the fullest that has room
        at = slice(used[chunk], used[chunk] + len(whole))
        ids[chunk, at] = whole
        segment[chunk, at] = number
        place[chunk, at] = np.arange(len(whole))
        learn[chunk, at] = learns
        family[number] = own
        used[chunk] += len(whole)
        number += 1
    return {"ids": ids, "segment": segment, "place": place, "learn": learn, "family": family}


def _encode(texts: list[str]) -> list[list[int]]:
    encoded = _tokenizer().encode_batch(texts, add_special_tokens=False)
    return [one.ids for one in encoded]


def _foreground(scene: Scene, count: int, rng_seed: int) -> np.ndarray:
    """Visual tokens of objects and texts, filled up with random others, in raster order."""
    draw = Draw(rng_seed, _DROPS)
    shown = owners(scene) >= 0
    order = list(np.flatnonzero(shown))
    rest = list(np.flatnonzero(~shown))
    draw.shuffle(order)
    draw.shuffle(rest)
    return np.sort(np.array((order + rest)[:count], np.int32))


def _part(scene: Scene, count: int, rng_seed: int) -> tuple[Scene, np.ndarray]:
    """A few objects and texts of a scene, and their visual tokens, as a pruned image has them.

    Objects that share a word come first, so that there is something to count; of each as many
    patches are kept as a share that is drawn. Background fills the rest.

    Returns:
        (the scene without the others, (count,) the visual tokens in raster order).
    """
    draw = Draw(rng_seed, _DROPS)
    owner = owners(scene)
    things = [i for i in range(len(scene.things)) if (owner == i).any()]
    texts = [len(scene.things) + i for i in range(len(scene.texts))]
    draw.shuffle(things)
    named = scene.things[things[0]]
    word = draw.pick((named.shape, named.colour, ""))
    alike = [i for i in things if word in (scene.things[i].shape, scene.things[i].colour)]
    alike = alike or things[:1]  # one object at least: questions are about objects
    others = [i for i in (*things, *texts) if i not in alike]
    draw.shuffle(others)
    share = draw.pick((0.5, 0.75, 1.0))
    kept: list[int] = []
    taken: list[int] = []
    for number in [*alike, *others][: 1 + draw.below(6)]:
        own = np.flatnonzero(owner == number).tolist()
        draw.shuffle(own)
        own = own[: min(count, math.ceil(share * len(own)))]
        if own and len(kept) + len(own) <= count:
            kept += own
            taken.append(number)
    background = np.flatnonzero(owner < 0).tolist()
    draw.shuffle(background)
    left = replace(
        scene,
        things=tuple(x for i, x in enumerate(scene.things) if i in taken),
        texts=tuple(x for i, x in enumerate(scene.texts, len(scene.things)) if i in taken),
    )
    return left, np.sort(np.array((kept + background)[:count], np.int32))
