"""What the vision tower is taught of a scene beside the words of its patches.

A patch that shows a part is also told where that part's middle is, from itself and in the image,
whether it holds the middle, and what the whole text says; the class token is told what the image
shows. Linear heads read these from the projector's output and are thrown away after training.
"""

from dataclasses import dataclass

import numpy as np

from resprune_jax.experiments.pocket.scenes.labels import anchors, dense_labels, owners
from resprune_jax.experiments.pocket.scenes.parts import PATCH, Scene
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.experiments.pocket.scenes.words import COLOURS, SHAPES, WORDS

NO_DIGIT = 10
_WORD_ID = {word: i for i, word in enumerate(WORDS)}
_SHAPE_ID = {name: i for i, name in enumerate(SHAPES)}
_COLOUR_ID = {name: i for i, name in enumerate(COLOURS)}
PRESENT = len(SHAPES) * len(COLOURS) + len(WORDS)


@dataclass(frozen=True)
class Targets:
    """A scene as the first stage sees it; N patches.

    Attributes:
        image: (side, side, 3) uint8.
        labels: (N, 7) int32, see `dense_labels`.
        middle: (N, 2) float32, from the patch's middle to that of the part that it shows, (x, y) in
            patches; NaN where it shows none.
        centre: (N, 2) float32, that middle in the image, (x, y) from -1 to 1; NaN as above.
        anchor: (N,) int8, whether the patch holds that middle; -1 where it shows no part.
        text: (N, 4) int32: the word's index, then the number's three digits (NO_DIGIT: it has no
            third); -1 where there is none.
        present: (PRESENT,) bool, which pairs of shape and colour and which words are there.
    """

    image: np.ndarray
    labels: np.ndarray
    middle: np.ndarray
    centre: np.ndarray
    anchor: np.ndarray
    text: np.ndarray
    present: np.ndarray


def targets(scene: Scene) -> Targets:
    """Everything that the first stage asks about a scene."""
    grid = scene.config.grid
    owner = owners(scene)  # [N]
    boxes = [thing.box for thing in scene.things] + [text.box for text in scene.texts]
    middles = (
        np.array([[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2] for b in boxes]) / PATCH
    )  # [parts, 2]
    row, column = np.divmod(np.arange(grid * grid), grid)
    shown = owner >= 0
    middle = np.full((grid * grid, 2), np.nan, np.float32)
    middle[shown] = middles[owner[shown]] - np.stack([column, row], 1)[shown] - 0.5
    centre = np.full((grid * grid, 2), np.nan, np.float32)
    centre[shown] = 2 * middles[owner[shown]] / grid - 1
    anchor = np.where(shown, 0, -1).astype(np.int8)
    own = anchors(scene)
    anchor[own[owner[own] == np.arange(len(own))]] = 1
    text = np.full((grid * grid, 4), -1, np.int32)
    present = np.zeros(PRESENT, bool)
    for thing in scene.things:
        present[_SHAPE_ID[thing.shape] * len(COLOURS) + _COLOUR_ID[thing.colour]] = True
    for i, printed in enumerate(scene.texts, start=len(scene.things)):
        if printed.kind == "word":
            text[owner == i, 0] = _WORD_ID[printed.answer]
            present[len(SHAPES) * len(COLOURS) + _WORD_ID[printed.answer]] = True
        else:
            digits = [int(digit) for digit in printed.answer] + [NO_DIGIT]
            text[owner == i, 1:] = digits[:3]
    return Targets(render(scene), dense_labels(scene), middle, centre, anchor, text, present)
