"""Where things are, told only where no person would doubt it."""

from resprune_jax.experiments.pocket.scenes.parts import Scene, Thing
from resprune_jax.experiments.pocket.scenes.shapes import Box

# Least distances, as shares of the image's side; see the functions that use them.
SIDEWAYS, OFF_CENTRE, IN_LINE, OUT_OF_LINE, ADJACENT, CLEAR = (
    0.15, 0.12, 0.09, 0.18, 0.09, 0.015,
)  # fmt: skip

# Direction -> axis (0: x, 1: y), sign along it, words in a question.
DIRECTIONS = {
    "left": (0, -1, "to the left of"),
    "right": (0, 1, "to the right of"),
    "above": (1, -1, "above"),
    "below": (1, 1, "below"),
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDES = ((0, "left", "right"), (1, "top", "bottom"))


def direction_of(a: Thing, b: Thing, axis: int, side: int) -> str | None:
    """Where `a` is from `b` along an axis, or None where a person might doubt.

    Their centres must differ by SIDEWAYS of the side, and by half of what they differ across.
    """
    apart = (a.x - b.x, a.y - b.y)
    if abs(apart[axis]) < max(SIDEWAYS * side, abs(apart[1 - axis]) / 2):
        return None
    return ("left", "right", "above", "below")[2 * axis + (apart[axis] > 0)]


def side_of(box: Box, axis: int, side: int) -> str | None:
    """The half of the image that a box is in: its centre is OFF_CENTRE of the side away from it."""
    off = (box[axis] + box[axis + 2]) / 2 - side / 2
    if abs(off) < OFF_CENTRE * side:
        return None
    _, first, second = SIDES[axis]
    return second if off > 0 else first


def _beyond(box: Box, reference: Thing, axis: int, sign: int, side: int) -> bool:
    """Whether a box reaches past the reference's centre in a direction, or nearly (by CLEAR)."""
    edge = box[axis + 2] if sign > 0 else box[axis]
    return (edge - (reference.x, reference.y)[axis]) * sign > -CLEAR * side


def _off_line(box: Box, reference: Thing, axis: int) -> float:
    """How far a box is from the band that the reference sweeps along an axis, in pixels."""
    low, high = reference.box[1 - axis], reference.box[3 - axis]
    return max(box[1 - axis] - high, low - box[3 - axis])


def in_direction(scene: Scene, index: int, direction: str) -> int | None:
    """The one object that is directly in a direction from another.

    It reaches into the band that the reference sweeps, its centre within IN_LINE of the band's
    middle. Nothing else on that side, object or text, comes within CLEAR of the band, and no other
    object's centre within OUT_OF_LINE of its middle.
    """
    axis, sign, _ = DIRECTIONS[direction]
    side = scene.config.side
    reference = scene.things[index]
    centre = (reference.x, reference.y)
    found = []
    for i, thing in enumerate(scene.things):
        if i == index or not _beyond(thing.box, reference, axis, sign, side):
            continue
        across = abs((thing.x, thing.y)[1 - axis] - centre[1 - axis])
        past = ((thing.x, thing.y)[axis] - centre[axis]) * sign
        off = _off_line(thing.box, reference, axis)
        if across <= IN_LINE * side and off < 0 < past:
            found.append(i)
        elif across < OUT_OF_LINE * side or off < CLEAR * side:
            return None
    for text in scene.texts:
        box = text.box
        near = _off_line(box, reference, axis) < CLEAR * side
        if near and _beyond(box, reference, axis, sign, side):
            return None
    return found[0] if len(found) == 1 else None


def beside(scene: Scene, index: int, direction: str) -> int | None:
    """The one text that stands right under or above an object.

    The gap is at most ADJACENT of the side and the text's middle within IN_LINE of the object's;
    every other text on that side stays clear of the band that the object sweeps, by OUT_OF_LINE
    less IN_LINE of the side.
    """
    axis, sign, _ = DIRECTIONS[direction]
    side = scene.config.side
    thing = scene.things[index]
    found = []
    for i, text in enumerate(scene.texts):
        box = text.box
        if not _beyond(box, thing, axis, sign, side):
            continue
        gap = box[1] - thing.box[3] if sign > 0 else thing.box[1] - box[3]
        across = abs((box[0] + box[2]) / 2 - thing.x)
        off = _off_line(box, thing, axis)
        if 0 <= gap <= ADJACENT * side and across <= IN_LINE * side and off < 0:
            found.append(i)
        elif off < (OUT_OF_LINE - IN_LINE) * side:
            return None
    return found[0] if len(found) == 1 else None
