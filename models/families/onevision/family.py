"""The host's half of LLaVA-OneVision."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from resprune_jax.models.decoder.mrope import Grid
from resprune_jax.models.families.base import (
    Family,
    ImageAspect,
    ImageLayout,
    Picture,
    Pictures,
    Region,
    Video,
    VisionCosts,
    own_aspect,
)
from resprune_jax.models.families.llava.family import WITHOUT_CLASS_TOKEN, clip_costs
from resprune_jax.models.families.llava_next.anyres import num_tiles
from resprune_jax.models.families.onevision import packing
from resprune_jax.models.families.onevision.config import OneVisionConfig
from resprune_jax.models.families.onevision.images import OneVisionProcessor
from resprune_jax.models.families.onevision.module import OneVision
from resprune_jax.models.families.onevision.packing import Packed
from resprune_jax.models.images.video import read_video
from resprune_jax.models.prompts import buckets

Read = tuple[np.ndarray, Packed, ImageLayout]
"""The tiles (T, 3, S, S) of a picture or video, how they are packed, and what the host knows."""

_DRAWN_SIDE = 672  # pixels of a padded picture in the overlay


class OneVisionFamily(Family):
    """LLaVA-OneVision: a picture and its tiles, several pictures or videos, positions count up."""

    config_class = OneVisionConfig
    module_class = OneVision
    name = "LLaVA-OneVision"
    resprune: ClassVar[Mapping[str, Any]] = WITHOUT_CLASS_TOKEN

    def __init__(self, config: OneVisionConfig, folder: Path) -> None:
        self.config = config
        self.processor = OneVisionProcessor.from_checkpoint(folder, config)

    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        """See `Family.layout`; one of several images gives its base tile and a newline."""
        return image_layout(self.config, height, width, together=together)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        own_aspect(image_aspect, self.name)
        return self._stacked([self._read_row(row) for row in rows])

    def blank(self, size: tuple[int, int], batch: int) -> Pictures:
        """See `Family.blank`."""
        tiles = self._tiles(num_tiles(*size, self.config))
        own = packing.picture(*size, self.config)
        return self._stacked([[(tiles, own, self.layout(*size))]] * batch)

    def real_pixels(self, pictures: Pictures) -> tuple[str, Any]:
        """See `Family.real_pixels`."""
        return "pixels", np.asarray(pictures.inputs["tables"].tile_valid)

    def _read_row(self, row: Sequence[Picture]) -> list[Read]:
        """A prompt's pictures; what one gives depends on whether there are others."""
        together = sum(not isinstance(picture, Video) for picture in row)
        return [self._read(picture, together) for picture in row]

    def _read(self, picture: Picture, together: int) -> Read:
        config = self.config
        if isinstance(picture, Video):
            tiles, fps = self.processor.video(
                picture.frames, fps=picture.fps, sampling=picture.sampling
            )
            own = packing.video(len(tiles), config)
            grid = Grid(len(tiles), config.pooled, config.pooled, 1 / fps)
            return tiles, own, ImageLayout(len(own.index), 1, "video", grid)
        if together > 1:
            own = packing.one_of_several(config)
            return self.processor.one_of_several(picture), own, ImageLayout(len(own.index), 1)
        tiles, size = self.processor.alone(picture)
        return tiles, packing.picture(*size, config), self.layout(*size)

    def _tiles(self, *shape: int) -> np.ndarray:
        """Room for tiles (..., 3, S, S)."""
        vision = self.config.vision
        whole = (*shape, vision.num_channels, vision.image_size, vision.image_size)
        return np.zeros(whole, np.float32)

    def _stacked(self, rows: list[list[Read]]) -> Pictures:
        tables = packing.make_tables(
            [[own for _, own, _ in row] for row in rows],
            self.config,
            batch=buckets.batch_bucket(len(rows)),
        )
        pixels = self._tiles(*tables.tile_valid.shape)
        for at in range(len(pixels)):
            own = np.concatenate([tiles for tiles, _, _ in rows[at if at < len(rows) else 0]])
            pixels[at, : len(own)] = own
        layouts = tuple(tuple(layout for _, _, layout in row) for row in rows)
        inputs = {"pixels": pixels, "tables": tables}
        return Pictures(inputs, layouts, batched=True, slots=tables.valid.shape[1])

    def regions(
        self, image: Image.Image, image_aspect: ImageAspect, *, together: int = 1
    ) -> list[Region]:
        """See `Family.regions`: the picture squeezed into a square and the tiles' plane, or the
        picture on a square where there are others."""
        side = self.config.vision.grid
        base = np.arange(self.config.patches_per_tile)
        if together > 1:
            return [Region("", self.processor.padded(image, _DRAWN_SIDE), (side, side), base, base)]
        own = packing.picture(image.height, image.width, self.config)
        regions = [Region("whole", image, (side, side), base, base, square=True)]
        rows, columns = own.grid
        if rows and columns:
            tokens = np.arange(rows * (columns + 1))
            row, column = np.divmod(tokens, columns + 1)
            shown = column < columns  # the last of each row is its newline
            cells = (row * columns + column)[shown]
            regions.append(Region("tiles", image, own.grid, (len(base) + tokens)[shown], cells))
        return regions

    def frames(self, video: Video) -> AbstractContextManager[Iterable[Image.Image]]:
        """See `Family.frames`."""
        return read_video(video.frames, fps=video.fps, sampling=video.sampling, group=1)

    @classmethod
    def layouts(cls, config: OneVisionConfig, folder: Path) -> Callable[[int, int], ImageLayout]:
        """See `Family.layouts`."""
        return partial(image_layout, config)

    @classmethod
    def vision_costs(
        cls, config: OneVisionConfig, size: tuple[int, int], layout: ImageLayout
    ) -> VisionCosts:
        """See `Family.vision_costs`; every patch of every tile passes the projector."""
        tiles = num_tiles(*size, config)
        return clip_costs(config, tiles * config.patches_per_tile, tiles=tiles)


def image_layout(
    config: OneVisionConfig, height: int, width: int, *, together: int = 1
) -> ImageLayout:
    """What an image of this size gives LLaVA-OneVision, with so many images in its prompt."""
    if together > 1:
        return ImageLayout(len(packing.one_of_several(config).index), 1)
    own = packing.picture(height, width, config)
    return ImageLayout(len(own.index), own.grid[0])
