"""What a scene is: its configuration, and the parts that it consists of."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.grounds import PALETTES, TEXTURES, Ground, Rgb
from resprune_jax.experiments.pocket.scenes.shapes import Box, outline, text_cells

PATCH = 14  # pixels, CLIP's ViT-L/14


@dataclass(frozen=True)
class Level:
    """How hard scenes are; ranges are inclusive.

    Attributes:
        objects: how many objects.
        texts: how many printed words and numbers.
        clutter: how many strokes and dots.
        textures: grounds to draw from.
        small: share of small objects.
        labelled: share of texts that stand right under or above an object.
    """

    objects: tuple[int, int]
    texts: tuple[int, int]
    clutter: tuple[int, int]
    textures: tuple[str, ...]
    small: float
    labelled: float


LEVELS = (
    Level((1, 1), (0, 0), (0, 0), TEXTURES[:1], 0.0, 0.0),
    Level((1, 2), (0, 1), (0, 0), TEXTURES[:2], 0.4, 0.0),
    Level((2, 4), (0, 1), (0, 3), TEXTURES[:3], 0.5, 0.5),
    Level((4, 6), (1, 1), (2, 7), TEXTURES, 0.6, 0.5),
    Level((6, 9), (1, 2), (5, 12), TEXTURES, 0.7, 0.6),
    Level((1, 2), (5, 7), (2, 7), TEXTURES, 0.7, 0.3),
)
"""The curriculum: from one large object on plain ground to crowded scenes, and pages of words."""
TOP, PAGES = 4, 5  # the level of the tests, and one that only training sees


@dataclass(frozen=True)
class SceneConfig:
    """What kind of scenes to draw.

    Attributes:
        grid: patches a side; the image has 14 times as many pixels a side.
        level: index into LEVELS.
        small: sizes of small objects in patches, from and to.
        large: sizes of large objects in patches.
        text: font sizes in patches.
        cases: how words are printed, of "upper", "lower" and "title".

    Raises:
        CallError: a level that does not exist, an unknown case, or sizes that could be confused.
    """

    grid: int = 12
    level: int = TOP
    small: tuple[float, float] = (1.4, 1.75)
    large: tuple[float, float] = (2.6, 3.0)
    text: tuple[float, float] = (1.1, 1.4)
    cases: tuple[str, ...] = ("upper",)

    def __post_init__(self) -> None:
        if not 0 <= self.level < len(LEVELS):
            raise CallError(f"level {self.level} does not exist: choose 0 to {TOP}")
        if not self.cases or not set(self.cases) <= {"upper", "lower", "title"}:
            raise CallError(f"cases={self.cases!r}: choose from upper, lower and title")
        if not 0 < self.small[0] <= self.small[1] < 0.75 * self.large[0] <= 0.75 * self.large[1]:
            raise CallError(
                f"small objects of {self.small} and large ones of {self.large} patches could be"
                " confused: small ones must stay below 3/4 of the least large one"
            )
        if self.large[1] > self.grid - 1:
            raise CallError(f"objects of {self.large[1]} patches do not fit a grid of {self.grid}")

    @property
    def side(self) -> int:
        """Side of the image in pixels."""
        return self.grid * PATCH

    def at_level(self, level: int) -> "SceneConfig":
        """The same scenes, easier or harder."""
        return replace(self, level=level)


PRESETS = {
    "cpu": SceneConfig(),
    "gpu": SceneConfig(grid=24, small=(1.5, 2.1), large=(3.0, 3.7), text=(1.3, 1.7)),
}
"""144 visual tokens for two CPU cores, 576 for a GPU."""


@dataclass(frozen=True)
class Thing:
    """An object. Positions and sizes are in pixels; `size` is "small" or "large"."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    extent: float
    angle: int
    rgb: Rgb

    @property
    def points(self) -> np.ndarray:
        """(P, 2) corners (x, y)."""
        return outline(self.shape, self.extent, self.angle) + np.array([self.x, self.y])

    @cached_property
    def box(self) -> Box:
        points = self.points
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Text:
    """A printed word or number; `x` and `y` are the left top corner of its box in pixels."""

    printed: str
    font: str
    em: float
    x: float
    y: float
    rgb: Rgb

    @property
    def answer(self) -> str:
        """How a question about it is answered."""
        return self.printed.lower()

    @property
    def kind(self) -> str:
        return "number" if self.printed.isdigit() else "word"

    @cached_property
    def cells(self) -> list[Box]:
        """The box of every character."""
        return [
            (left + self.x, top + self.y, right + self.x, bottom + self.y)
            for left, top, right, bottom in text_cells(self.printed, self.font, self.em)
        ]

    @cached_property
    def box(self) -> Box:
        cells = self.cells
        return (*cells[0][:2], *cells[-1][2:])


@dataclass(frozen=True)
class Stroke:
    """Clutter: a thin line of 2 or 3 points (x, y), or a dot (one point)."""

    points: tuple[tuple[float, float], ...]
    width: float
    rgb: Rgb


@dataclass(frozen=True)
class Scene:
    """Everything that is in an image."""

    config: SceneConfig
    rng_seed: int
    ground: Ground
    things: tuple[Thing, ...]
    texts: tuple[Text, ...]
    clutter: tuple[Stroke, ...]

    @property
    def palette(self) -> tuple[str, ...]:
        """Colours that stand out from this ground."""
        return PALETTES[self.ground.base]


@dataclass(frozen=True)
class Description:
    """What a phrase says of an object; None is left unsaid."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the object is one of these."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )

    @property
    def phrase(self) -> str:
        """In words, without an article."""
        return " ".join(word for word in (self.size, self.colour, self.shape or "object") if word)

    def among(self, scene: Scene) -> tuple[int, ...]:
        """Indices of the objects that it fits."""
        return tuple(i for i, thing in enumerate(scene.things) if self.fits(thing))
