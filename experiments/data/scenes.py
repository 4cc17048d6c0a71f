"""The pocket model's scenes as a data set: drawn when they are asked for."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from resprune_jax.experiments.data.examples import Example
from resprune_jax.experiments.pocket.scenes.frozen import TEST_SCENES, balanced_set
from resprune_jax.experiments.pocket.scenes.parts import Scene
from resprune_jax.experiments.pocket.scenes.scene import render

SPLITS = ("test", "validation")


@dataclass(frozen=True, eq=False)
class ScenePicture:
    """A scene; two are equal where they are of one seed and one kind.

    Attributes:
        scene: what it shows.
    """

    scene: Scene

    @property
    def _name(self) -> tuple[int, object]:
        return self.scene.rng_seed, self.scene.config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScenePicture) and self._name == other._name

    def __hash__(self) -> int:
        return hash(self._name)

    def load(self) -> np.ndarray:
        """(side, side, 3) uint8, RGB."""
        return render(self.scene)

    def digest(self) -> str:
        """SHA-256 of the place and colour of everything in it."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        told = json.dumps(dataclasses.asdict(self.scene), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


def scene_examples(split: str, preset: str = "cpu", scenes: int = TEST_SCENES) -> Iterator[Example]:
    """The frozen scenes of a split, one question of every family each.

    Args:
        split: "test" or "validation".
        preset: "cpu" or "gpu".
        scenes: how many.

    Yields:
        Examples of key "test/00012/3" (the scene, the family's number) and cluster "test/00012".
    """
    for number, (scene, questions) in enumerate(islice(balanced_set(preset, split), scenes)):
        picture = ScenePicture(scene)
        for place, question in enumerate(questions):
            yield Example(
                key=f"{split}/{number:05}/{place}",
                images=(picture,),
                cluster=f"{split}/{number:05}",
                category=question.family,
                question=question.prompt,
                answers=(question.answer,),
                metric="pocket",
            )
