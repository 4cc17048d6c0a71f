"""What is to be seen in each patch, and a scene in words: labels, captions, the oracle's patches.

Patches are numbered row by row, as visual tokens are.
"""

from collections.abc import Sequence

import numpy as np

from resprune_jax.experiments.pocket.scenes.parts import PATCH, Scene
from resprune_jax.experiments.pocket.scenes.questions import Question
from resprune_jax.experiments.pocket.scenes.scene import box_cover, coverage
from resprune_jax.experiments.pocket.scenes.words import CHARACTERS, COLOURS, SHAPES, SIZES, Draw

LEAST = 0.05  # share of a patch that a part covers to count among the part's patches
LABELLED = 0.20  # share of a patch that a part covers to be what the patch shows
CLEAR = 0.01  # share of a patch below which it shows background
CHARACTER = 0.35  # share of a character's box that lies in a patch to be read there

VOCABULARY = (
    "background", "object", "word", "number", *SHAPES, *COLOURS, *SIZES, *CHARACTERS,
)  # fmt: skip
"""The words that label patches; a label is an index into it."""
SLOTS = ("kind", "shape", "colour", "size", "character", "character", "character")
"""What the columns of `dense_labels` hold."""
_ID = {word: i for i, word in enumerate(VOCABULARY)}

_PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


# --- patches of parts -----------------------------------------------------------------------------


def ranked_patches(
    scene: Scene, things: Sequence[int] = (), texts: Sequence[int] = (), *, least: float = LEAST
) -> np.ndarray:
    """The patches of parts of a scene, the parts in turn: their anchors, then what shows most.

    A budget too small for all of them thus still holds something of every part.

    Args:
        scene: the scene.
        things: indices of objects.
        texts: indices of texts.
        least: share of a patch that a part must cover; its best patch counts in any case.

    Returns:
        (P,) int32 distinct patch numbers; none without parts.
    """
    parts = [*things, *(len(scene.things) + i for i in texts)]
    cover, middle = coverage(scene), anchors(scene)
    turns = []
    for part in parts:
        row = cover[part]  # [N]
        order = np.argsort(-row, kind="stable")
        order = order[: max(1, int((row >= least).sum()))]
        turns.append(np.concatenate([order[order == middle[part]], order[order != middle[part]]]))
    longest = max((len(turn) for turn in turns), default=0)
    mixed = [turn[i] for i in range(longest) for turn in turns if i < len(turn)]
    return np.array(list(dict.fromkeys(mixed)), np.int32)


def question_patches(scene: Scene, question: Question, *, least: float = LEAST) -> np.ndarray:
    """The patches that hold what a question asks about, in the order of `ranked_patches`.

    None for an absent object that shares neither shape nor colour with any, and for a count of 0.

    Args:
        scene: the scene the question was asked of.
        question: which.
        least: see `ranked_patches`.

    Returns:
        (P,) int32.
    """
    return ranked_patches(scene, question.things, question.texts, least=least)


def named_patches(scene: Scene, word: str, *, least: float = LEAST) -> np.ndarray:
    """Which patches belong to what a noun names, for measuring how well relevance finds them.

    Args:
        scene: the scene.
        word: a shape, "object" (any), "word" or "number".
        least: see `ranked_patches`.

    Returns:
        (N,) bool.
    """
    things = [i for i, thing in enumerate(scene.things) if word in (thing.shape, "object")]
    texts = [i for i, text in enumerate(scene.texts) if word == text.kind]
    mask = np.zeros(scene.config.grid**2, bool)
    mask[ranked_patches(scene, things, texts, least=least)] = True
    return mask


# --- labels ---------------------------------------------------------------------------------------


def _shown(cover: np.ndarray, least: float) -> np.ndarray:
    """Which part each patch shows, from the parts' cover [parts, N]; -1 for none."""
    shown = np.where(cover.max(0) >= least, cover.argmax(0), -1)  # [N]
    shown[cover.argmax(1)] = np.arange(len(cover))
    return shown


def owners(scene: Scene, *, least: float = LABELLED) -> np.ndarray:
    """Which part each patch shows, as `dense_labels` has it.

    Args:
        scene: the scene.
        least: share of a patch that a part must cover.

    Returns:
        (N,) int64: the index of an object, the number of objects plus that of a text, or -1.
    """
    return _shown(coverage(scene), least)


def anchors(scene: Scene) -> np.ndarray:
    """The patch of each part that lies nearest to its middle, among those that show it.

    A part that no patch shows best is anchored where most of it is.

    Args:
        scene: the scene.

    Returns:
        (objects + texts,) int64 patch numbers, objects first.
    """
    grid = scene.config.grid
    cover = coverage(scene)
    owner = _shown(cover, LABELLED)
    boxes = [thing.box for thing in scene.things] + [text.box for text in scene.texts]
    row, column = np.divmod(np.arange(grid * grid), grid)
    out = cover.argmax(1)
    for part, (left, top, right, bottom) in enumerate(boxes):
        own = np.flatnonzero(owner == part)
        if len(own):
            x = (left + right) / 2 / PATCH - column[own] - 0.5
            y = (top + bottom) / 2 / PATCH - row[own] - 0.5
            out[part] = own[np.maximum(np.abs(x), np.abs(y)).argmin()]
    return out


def dense_labels(scene: Scene, *, least: float = LABELLED) -> np.ndarray:
    """The words that describe each patch.

    A patch shows the part that covers most of it, if that is at least `least`; every part is shown
    by its best patch at any rate. It shows background below CLEAR, and in between it has no label.
    Characters are those with at least CHARACTER of their box inside the patch, in reading order.

    Args:
        scene: the scene.
        least: share of a patch that a part must cover.

    Returns:
        (N, len(SLOTS)) int32 indices into VOCABULARY; -1 where there is none.
    """
    grid = scene.config.grid
    cover = coverage(scene)  # [parts, N]
    labels = np.full((grid * grid, len(SLOTS)), -1, np.int32)
    labels[cover.sum(0) < CLEAR, 0] = _ID["background"]
    shown = _shown(cover, least)
    for i, thing in enumerate(scene.things):
        words = ("object", thing.shape, thing.colour, thing.size)
        labels[shown == i, :4] = [_ID[word] for word in words]
    for i, text in enumerate(scene.texts, start=len(scene.things)):
        here = shown == i
        if not here.any():  # its best patch is also another part's
            continue
        labels[here, 0] = _ID[text.kind]
        count = np.zeros(grid * grid, np.int32)
        for character, box in zip(text.answer, text.cells, strict=True):
            share = box_cover(grid, box).reshape(-1)  # of the patch
            enough = CHARACTER * (box[2] - box[0]) * (box[3] - box[1]) / PATCH**2
            # One that patches share so evenly that none has enough is read in its best patch.
            inside = here & (share >= min(enough, share[here].max())) & (share > 0) & (count < 3)
            patches = np.flatnonzero(inside)
            labels[patches, 4 + count[patches]] = _ID[character]
            count[patches] += 1
    return labels


# --- words ----------------------------------------------------------------------------------------


def place(scene: Scene, x: float, y: float) -> str:
    """A position in words, by thirds of the image: "top left", "center", ..."""
    side = scene.config.side
    return _PLACES[min(2, int(3 * y / side))][min(2, int(3 * x / side))]


def caption(scene: Scene, draw: Draw) -> str:
    """Every object and text of a scene with its place, in random order.

    Args:
        scene: to describe.
        draw: for the order.

    Returns:
        For example "a small red star at the top left; the word stop at the center.".
    """
    parts = []
    for thing in scene.things:
        where = place(scene, thing.x, thing.y)
        parts.append(f"a {thing.size} {thing.colour} {thing.shape} at the {where}")
    for text in scene.texts:
        left, top, right, bottom = text.box
        where = place(scene, (left + right) / 2, (top + bottom) / 2)
        parts.append(f"the {text.kind} {text.answer} at the {where}")
    draw.shuffle(parts)
    return "; ".join(parts) + "."
