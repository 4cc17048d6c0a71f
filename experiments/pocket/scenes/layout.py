"""Where the parts of a scene are: distinct objects, texts beside them, clutter in between."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from resprune_jax.experiments.pocket.scenes.grounds import GROUNDS, INKS, PALETTES
from resprune_jax.experiments.pocket.scenes.parts import (
    LEVELS,
    PATCH,
    Level,
    SceneConfig,
    Stroke,
    Text,
    Thing,
)
from resprune_jax.experiments.pocket.scenes.shapes import FINE, FONTS, TURN, Box
from resprune_jax.experiments.pocket.scenes.words import COLOURS, POPULAR, SHAPES, WORDS, Draw

EDGE, GAP, TEXT_GAP = 2.0, 3.0, 2.5  # least distances in pixels: to the border, between items
POPULAR_SHARE = 0.4  # of the colours are drawn from the popular ones of the shape
GROUP = 4  # at most so many objects share a shape or a colour by design


class NoRoomError(Exception):
    """No place is left: start the layout anew."""


def _apart(a: Box, b: Box, gap: float) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def snap(value: float) -> float:
    return round(value * FINE) / FINE


def _place(draw: Draw, side: int, size: tuple[float, float], taken: Sequence[Box]) -> Box:
    """A free box of this width and height.

    Raises:
        NoRoomError: none was found.
    """
    width, height = size
    if width > side - 2 * EDGE or height > side - 2 * EDGE:
        raise NoRoomError
    for _ in range(60):
        left = snap(draw.uniform(EDGE, side - EDGE - width))
        top = snap(draw.uniform(EDGE, side - EDGE - height))
        box = (left, top, left + width, top + height)
        if all(_apart(box, other, GAP) for other in taken):
            return box
    raise NoRoomError


def _colour_of(draw: Draw, shape: str, choices: Sequence[str]) -> str:
    """A colour for a shape, more often one of its popular ones."""
    liked = [colour for colour in choices if (shape, colour) in POPULAR]
    return draw.pick(liked if liked and draw.unit() < POPULAR_SHARE else choices)


def _pairs(draw: Draw, level: Level, palette: Sequence[str]) -> list[tuple[str, str]]:
    """Shapes and colours of the objects: distinct pairs, one repeated shape, one repeated colour.

    In crowded scenes both repeat 2 to GROUP times, alike often where there is room, so that "how
    many" has no likeliest answer; in others from once to as often as there are objects.
    """
    low, high = level.objects
    shape, colour = draw.pick(SHAPES), draw.pick(palette)
    if low >= GROUP:
        alike = draw.between(2, GROUP)
        tinted = min(draw.between(2, GROUP), high + 1 - alike)
        count = max(draw.between(low, high), alike + tinted - 1)
    else:
        count = draw.between(low, high)
        alike = draw.between(1, min(GROUP, count))
        tinted = draw.between(1, min(GROUP, count + 1 - alike))
    pairs = [(shape, colour)]  # belongs to both groups
    others = [other for other in palette if other != colour]
    while len(pairs) < alike:
        other = _colour_of(draw, shape, others)
        others.remove(other)
        pairs.append((shape, other))
    rest = [other for other in SHAPES if other != shape]
    for _ in range(tinted - 1):
        # The shape that this colour suits: popular pairs stay popular.
        liked = [other for other in rest if (other, colour) in POPULAR]
        other = draw.pick(liked if liked and draw.unit() < POPULAR_SHARE else rest)
        rest.remove(other)
        pairs.append((other, colour))
    while len(pairs) < count:
        other = draw.pick([name for name in SHAPES if name != shape])
        pair = (other, _colour_of(draw, other, [name for name in palette if name != colour]))
        if pair not in pairs:
            pairs.append(pair)
    draw.shuffle(pairs)
    return pairs


def _things(draw: Draw, config: SceneConfig, pairs: Sequence[tuple[str, str]]) -> Iterator[Thing]:
    """Objects without a place yet, the largest first."""
    level = LEVELS[config.level]
    sizes = ["small" if draw.unit() < level.small else "large" for _ in pairs]
    for wanted in ("large", "small"):
        for (shape, colour), size in zip(pairs, sizes, strict=True):
            if size != wanted:
                continue
            low, high = config.small if size == "small" else config.large
            turn = TURN.get(shape, 12)
            rgb = tuple(min(255, max(0, v + draw.between(-10, 10))) for v in COLOURS[colour])
            yield Thing(
                shape, colour, size, 0.0, 0.0,
                extent=round(draw.uniform(low, high) * PATCH * 2) / 2,
                angle=draw.between(-turn, turn), rgb=(rgb[0], rgb[1], rgb[2]),
            )  # fmt: skip


def _text(draw: Draw, config: SceneConfig, base: int, used: Sequence[str]) -> Text:
    """A text without a place yet, unlike those used."""
    while True:
        if draw.unit() < 0.5:
            printed = str(draw.between(10, 99) if draw.unit() < 0.5 else draw.between(100, 999))
        else:
            word = draw.pick(WORDS)
            case = draw.pick(config.cases)
            printed = {"upper": word.upper(), "lower": word, "title": word.title()}[case]
        if printed not in used:
            break
    em = round(draw.uniform(*config.text) * PATCH * 2) / 2
    return Text(printed, draw.pick(FONTS), em, 0.0, 0.0, draw.pick(INKS[base]))


def layout(
    draw: Draw, config: SceneConfig, base: int
) -> tuple[tuple[Thing, ...], tuple[Text, ...]]:
    """Objects and texts in their places, none overlapping.

    Raises:
        NoRoomError: there was no room.
    """
    level = LEVELS[config.level]
    loose = list(_things(draw, config, _pairs(draw, level, PALETTES[base])))
    texts: list[Text] = []
    taken: list[Box] = []
    things: list[Thing] = []
    labels: list[Text | None] = [None] * len(loose)
    for _ in range(draw.between(*level.texts)):
        text = _text(draw, config, base, [t.printed for t in texts])
        texts.append(text)
        bare = [i for i, label in enumerate(labels) if label is None]
        if bare and draw.unit() < level.labelled:
            labels[draw.pick(bare)] = text
    placed: list[Text] = []

    def put(thing: Thing | None, text: Text | None) -> None:
        """Place an object, a text, or both with the text right under or above the object."""
        wide = high = 0.0
        if thing is not None:
            shape = thing.box
            wide, high = shape[2] - shape[0], shape[3] - shape[1]
        if text is not None:
            words = text.box
            wide = max(wide, words[2])
            high += words[3] + (TEXT_GAP if thing is not None else 0.0)
        below = draw.unit() < 0.5
        box = _place(draw, config.side, (wide, high), taken)
        middle = (box[0] + box[2]) / 2
        if text is not None:
            top = box[3] - words[3] if below or thing is None else box[1]
            text = replace(text, x=snap(middle - words[2] / 2), y=snap(top))
            placed.append(text)
            taken.append(text.box)
        if thing is not None:
            top = box[1] if below or text is None else box[3] - (shape[3] - shape[1])
            x = snap(middle - (shape[0] + shape[2]) / 2)
            thing = replace(thing, x=x, y=snap(top - shape[1]))
            things.append(thing)
            taken.append(thing.box)

    for thing, label in zip(loose, labels, strict=True):
        if label is not None:
            put(thing, label)
    for text in texts:
        if text not in labels:
            put(None, text)
    for thing, label in zip(loose, labels, strict=True):
        if label is None:
            put(thing, None)
    return tuple(things), tuple(placed)


def clutter(draw: Draw, config: SceneConfig, base: int, taken: Sequence[Box]) -> Iterator[Stroke]:
    """Thin strokes and dots between the objects, too faint and small to be one."""
    ground, side = GROUNDS[base], config.side
    for _ in range(draw.between(*LEVELS[config.level].clutter) * (config.grid // 12 or 1) ** 2):
        tint = draw.pick(tuple(COLOURS.values()))
        share = draw.uniform(0.30, 0.45)
        rgb = tuple(round(g + share * (t - g)) for g, t in zip(ground, tint, strict=True))
        width = snap(draw.uniform(1.0, 1.6))
        points = [(snap(draw.uniform(4, side - 4)), snap(draw.uniform(4, side - 4)))]
        if draw.unit() < 0.3:
            width = snap(draw.uniform(1.8, 3.0))
        else:
            for _ in range(draw.between(1, 2)):  # three could close to a shape
                x, y = points[-1]
                points.append((snap(x + draw.uniform(-10, 10)), snap(y + draw.uniform(-10, 10))))
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = (min(xs) - width, min(ys) - width, max(xs) + width, max(ys) + width)
        inside = box[0] >= 0 and box[1] >= 0 and box[2] <= side and box[3] <= side
        if inside and all(_apart(box, other, GAP) for other in taken):
            yield Stroke(tuple(points), width, (rgb[0], rgb[1], rgb[2]))
