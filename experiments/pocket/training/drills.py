"""Drills: facts about a scene in the tersest form, many in one segment.

A question is a dozen tokens for one answered word, and its answer stands far from the noun that it
hangs on. In a drill the answer follows its noun at once, "red square yes blue star no": what is to
be learnt first, that a word looks for the visual tokens that show it, is one step of attention away
from the loss, and a segment holds twenty facts instead of four. Questions come after.
"""

from resprune_jax.experiments.pocket.scenes.geometry import (
    DIRECTIONS,
    beside,
    direction_of,
    in_direction,
    side_of,
)
from resprune_jax.experiments.pocket.scenes.labels import place
from resprune_jax.experiments.pocket.scenes.parts import Description, Scene
from resprune_jax.experiments.pocket.scenes.words import SHAPES, Draw

Fact = tuple[str, str]
"""(what is said, what follows from it); the second part is learnt."""

OPENINGS = {
    "check": "is there",
    "count": "how many",
    "name": "describe",
    "where": "where is",
    "side": "which side is",
    "what": "what is",
    "compare": "is",
    "read": "what is written",
}
"""The kinds of drills and the words that announce them."""
DRILLS = tuple(OPENINGS)


def _all_descriptions(scene: Scene) -> list[Description]:
    """One word or two: every shape and colour, and their pairs."""
    shapes, colours = SHAPES, scene.palette
    one = [Description(shape) for shape in shapes] + [Description(None, c) for c in colours]
    return one + [Description(shape, colour) for shape in shapes for colour in colours]


def _check(scene: Scene, draw: Draw) -> Fact:
    """Yes or no alike; what is not there shares a word with what is, two times out of three."""
    word = draw.unit() < 0.4
    options = [d for d in _all_descriptions(scene) if (None in (d.shape, d.colour)) == word]
    there = [about for about in options if about.among(scene)]
    absent = [about for about in options if not about.among(scene)]
    near = [
        about
        for about in absent
        if Description(about.shape).among(scene) and Description(None, about.colour).among(scene)
    ]
    if draw.unit() < 0.5 or not absent:
        return draw.pick(there).phrase, "yes"
    return draw.pick(near if near and not word and draw.unit() < 0.67 else absent).phrase, "no"


def _count(scene: Scene, draw: Draw) -> Fact:
    by_count: dict[int, list[Description]] = {}
    for about in _all_descriptions(scene)[: len(SHAPES) + len(scene.palette)]:
        by_count.setdefault(len(about.among(scene)), []).append(about)
    count = draw.pick(sorted(by_count))
    return draw.pick(by_count[count]).phrase, str(count)


def _names(scene: Scene, index: int) -> list[Description]:
    """What fits this object and no other, in as few words as possible first."""
    thing = scene.things[index]
    options = (
        Description(thing.shape),
        Description(None, thing.colour),
        Description(thing.shape, thing.colour),
        Description(thing.shape, size=thing.size),
        Description(None, thing.colour, thing.size),
    )
    return [about for about in options if len(about.among(scene)) == 1]


def _some_name(scene: Scene, draw: Draw) -> tuple[int, Description] | None:
    index = draw.below(len(scene.things))
    names = _names(scene, index)
    return (index, draw.pick(names)) if names else None


def _name(scene: Scene, draw: Draw) -> Fact | None:
    """All that a name leaves unsaid: size, colour, shape."""
    named = _some_name(scene, draw)
    if named is None:
        return None
    index, about = named
    thing = scene.things[index]
    rest = [
        value
        for said, value in (
            (about.size, thing.size),
            (about.colour, thing.colour),
            (about.shape, thing.shape),
        )
        if said is None
    ]
    return about.phrase + ":", " ".join(rest)


def _where(scene: Scene, draw: Draw) -> Fact | None:
    if scene.texts and draw.unit() < 0.25:
        text = draw.pick(scene.texts)
        if [other.kind for other in scene.texts].count(text.kind) > 1:
            return None
        left, top, right, bottom = text.box
        return f"{text.kind}:", place(scene, (left + right) / 2, (top + bottom) / 2)
    named = _some_name(scene, draw)
    if named is None:
        return None
    thing = scene.things[named[0]]
    return named[1].phrase + ":", place(scene, thing.x, thing.y)


def _side(scene: Scene, draw: Draw) -> Fact | None:
    named = _some_name(scene, draw)
    if named is None:
        return None
    axis = draw.below(2)
    side = side_of(scene.things[named[0]].box, axis, scene.config.side)
    if side is None:
        return None
    return f"{named[1].phrase} {('left or right', 'top or bottom')[axis]}", side


def _what(scene: Scene, draw: Draw) -> Fact | None:
    """What is directly beside something."""
    named = _some_name(scene, draw)
    if named is None:
        return None
    direction = draw.pick(tuple(DIRECTIONS))
    other = in_direction(scene, named[0], direction)
    if other is None:
        return None
    thing = scene.things[other]
    return (
        f"{DIRECTIONS[direction][2]} the {named[1].phrase}:",
        f"{thing.colour} {thing.shape}",
    )


def _compare(scene: Scene, draw: Draw) -> Fact | None:
    if len(scene.things) < 2:
        return None
    a, b = _some_name(scene, draw), _some_name(scene, draw)
    if a is None or b is None or a[0] == b[0]:
        return None
    axis = draw.below(2)
    where = direction_of(scene.things[a[0]], scene.things[b[0]], axis, scene.config.side)
    if where is None:
        return None
    form = ("to the left or to the right of", "above or below")[axis]
    return f"{a[1].phrase} {form} the {b[1].phrase}:", where


def _read(scene: Scene, draw: Draw) -> Fact | None:
    if not scene.texts:
        return None
    text = draw.pick(scene.texts)
    kind = draw.unit()
    alone = [other.kind for other in scene.texts].count(text.kind) == 1
    if kind < 0.3:
        return (f"{text.kind}:", text.answer) if alone else None
    if kind < 0.6:
        left, top, right, bottom = text.box
        where = place(scene, (left + right) / 2, (top + bottom) / 2)
        there = [
            other
            for other in scene.texts
            if place(scene, sum(other.box[::2]) / 2, sum(other.box[1::2]) / 2) == where
        ]
        return (f"{where}:", text.answer) if len(there) == 1 else None
    named = _some_name(scene, draw)
    if named is None:
        return None
    direction = draw.pick(("above", "below"))
    found = beside(scene, named[0], direction)
    if found is None:
        return None
    return f"{direction} the {named[1].phrase}:", scene.texts[found].answer


_DRAWN = {
    "check": _check,
    "count": _count,
    "name": _name,
    "where": _where,
    "side": _side,
    "what": _what,
    "compare": _compare,
    "read": _read,
}


def drill(scene: Scene, draw: Draw, kind: str, most: int = 16) -> list[Fact]:
    """Facts of one kind about a scene.

    Args:
        scene: with one object at least.
        draw: where the choices come from.
        kind: one of DRILLS.
        most: facts, at most.

    Returns:
        Different facts, as far as tries found them; none where the scene has none of the kind.
    """
    facts: dict[Fact, None] = {}
    for _ in range(3 * most):
        fact = _DRAWN[kind](scene, draw)
        if fact is not None:
            facts[fact] = None
    # A scene has few things and lacks many: what it lacks would be most of the facts.
    lacking = [fact for fact in facts if fact[1] in ("no", "0")]
    others = [fact for fact in facts if fact[1] not in ("no", "0")]
    both = others[:most] + lacking[: max(1, len(others) // (2 if kind == "count" else 1))]
    draw.shuffle(both)
    return both[:most]
