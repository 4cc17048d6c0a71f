"""What the pocket model is taught beside the questions of the test: to describe, find and list.

One word an answer is little to learn from. These lessons have longer answers with nothing left to
guess: all there is to say of an object, of a place, of a group from left to right, and (as LLaVA's
own first stage) of a whole small scene.
"""

from itertools import pairwise

from resprune_jax.experiments.pocket.scenes.labels import place
from resprune_jax.experiments.pocket.scenes.parts import Description, Scene
from resprune_jax.experiments.pocket.scenes.words import SHAPES, Draw

KINDS = {"describe": 0.40, "where": 0.20, "at": 0.15, "list": 0.25}
"""The kinds of lessons and how often they are tried."""


def _references(scene: Scene, index: int) -> list[str]:
    """Phrases that fit this object and no other."""
    thing = scene.things[index]
    options = (
        Description(thing.shape, thing.colour),
        Description(thing.shape),
        Description(None, thing.colour),
        Description(thing.shape, size=thing.size),
    )
    return [about.phrase for about in options if len(about.among(scene)) == 1]


def _places(scene: Scene) -> list[tuple[str, str]]:
    """Every part: what it is, and its place."""
    parts = []
    for thing in scene.things:
        what = f"a {thing.size} {thing.colour} {thing.shape}"
        parts.append((what, place(scene, thing.x, thing.y)))
    for text in scene.texts:
        left, top, right, bottom = text.box
        what = f"the {text.kind} {text.answer}"
        parts.append((what, place(scene, (left + right) / 2, (top + bottom) / 2)))
    return parts


def lesson(scene: Scene, draw: Draw) -> tuple[str, str] | None:
    """A question and its answer, or None where the scene has none of the kind drawn."""
    kind = draw.weighted(list(KINDS.items()))
    parts = _places(scene)
    if kind in ("describe", "where"):
        index = draw.below(len(parts))
        what, where = parts[index]
        if index < len(scene.things):
            names = _references(scene, index)
        else:
            text = scene.texts[index - len(scene.things)]
            alone = sum(other.kind == text.kind for other in scene.texts) == 1
            names = [text.kind] if alone else []
        if not names:
            return None
        if kind == "where":
            return f"Where is the {draw.pick(names)}?", where
        return f"Describe the {draw.pick(names)}.", f"{what} at the {where}"
    if kind == "at":
        where = draw.pick(parts)[1] if draw.unit() < 0.85 else draw.pick(
            ("top left", "top", "top right", "left", "center", "right",
             "bottom left", "bottom", "bottom right")
        )  # fmt: skip
        there = [what for what, at in parts if at == where]
        if len(there) > 1:
            return None
        return f"What is at the {where}?", there[0] if there else "nothing"
    # A group from left to right, by what tells its members apart.
    if draw.unit() < 0.5:
        shape = draw.pick(
            sorted({thing.shape for thing in scene.things}) if draw.unit() < 0.85 else SHAPES
        )
        group = [(thing.x, thing.colour) for thing in scene.things if thing.shape == shape]
        name = shape
    else:
        present = sorted({thing.colour for thing in scene.things})
        name = draw.pick(present if draw.unit() < 0.85 else scene.palette)
        group = [(thing.x, thing.shape) for thing in scene.things if thing.colour == name]
        name = f"{name} object"
    group.sort()
    if any(b[0] - a[0] < 4 for a, b in pairwise(group)):
        return None  # pixels: too close to call
    return f"List the {name}s.", ", ".join(word for _, word in group) or "none"
