"""Questions about scenes, in five families that mirror the benchmarks, each with one right answer.

Existence as POPE asks it, counting, attributes, spatial relations as GQA asks them (its verify,
choose and open questions), and reading text as TextVQA. Answers are as balanced as scenes allow, so
that a guesser who does not see the image stays low.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.geometry import (
    DIRECTIONS,
    OPPOSITE,
    SIDES,
    beside,
    direction_of,
    in_direction,
    side_of,
)
from resprune_jax.experiments.pocket.scenes.layout import GROUP
from resprune_jax.experiments.pocket.scenes.parts import Description, Scene
from resprune_jax.experiments.pocket.scenes.words import POPULAR, SHAPES, SIZES, Draw

KINDS: dict[str, dict[str, float]] = {
    "existence": {"present": 3, "random": 1, "popular": 1, "adversarial": 1},
    "counting": {"shape": 1, "colour": 1},
    "attributes": {"colour": 0.40, "shape": 0.35, "size": 0.25},
    "relations": {"verify": 0.25, "choose": 0.20, "what": 0.40, "side": 0.15},
    "reading": {"only": 0.4, "beside": 0.4, "side": 0.2},
}
"""The kinds of questions of each family, and how often they are tried."""
FAMILIES = tuple(KINDS)

SHORT = "\nAnswer the question using a single word or phrase."
_INSTRUCTIONS = (
    (SHORT, 0.60),
    ("\nAnswer with a single word.", 0.12),
    ("\nPlease give a short answer.", 0.10),
    ("\nAnswer briefly.", 0.08),
    ("\nRespond with one word only.", 0.10),
)
_YES_NO = (("\nPlease answer yes or no.", 0.5), (" Please answer yes or no.", 0.5))
_YES_NO_SHARE = 0.35  # of the questions that are answered by yes or no


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Attributes:
        family: one of FAMILIES.
        kind: one of KINDS[family]. Existence: what is there, or the kind of negative; counting:
            what is counted; attributes: what is asked; relations: verify (yes or no), choose
            (of two directions), what (is there) or side (of the image); reading: the only text
            (of its kind), beside an object, or on a side of the image.
        question: what is asked.
        instruction: how to answer, appended to it.
        answer: the one right answer, in lower case.
        things: indices of the objects it is about. Of an absent object: those that share its shape
            or colour; of a count: those counted.
        texts: indices of the texts it is about.
    """

    family: str
    kind: str
    question: str
    instruction: str
    answer: str
    things: tuple[int, ...]
    texts: tuple[int, ...] = ()

    @property
    def prompt(self) -> str:
        """The question with its instruction, as a user would ask."""
        return self.question + self.instruction


# What a family's function returns: question, answer, things, texts; None: another try, please.
_Asked = tuple[str, str, tuple[int, ...], tuple[int, ...]]


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeio" else "a ") + phrase


def _refer(scene: Scene, index: int, draw: Draw) -> str | None:
    """A phrase that fits this object and no other, or None."""
    thing = scene.things[index]
    options = [
        (Description(thing.shape, thing.colour), 0.55),
        (Description(thing.shape), 0.30),
        (Description(thing.shape, size=thing.size), 0.15),
    ]
    unique = [(about.phrase, weight) for about, weight in options if len(about.among(scene)) == 1]
    return draw.weighted(unique) if unique else None


# --- existence ------------------------------------------------------------------------------------

_THERE = ("Is there {} in the image?", "Is there {} in the picture?", "Does the image contain {}?")


def _existence(scene: Scene, draw: Draw, kind: str) -> _Asked | None:
    # Half of the random negatives name no colour, and as many of the positives.
    bare = draw.unit() < {"present": 1 / 6, "random": 1 / 2}.get(kind, 0.0)
    pairs = [(thing.shape, thing.colour) for thing in scene.things]
    shapes = {shape for shape, _ in pairs}
    colours = {colour for _, colour in pairs}
    absent = [(s, c) for s in SHAPES for c in scene.palette if (s, c) not in pairs]
    if kind == "present":
        about = Description(draw.pick(sorted(shapes))) if bare else Description(*draw.pick(pairs))
    elif kind == "random":
        missing = [shape for shape in SHAPES if shape not in shapes]
        if bare and not missing:
            return None
        about = Description(draw.pick(missing)) if bare else Description(*draw.pick(absent))
    elif kind == "popular":
        liked = [pair for pair in absent if pair in POPULAR]
        if not liked:
            return None
        about = Description(*draw.pick(liked))
    else:
        # The hardest are those whose shape and colour are there, on different objects.
        near = [(s, c) for s, c in absent if s in shapes and c in colours]
        near = near or [(s, c) for s, c in absent if s in shapes or c in colours]
        about = Description(*draw.pick(near))
    question = draw.pick(_THERE).format(_article(about.phrase))
    if kind == "present":
        return question, "yes", about.among(scene), ()
    alike = tuple(
        i for i, thing in enumerate(scene.things)
        if thing.shape == about.shape or thing.colour == about.colour
    )  # fmt: skip
    return question, "no", alike, ()


# --- counting -------------------------------------------------------------------------------------

_HOW_MANY = (
    "How many {}s are there?",
    "How many {}s are in the image?",
    "How many {}s do you see?",
)


def _counting(scene: Scene, draw: Draw, kind: str) -> _Asked | None:
    options = (
        [Description(shape) for shape in SHAPES]
        if kind == "shape"
        else [Description(colour=colour) for colour in scene.palette]
    )
    by_count: dict[int, list[Description]] = {}
    for about in options:
        by_count.setdefault(len(about.among(scene)), []).append(about)
    most = max(by_count)
    # The repeated shape or colour has 2 to GROUP members, alike often, so these shares make every
    # answer from 0 to GROUP as likely.
    shares = {0: 1.0, 1: 1.0, most: GROUP - 1.0} if most > 1 else {0: 1.0, 1: 1.0}
    count = draw.weighted([(n, share) for n, share in shares.items() if n in by_count])
    about = draw.pick(by_count[count])
    question = draw.pick(_HOW_MANY).format(about.phrase)
    return question, str(count), about.among(scene), ()


# --- attributes -----------------------------------------------------------------------------------

_ASK = {
    "colour": ("What color is the {}?", "What is the color of the {}?"),
    "shape": ("What shape is the {}?", "What is the shape of the {}?"),
    "size": ("What size is the {}?", "Is the {} small or large?"),
}


def _attributes(scene: Scene, draw: Draw, kind: str) -> _Asked | None:
    options: list[tuple[Description, int]] = []
    for i, thing in enumerate(scene.things):
        shape = thing.shape if kind != "shape" else None
        colour = thing.colour if kind == "shape" else None
        candidates = [Description(shape, colour)]
        if kind == "size":
            candidates.append(Description(thing.shape, thing.colour))
        else:
            candidates.append(Description(shape, colour, thing.size))
        unique = [about for about in candidates if len(about.among(scene)) == 1]
        if unique:
            options.append((draw.pick(unique) if kind == "size" else unique[0], i))
    if kind == "size":
        size = draw.pick(SIZES)
        options = [(about, i) for about, i in options if scene.things[i].size == size]
    if not options:
        return None
    about, index = draw.pick(options)
    thing = scene.things[index]
    answer = {"colour": thing.colour, "shape": thing.shape, "size": thing.size}[kind]
    return draw.pick(_ASK[kind]).format(about.phrase), answer, (index,), ()


# --- relations ------------------------------------------------------------------------------------


def _relations(scene: Scene, draw: Draw, kind: str) -> _Asked | None:
    side, count = scene.config.side, len(scene.things)
    if kind == "side":
        index = draw.below(count)
        axis, first, second = draw.pick(SIDES)
        answer = side_of(scene.things[index].box, axis, side)
        name = _refer(scene, index, draw)
        if answer is None or name is None:
            return None
        form = draw.pick(
            (
                "Which side of the image is the {0} on, {1} or {2}?",
                "Is the {0} on the {1} or the {2} side of the image?",
            )
        )
        return form.format(name, first, second), answer, (index,), ()
    if count < 2:
        return None
    if kind == "what":
        options = [
            (i, direction, other)
            for i in range(count)
            for direction in DIRECTIONS
            if (other := in_direction(scene, i, direction)) is not None
        ]
        if not options:
            return None
        index, direction, other = draw.pick(options)
        name = _refer(scene, index, draw)
        if name is None:
            return None
        form, answer = draw.pick(
            (
                ("What is directly {} the {}?", scene.things[other].shape),
                ("What color is the object directly {} the {}?", scene.things[other].colour),
            )
        )
        question = form.format(DIRECTIONS[direction][2], name)
        return question, answer, (index, other), ()
    a = draw.below(count)
    b = (a + 1 + draw.below(count - 1)) % count
    where = direction_of(scene.things[a], scene.things[b], axis := draw.below(2), side)
    names = _refer(scene, a, draw), _refer(scene, b, draw)
    if where is None or None in names:
        return None
    if kind == "verify":
        says = draw.pick((where, OPPOSITE[where]))
        question = f"Is the {names[0]} {DIRECTIONS[says][2]} the {names[1]}?"
        return question, "yes" if says == where else "no", (a, b), ()
    form = ("to the left or to the right of", "above or below")[axis]
    return f"Is the {names[0]} {form} the {names[1]}?", where, (a, b), ()


# --- reading --------------------------------------------------------------------------------------


def _reading(scene: Scene, draw: Draw, kind: str) -> _Asked | None:
    texts = scene.texts
    if not texts:
        return None
    if kind == "only":
        index = draw.below(len(texts))
        noun = texts[index].kind
        if len(texts) > 1 and [text.kind for text in texts].count(noun) > 1:
            return None
        forms = ["What {} is printed in the image?", "What {} is written in the image?"]
        if len(texts) == 1:
            forms += ["What is written in the image?", "What does the printed text say?"]
        return draw.pick(forms).format(noun), texts[index].answer, (), (index,)
    if kind == "beside":
        options = [
            (i, direction, text)
            for i in range(len(scene.things))
            for direction in ("above", "below")
            if (text := beside(scene, i, direction)) is not None
        ]
        if not options:
            return None
        index, direction, found = draw.pick(options)
        name = _refer(scene, index, draw)
        if name is None:
            return None
        noun = texts[found].kind
        where = direction if direction == "above" else draw.pick(("under", "below"))
        form = draw.pick(("What {} is {} the {}?", "What {} is printed {} the {}?"))
        return form.format(noun, where, name), texts[found].answer, (index,), (found,)
    if len(texts) < 2:
        return None
    axis, *_ = draw.pick(SIDES)
    index = draw.below(len(texts))
    sides = [side_of(text.box, axis, scene.config.side) for text in texts]
    noun = texts[index].kind if draw.unit() < 0.5 else "text"
    rivals = [i for i, t in enumerate(texts) if i != index and noun in ("text", t.kind)]
    where_is = sides[index]
    if where_is is None or any(sides[i] in (None, where_is) for i in rivals):
        return None
    if noun == "text":
        question = f"What does the text on the {where_is} side of the image say?"
    else:
        question = f"What {noun} is on the {where_is} side of the image?"
    return question, texts[index].answer, (), (index,)


# --- all of them ----------------------------------------------------------------------------------

_ASKERS: dict[str, Callable[[Scene, Draw, str], _Asked | None]] = {
    "existence": _existence,
    "counting": _counting,
    "attributes": _attributes,
    "relations": _relations,
    "reading": _reading,
}


def ask(scene: Scene, draw: Draw, family: str, kind: str | None = None) -> Question | None:
    """Ask something about a scene.

    Args:
        scene: to ask about.
        draw: where the choices come from.
        family: one of FAMILIES.
        kind: one of KINDS[family], or None for any.

    Returns:
        A question, or None where the scene offers none of the kind (after a few tries).

    Raises:
        CallError: an unknown family or kind.
    """
    if family not in KINDS:
        raise CallError(f"family={family!r} is unknown: choose one of {', '.join(FAMILIES)}")
    kinds = KINDS[family]
    if kind is not None and kind not in kinds:
        raise CallError(f"kind={kind!r} is unknown to {family}: choose one of {', '.join(kinds)}")
    for _ in range(12):
        chosen = draw.weighted(list(kinds.items())) if kind is None else kind
        asked = _ASKERS[family](scene, draw, chosen)
        if asked is not None:
            question, answer, things, texts = asked
            yes_no = answer in ("yes", "no") and draw.unit() < _YES_NO_SHARE
            instruction = draw.weighted(_YES_NO if yes_no else _INSTRUCTIONS)
            return Question(family, chosen, question, instruction, answer, things, texts)
    return None


def ask_many(
    scene: Scene, draw: Draw, count: int, families: Sequence[str] = FAMILIES
) -> list[Question]:
    """Ask several different questions about a scene, the families in turn.

    Args:
        scene: to ask about.
        draw: where the choices come from.
        count: how many at most.
        families: of FAMILIES; one may be named twice to be asked twice as often.

    Returns:
        Questions whose texts all differ, in a random order of families; fewer than `count` where
        the scene has no more to offer.
    """
    questions: list[Question] = []
    seen: set[str] = set()
    turn = list(families)
    draw.shuffle(turn)
    misses = 0
    while turn and len(questions) < count and misses < 6 * len(turn):
        for family in turn:
            question = ask(scene, draw, family)
            if question is None or question.question in seen:
                misses += 1
            elif len(questions) < count:
                seen.add(question.question)
                questions.append(question)
    return questions
