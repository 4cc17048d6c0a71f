"""What each model family adds to the engine they share: images to arrays, layouts, positions.

A `Family` is the host's half of a model: it reads images and lays them out in static shapes. The
devices' half is the family's module, which turns those arrays into visual tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.mrope import Grid
from resprune_jax.models.images.files import ImageLike
from resprune_jax.models.images.video import Sampling, VideoLike
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import ImageAspect
from resprune_jax.models.towers.config import ClipConfig

Media = Literal["image", "video"]

USUAL_SIZES = ((480, 640), (336, 336), (768, 1024), (1080, 1920))
"""(height, width) in pixels of pictures as people have them."""


@dataclass(frozen=True)
class Video:
    """A video in place of an image, for families that take them.

    Attributes:
        frames: an array (T, height, width, 3) uint8, a list of pictures, a folder of pictures, or a
            video file (with the `video` extra).
        fps: frames a second, where the video does not say.
        sampling: which frames to take.
    """

    frames: VideoLike
    fps: float | None = None
    sampling: Sampling | None = None


Picture = ImageLike | Video


@dataclass(frozen=True)
class ImageLayout:
    """What the host knows of an image's visual tokens.

    Attributes:
        tokens: how many there are.
        newlines: how many of them are newline tokens.
        media: "image" or "video".
        grid: its cells, where positions depend on them.
    """

    tokens: int
    newlines: int = 0
    media: Media = "image"
    grid: Grid | None = None


Layouts = tuple[tuple[ImageLayout, ...], ...]
"""For every row, its images in order."""


@dataclass(frozen=True)
class Pictures:
    """Images of several rows as the compiled tower takes them.

    Attributes:
        inputs: a pytree of arrays, padded to buckets; rows beyond the real ones repeat the first.
        layouts: of the real rows.
        batched: whether the arrays' first axis runs over images, so that it can be sharded.
        slots: N, the visual tokens of a row in the static shape.
    """

    inputs: Any
    layouts: Layouts
    batched: bool
    slots: int


@dataclass(frozen=True)
class VisionCosts:
    """What the vision tower and the projector do for one image; 2 FLOPs a multiply-add.

    Attributes:
        grid: rows and columns of visual tokens, of one tile where there are several.
        tower_flops: of the vision tower.
        projector_flops: of the projector.
        tiles: how many pictures the tower sees.
    """

    grid: tuple[int, int]
    tower_flops: float
    projector_flops: float
    tiles: int = 1


@dataclass(frozen=True)
class Region:
    """A part of a picture that visual tokens show.

    Attributes:
        name: what it is, where a picture has several parts; else empty.
        picture: what the tokens see, at any size.
        grid: rows and columns of tokens.
        tokens: (n,) the image's visual tokens that lie on it, counted from its first.
        cells: (n,) where each of them lies, in raster order.
        square: the tower sees the picture squeezed into a square.
    """

    name: str
    picture: Image.Image
    grid: tuple[int, int]
    tokens: np.ndarray
    cells: np.ndarray
    square: bool = False


class Family(ABC):
    """The host's half of a model family.

    Attributes:
        config_class: its configuration, read from `config.json`.
        module_class: the devices' half.
        name: as users know it.
        config: the architecture.
        resprune: ResPrune's settings for this family where they are not its defaults; see
            `defaults`, which may depend on the architecture.
        positions: the rule for position ids after pruning.
        frame_span: frames of a video that its visual tokens show together.
    """

    config_class: ClassVar[type[Any]]
    module_class: ClassVar[type[CausalLM]]
    name: ClassVar[str]
    resprune: ClassVar[Mapping[str, Any]] = {}
    positions: ClassVar[Literal["reindex", "original"]] = "reindex"
    frame_span: int = 1
    config: Any

    @abstractmethod
    def __init__(self, config: Any, folder: Path) -> None:
        """Read the processor of a checkpoint's folder.

        Raises:
            CallError: settings that do not fit the model.
            RunError: a file that cannot be read.
        """

    @abstractmethod
    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        """What an image of this size in pixels gives.

        Args:
            height: in pixels.
            width: in pixels.
            together: how many images its prompt has.

        Raises:
            CallError: an image that cannot be used.
        """

    @abstractmethod
    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """Read the images of every row.

        Raises:
            CallError, RunError: an image that cannot be used.
        """

    def read_smaller(
        self, rows: Sequence[Sequence[Picture]], keep: Sequence[Keep], image_aspect: ImageAspect
    ) -> Pictures:
        """Read the images of every row made smaller, so that each gives as many tokens.

        Args:
            rows: of images.
            keep: a budget for every row, which each of its images has; None leaves them as they
                are. A ratio is of the tokens that the image would give.
            image_aspect: as in `read`.

        Raises:
            CallError, RunError: an image that cannot be used, or a budget that it cannot meet.
        """
        raise CallError(
            f"{self.name} cannot make pictures smaller: downsampling is for LLaVA-1.5,"
            " LLaVA-NeXT, Qwen2-VL and Qwen2.5-VL"
        )

    @property
    def trained_aspect(self) -> ImageAspect:
        """How the model's authors prepare a picture, also in their benchmarks."""
        return "processor"

    @property
    def gives(self) -> frozenset[str]:
        """The optional parts of `VisualTokens` that this model has; see `Method.needs`."""
        return frozenset({"features", "coords", "received"})

    @property
    def takes_clip(self) -> bool:
        """Whether its vision tower is CLIP's, so that a CLIP's head reads its features."""
        return isinstance(self.config.vision, ClipConfig)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """ResPrune's settings for this model where they are not its defaults."""
        return self.resprune

    @classmethod
    def without_processor(cls, config: Any) -> Self:
        """The family of an architecture whose checkpoint is not at hand: no picture can be read."""
        family = cls.__new__(cls)
        family.config = config
        return family

    @abstractmethod
    def blank(self, size: tuple[int, int], batch: int) -> Pictures:
        """What `read` would give for rows of one picture each, all zero; needs no processor.

        Args:
            size: (height, width) of the pictures, in pixels, as the tower sees them.
            batch: rows.
        """

    def tower_inputs(self, pixels: np.ndarray, grid: tuple[int, int, int] | None) -> Any:
        """What the module's `vision_features` takes for one picture that is already processed.

        Args:
            pixels: tiles (T, C, H, W), or patches (P, values) in the processor's order.
            grid: frames, rows and columns of patches, where a picture is one grid of them.
        """
        return {"pixels": pixels}

    def real_pixels(self, pictures: Pictures) -> tuple[str, Any]:
        """Where `read` put the pixels of a single picture.

        Returns:
            An entry of `inputs`, and the index that leaves its padding out.
        """
        return "pixels", slice(1)

    def rope(self, ids: np.ndarray, valid: np.ndarray, layouts: Layouts) -> Any:
        """Positions of unpruned prompts (B, S) as the module's `place` takes them.

        None where positions count up, so that nothing is needed.
        """
        return None

    @abstractmethod
    def regions(
        self, image: Image.Image, image_aspect: ImageAspect, *, together: int = 1
    ) -> list[Region]:
        """Which part of an upright RGB picture each visual token shows; see `layout`."""

    def frames(self, video: Video) -> AbstractContextManager[Iterable[Image.Image]]:
        """The frames of a video that the model sees."""
        raise CallError(f"{self.name} takes images, not videos")

    @classmethod
    def layouts(cls, config: Any, folder: Path) -> Callable[[int, int], ImageLayout]:
        """`layout` of a checkpoint; a family whose counts need no processor reads none."""
        return cls(config, folder).layout

    @classmethod
    def usual_sizes(cls, config: Any) -> tuple[tuple[int, int], ...]:
        """(height, width) of pictures whose costs are worth telling, the first above all."""
        return USUAL_SIZES

    @classmethod
    @abstractmethod
    def vision_costs(cls, config: Any, size: tuple[int, int], layout: ImageLayout) -> VisionCosts:
        """What tower and projector cost for an image of this (height, width)."""


def numbered(rows: Sequence[Sequence[Picture]]) -> list[list[int]]:
    """The images of every row by number, counted through the rows."""
    ends = np.cumsum([len(row) for row in rows]).tolist()
    return [list(range(end - len(row), end)) for end, row in zip(ends, rows, strict=True)]


def pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first row until the batch has `size` rows: real work, so nothing can be NaN."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])


def image_of(picture: Picture, name: str) -> ImageLike:
    if isinstance(picture, Video):
        raise CallError(f"{name} takes images, not videos: give frames of it as images")
    return picture


def own_aspect(image_aspect: ImageAspect, name: str) -> None:
    if image_aspect != "processor":
        raise CallError(
            f'image_aspect="{image_aspect}" is a way of LLaVA-1.5 to prepare images; {name} keeps'
            " their aspect ratio: leave it out"
        )
