"""The pocket scenes as a data set: the frozen set's own questions and pictures."""

import numpy as np
import pytest

from resprune_jax.experiments.data.examples import open_dataset
from resprune_jax.experiments.data.metrics import score
from resprune_jax.experiments.data.scenes import ScenePicture, scene_examples
from resprune_jax.experiments.pocket.scenes import scene as scene_module
from resprune_jax.experiments.pocket.scenes.frozen import SPLITS, balanced_set
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES
from resprune_jax.experiments.pocket.scenes.scene import render


@pytest.mark.parametrize("split", ["test", "validation"])
def test_examples_are_the_frozen_sets(split: str) -> None:
    data = open_dataset(f"pocket:{split}", limit=13)
    assert data.name == f"pocket:{split}" and len(data.examples) == 13
    made = balanced_set("cpu", split)
    for number in range(3):
        scene, questions = next(made)
        assert scene.rng_seed in SPLITS[split]
        for place, question in enumerate(questions):
            if 5 * number + place >= 13:
                break
            example = data.examples[5 * number + place]
            assert example.key == f"{split}/{number:05}/{place}"
            assert example.cluster == f"{split}/{number:05}"
            assert example.category == question.family == FAMILIES[place]
            assert example.question == question.prompt and example.answers == (question.answer,)
            assert score(example.metric, question.answer.upper(), example.answers) == 1
            (picture,) = data.pictures(example)
            assert np.array_equal(picture, render(scene))
    assert len({example.images for example in data.examples}) == 3


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a picture was drawn")

    monkeypatch.setattr(scene_module, "paint_ground", never)
    data = open_dataset("pocket:test", limit=10)
    with pytest.raises(AssertionError, match="was drawn"):
        data.pictures(data.examples[0])


def test_the_fingerprint_is_of_split_and_count() -> None:
    known = {
        open_dataset(f"pocket:{split}", n).fingerprint
        for split in SPLITS
        if split != "train"
        for n in (4, 5, 6)
    }
    assert len(known) == 6
    assert open_dataset("pocket:test", 4).fingerprint in known


def test_a_scene_changed_by_the_generator_is_another_content() -> None:
    import dataclasses

    (picture,) = next(scene_examples("test")).images
    moved = dataclasses.replace(picture.scene.things[0], x=picture.scene.things[0].x + 0.25)
    things = (moved, *picture.scene.things[1:])
    changed = ScenePicture(dataclasses.replace(picture.scene, things=things))
    assert changed.digest() != picture.digest()
