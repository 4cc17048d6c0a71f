"""A second reader of questions: it finds all right answers from the drawn pixels, by brute force.

It shares no code with the generator of questions. Where a part is, it learns by drawing the scene
with and without that part.
"""

import dataclasses
import re
from functools import lru_cache

import numpy as np

from resprune_jax.experiments.pocket.scenes.parts import Scene
from resprune_jax.experiments.pocket.scenes.scene import render

Box = tuple[int, int, int, int]
SHAPE_WORDS = {"circle", "square", "triangle", "star", "ring", "diamond", "heart", "moon", "arrow"}
COLOUR_WORDS = {
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white",
}  # fmt: skip


def changed(scene: Scene, *, thing: int | None = None, text: int | None = None) -> np.ndarray:
    """(side, side) bool: which pixels change when a part is taken away."""
    things, texts = list(scene.things), list(scene.texts)
    if thing is not None:
        del things[thing]
    if text is not None:
        del texts[text]
    without = dataclasses.replace(scene, things=tuple(things), texts=tuple(texts))
    return (render(scene) != render(without)).any(-1)


def _box(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@lru_cache(maxsize=4)
def boxes(scene: Scene) -> tuple[list[Box], list[Box]]:
    """Left, top, right, bottom of every object's and every text's pixels."""
    return (
        [_box(changed(scene, thing=i)) for i in range(len(scene.things))],
        [_box(changed(scene, text=i)) for i in range(len(scene.texts))],
    )


def described(scene: Scene, phrase: str) -> list[int]:
    """All objects that a phrase such as "small red star" or "objects" fits."""
    words = [word.removesuffix("s") if len(word) > 4 else word for word in phrase.split()]
    found = []
    for i, thing in enumerate(scene.things):
        known = {thing.shape, thing.colour, thing.size, "object"}
        known |= {word.removesuffix("s") for word in known if len(word) > 4}
        if all(word in known or word.removesuffix("s") in known for word in words):
            found.append(i)
    return found


def the(scene: Scene, phrase: str) -> int:
    """The one object that a phrase fits."""
    found = described(scene, phrase)
    assert len(found) == 1, f"'the {phrase}' fits {len(found)} objects"
    return found[0]


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _in_band(box: Box, band: Box, where: str) -> bool:
    """Whether a box is met when a band moves from its place in a direction."""
    axis = 0 if where in ("left", "right") else 1
    across = 1 - axis
    meets = box[across] < band[across + 2] and band[across] < box[across + 2]
    if where in ("right", "below"):
        return meets and box[axis + 2] > _centre(band)[axis]
    return meets and box[axis] < _centre(band)[axis]


def _apart(scene: Scene, a: int, b: int, axis: int) -> float:
    """How far object a is to the right of (below) object b, in shares of the side."""
    things = boxes(scene)[0]
    return (_centre(things[a])[axis] - _centre(things[b])[axis]) / scene.config.side


def right_answers(scene: Scene, question: str) -> set[str]:
    """Every right answer to a question; it also checks that nothing in it is ambiguous."""

    def asks(pattern: str) -> re.Match[str] | None:
        return re.fullmatch(pattern, question)

    things, texts = boxes(scene)
    where = r"(to the left of|to the right of|above|below|under)"
    plain = {"to the left of": "left", "to the right of": "right", "under": "below"}
    if m := asks(r"(?:Is there|Does the image contain) an? (.*?)(?: in the (?:image|picture))?\?"):
        return {"yes" if described(scene, m[1]) else "no"}
    if m := asks(r"How many (.*) (?:are there|are in the image|do you see)\?"):
        return {str(len(described(scene, m[1])))}
    if m := asks(r"What color is the object directly (.*)|What is directly (.*)"):
        colour, rest = m[1] is not None, m[1] or m[2]
        m = re.fullmatch(where + r" the (.*)\?", rest)
        assert m is not None, question
        way, reference = plain.get(m[1], m[1]), the(scene, m[2])
        band = things[reference]
        met = [i for i, b in enumerate(things) if i != reference and _in_band(b, band, way)]
        assert not any(_in_band(box, band, way) for box in texts), "a text is in the way"
        return {scene.things[i].colour if colour else scene.things[i].shape for i in met[:2]}
    if m := asks(r"What color is the (.*)\?|What is the color of the (.*)\?"):
        return {scene.things[the(scene, m[1] or m[2])].colour}
    if m := asks(r"What shape is the (.*)\?|What is the shape of the (.*)\?"):
        assert m[1] or m[2]
        return {scene.things[the(scene, m[1] or m[2])].shape}
    if m := asks(r"What size is the (.*)\?|Is the (.*) small or large\?"):
        return {scene.things[the(scene, m[1] or m[2])].size}
    if m := asks(
        r"Which side of the image is the (.*) on, .*\?"
        r"|Is the (.*) on the .* side of the image\?"
    ):
        x, y = _centre(things[the(scene, m[1] or m[2])])
        upright = "top" in question
        off = ((y if upright else x) / scene.config.side) - 0.5
        assert abs(off) > 0.10, f"{off:.3f} of the side from the middle"
        return {(("top", "bottom") if upright else ("left", "right"))[off > 0]}
    if m := asks(r"Is the (.*) (to the left or to the right of|above or below) the (.*)\?"):
        axis = 0 if "left" in m[2] else 1
        gap = _apart(scene, the(scene, m[1]), the(scene, m[3]), axis)
        assert abs(gap) > 0.13, f"only {gap:.3f} of the side apart"
        return {(("left", "right"), ("above", "below"))[axis][gap > 0]}
    if m := asks(f"Is the (.*) {where} the (.*)\\?"):
        way = plain.get(m[2], m[2])
        gap = _apart(
            scene, the(scene, m[1]), the(scene, m[3]), 0 if way in ("left", "right") else 1
        )
        assert abs(gap) > 0.13, f"only {gap:.3f} of the side apart"
        return {"yes" if (gap > 0) == (way in ("right", "below")) else "no"}
    numbers = [text.printed.isdigit() for text in scene.texts]
    said = [text.printed.lower() for text in scene.texts]
    if asks(r"What is written in the image\?|What does the printed text say\?"):
        return set(said)
    if m := asks(r"What (word|number) is (?:printed|written) in the image\?"):
        return {w for w, number in zip(said, numbers, strict=True) if number == (m[1] == "number")}
    if m := asks(
        r"What (?:does the (text)|(word|number) is) on the (\w+) side of the image(?: say)?\?"
    ):
        side = scene.config.side
        chosen = set()
        for text, box, number in zip(scene.texts, texts, numbers, strict=True):
            if m[2] and number != (m[2] == "number"):
                continue
            off = _centre(box)[m[3] in ("top", "bottom")] / side - 0.5
            assert abs(off) > 0.10, f"{off:.3f} of the side from the middle"
            if (off > 0) == (m[3] in ("right", "bottom")):
                chosen.add(text.printed.lower())
        return chosen
    if m := asks(f"What (word|number) is (?:printed )?{where} the (.*)\\?"):
        band = things[the(scene, m[3])]
        way = plain.get(m[2], m[2])
        met = [i for i, box in enumerate(texts) if _in_band(box, band, way)]
        assert all(numbers[i] == (m[1] == "number") for i in met)
        gap = texts[met[0]][1] - band[3] if way == "below" else band[1] - texts[met[0]][3]
        assert -1 <= gap <= 0.12 * scene.config.side, f"a gap of {gap} pixels"
        return {said[i] for i in met}
    raise AssertionError(f"no rule reads {question!r}")
