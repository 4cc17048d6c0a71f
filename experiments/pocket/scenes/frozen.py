"""Splits by seed, and the frozen test set: one question of every family about each of 500 scenes.

`python -m resprune_jax.experiments.pocket.scenes.frozen --preset cpu` prints the set's digests and
how far a guesser gets who never sees an image.
"""

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Literal

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.parts import PATCH, PRESETS, Scene
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES, Question, ask, ask_many
from resprune_jax.experiments.pocket.scenes.scene import make_scene, render
from resprune_jax.experiments.pocket.scenes.words import Draw

TEST_SCENES = 500
_STREAM = 101  # of random draws, so that questions do not depend on those that made the scene
# Half of the existence questions have the answer yes, the others a negative of each kind in turn.
_EXISTENCE = ("present", "random", "present", "popular", "present", "adversarial")


def check_disjoint(splits: Mapping[str, range]) -> None:
    """Refuse splits that share a seed.

    Args:
        splits: seeds of each split, as ranges of step 1.

    Raises:
        CallError: two of them overlap, or one is empty or has another step.
    """
    for name, seeds in splits.items():
        if seeds.step != 1 or not seeds:
            raise CallError(f"split {name} is {seeds}: it must be a non-empty range of step 1")
    ordered = sorted(splits.items(), key=lambda item: item[1].start)
    for (first, low), (second, high) in pairwise(ordered):
        if high.start < low.stop:
            raise CallError(
                f"splits {first} ({low}) and {second} ({high}) share seeds: keep them apart"
            )


SPLITS = {
    "test": range(0, 1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "train": range(2_000_000, 2**62),
}
check_disjoint(SPLITS)


def split_seed(split: str, index: int) -> int:
    """The seed of a split's scene.

    Args:
        split: "train", "validation" or "test".
        index: number of the scene, from 0.

    Raises:
        CallError: an unknown split, or an index that it does not have.
    """
    if split not in SPLITS:
        raise CallError(f"split={split!r} is unknown: choose one of {', '.join(SPLITS)}")
    seeds = SPLITS[split]
    if not 0 <= index < len(seeds):
        raise CallError(f"split {split} has scenes 0 to {len(seeds) - 1}, not {index}")
    return seeds[index]


def balanced_set(preset: str, split: str) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes of a split with one question of every family each; other scenes are passed over.

    Args:
        preset: "cpu" or "gpu".
        split: see `split_seed`.

    Yields:
        A scene and its questions, in the order of FAMILIES.

    Raises:
        CallError: an unknown preset or split.
    """
    if preset not in PRESETS:
        raise CallError(f"preset={preset!r} is unknown: choose one of {', '.join(PRESETS)}")
    found = 0
    for index in range(len(SPLITS[split]) if split in SPLITS else 1):
        rng_seed = split_seed(split, index)
        scene = make_scene(PRESETS[preset], rng_seed)
        draw = Draw(rng_seed, _STREAM)
        questions = []
        for family in FAMILIES:
            kind = _EXISTENCE[found % len(_EXISTENCE)] if family == "existence" else None
            question = ask(scene, draw, family, kind)
            if question is not None:
                questions.append(question)
        if len(questions) == len(FAMILIES):
            found += 1
            yield scene, questions


def frozen_set(
    preset: str = "cpu", scenes: int = TEST_SCENES
) -> list[tuple[Scene, list[Question]]]:
    """The frozen test set, or its first scenes.

    Args:
        preset: "cpu" or "gpu".
        scenes: how many scenes; each has one question of every family.

    Raises:
        CallError: an unknown preset.
    """
    return list(islice(balanced_set(preset, "test"), scenes))


@dataclass(frozen=True)
class Digest:
    """SHA-256 sums of a set.

    Attributes:
        contents: of every part's place and colour and of every question, exactly. It depends on
            no pixel; of FreeType it needs only that glyphs keep their size to 1/128 of an em.
        pixels: of the images without their texts, averaged over patches and rounded down to
            multiples of 16. Glyphs may change with FreeType, so they count by `contents` alone;
            a Pillow that fills polygons otherwise can still change this sum.
    """

    contents: str
    pixels: str


def digest(items: Iterable[tuple[Scene, list[Question]]]) -> Digest:
    """The digest of scenes and their questions, in order."""
    contents, pixels = hashlib.sha256(), hashlib.sha256()
    for scene, questions in items:
        record = {
            "scene": dataclasses.asdict(scene),
            "questions": [dataclasses.asdict(question) for question in questions],
        }
        contents.update(json.dumps(record, sort_keys=True).encode() + b"\n")
        grid = scene.config.grid
        image = render(dataclasses.replace(scene, texts=())).astype(np.uint32)
        means = image.reshape(grid, PATCH, grid, PATCH, 3).sum((1, 3)) // (16 * PATCH**2)
        pixels.update(means.astype(np.uint8).tobytes())
    return Digest(contents.hexdigest(), pixels.hexdigest())


def blind_accuracy(
    known: Iterable[Question], asked: Iterable[Question]
) -> dict[str, tuple[float, float]]:
    """How far one gets without looking.

    Args:
        known: questions with answers to learn from, of another split.
        asked: questions to answer.

    Returns:
        For every family and "overall": the accuracy of the answer that is right most often in
        `asked` (of the family; chosen with hindsight), and of the commonest answer in `known` to
        the very same question (to the family, where the question is new).
    """
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_family: dict[str, Counter[str]] = defaultdict(Counter)
    for question in known:
        by_text[question.question][question.answer] += 1
        by_family[question.family][question.answer] += 1
    questions: dict[str, list[Question]] = defaultdict(list)
    for question in asked:
        questions[question.family].append(question)
        questions["overall"].append(question)
    table = {}
    for family, members in questions.items():
        best = Counter(question.answer for question in members).most_common(1)[0][1]
        right = 0
        for question in members:
            votes = by_text[question.question] or by_family[question.family]
            right += bool(votes) and votes.most_common(1)[0][0] == question.answer
        table[family] = (best / len(members), right / len(members))
    return table


def main(preset: Literal["cpu", "gpu"] = "cpu", learn_from: int = 20_000) -> None:
    """Print the digests of a preset's test set and how far a blind guesser gets.

    Args:
        preset: which scenes.
        learn_from: training scenes that the guesser learns from, five questions each.
    """
    items = frozen_set(preset)
    sums = digest(items)
    print(f"{len(items)} scenes, {sum(len(questions) for _, questions in items)} questions")
    print(f"contents {sums.contents}\npixels   {sums.pixels}")
    known = (
        question
        for i in range(learn_from)
        for scene in [make_scene(PRESETS[preset], split_seed("train", i))]
        for question in ask_many(scene, Draw(scene.rng_seed, _STREAM), 5)
    )
    asked = [question for _, questions in items for question in questions]
    print(f"{'blind guesses':12}  one answer  by question")
    for family, (constant, text) in blind_accuracy(known, asked).items():
        print(f"{family:12}  {constant:9.1%}  {text:11.1%}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
