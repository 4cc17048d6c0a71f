"""The host's half of LLaVA-NeXT."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.methods.inputs import ATTENDED, INSIDE, PATCH
from resprune_jax.models.families.base import (
    Family,
    ImageAspect,
    ImageLayout,
    Picture,
    Pictures,
    Region,
    VisionCosts,
    image_of,
    numbered,
    own_aspect,
    pad_rows,
)
from resprune_jax.models.families.llava.family import class_token_parts, clip_costs, side_of
from resprune_jax.models.families.llava_next.anyres import AnyresTables, num_tiles, packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.llava_next.images import NextProcessor, TiledImage, stack_tiles
from resprune_jax.models.families.llava_next.module import LlavaNext
from resprune_jax.models.images.files import open_image
from resprune_jax.models.prompts import buckets, budgets
from resprune_jax.models.prompts.budgets import Keep


class NextFamily(Family):
    """LLaVA-NeXT: a picture and its tiles, packed with a newline token behind each row."""

    config_class = LlavaNextConfig
    module_class = LlavaNext
    name = "LLaVA-NeXT"

    def __init__(self, config: LlavaNextConfig, folder: Path) -> None:
        self.config = config
        self.processor = NextProcessor.from_checkpoint(folder, config)

    @property
    def gives(self) -> frozenset[str]:
        """See `Family.gives`."""
        return super().gives | {"tile"} | ATTENDED | (class_token_parts(self.config) - INSIDE)

    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        """See `Family.layout`."""
        return tiled_layout(self.config, height, width)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        own_aspect(image_aspect, self.name)
        images = [self.processor.image(image_of(p, self.name)) for row in rows for p in row]
        return self._stacked(images, numbered(rows))

    def read_smaller(
        self, rows: Sequence[Sequence[Picture]], keep: Sequence[Keep], image_aspect: ImageAspect
    ) -> Pictures:
        """See `Family.read_smaller`: the base tile alone, as LLaVA-1.5 sees a picture; no newline.

        A ratio is of all tokens that a picture would give, tiles and newlines included.
        """
        if all(own is None for own in keep):
            return self.read(rows, image_aspect)
        if None in keep:
            raise CallError(
                f"downsampling of {self.name} makes one grid a call, and some of these prompts keep"
                " every tile: ask them one after the other"
            )
        own_aspect(image_aspect, self.name)
        vision = self.config.vision
        images = [[open_image(image_of(p, self.name)) for p in row] for row in rows]
        counts = [
            min(budgets.count(own, self.layout(image.height, image.width).tokens), vision.grid**2)
            for row, own in zip(images, keep, strict=True)
            for image in row
        ]
        side = side_of(counts, self.name)
        size, most = buckets.batch_bucket(len(rows)), max(map(len, rows))
        pixels = np.zeros((len(rows), most, 3, *(side * vision.patch_size,) * 2), np.float32)
        there = np.zeros((len(rows), most), bool)
        for at, row in enumerate(images):
            there[at, : len(row)] = True
            for number, image in enumerate(row):
                pixels[at, number] = self.processor.base(image, side * vision.patch_size)[0]
        cells = np.argwhere(np.ones((side, side), bool)).astype(np.float32)
        shape = size, most * side * side
        tables = AnyresTables(
            tile_valid=pad_rows(there, size),
            index=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
            valid=pad_rows(np.repeat(there, side * side, axis=1), size),
            kind=np.full(shape, PATCH, np.int8),
            coords=np.broadcast_to(np.tile(cells, (most, 1)), (*shape, 2)),
            tile=np.zeros((*shape, 3), np.int32),
        )
        inputs: dict[str, Any] = {"pixels": pad_rows(pixels, size), "tables": tables}
        if side < vision.grid:
            inputs["smaller"] = ()  # the name alone says it, and is static
        layouts = tuple((ImageLayout(side * side),) * len(row) for row in rows)
        return Pictures(inputs, layouts, batched=True, slots=shape[1])

    def blank(self, size: tuple[int, int], batch: int) -> Pictures:
        """See `Family.blank`."""
        vision = self.config.vision
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        tiles = np.zeros((num_tiles(*size, self.config), *shape), np.float32)
        return self._stacked([TiledImage(tiles, size)] * batch, [[row] for row in range(batch)])

    def _stacked(self, images: Sequence[TiledImage], numbers: list[list[int]]) -> Pictures:
        pixels, tables = stack_tiles(
            images, self.config, rows=numbers, batch=buckets.batch_bucket(len(numbers))
        )
        counts = [self.layout(*image.size) for image in images]
        layouts = tuple(tuple(counts[i] for i in row) for row in numbers)
        inputs = {"pixels": pixels, "tables": tables}
        return Pictures(inputs, layouts, batched=True, slots=tables.index.shape[1])

    def real_pixels(self, pictures: Pictures) -> tuple[str, Any]:
        """See `Family.real_pixels`."""
        return "pixels", np.asarray(pictures.inputs["tables"].tile_valid)

    def regions(
        self, image: Image.Image, image_aspect: ImageAspect, *, together: int = 1
    ) -> list[Region]:
        """See `Family.regions`: the picture squeezed into a square, and the tiles' plane."""
        own = packing(image.height, image.width, self.config)
        patches, side = self.config.patches_per_tile, self.config.vision.grid
        base = np.arange(patches)
        regions = [Region("whole", image, (side, side), base, base, square=True)]
        if own.rows and own.columns:
            tokens = np.arange(own.rows * (own.columns + 1))
            row, column = np.divmod(tokens, own.columns + 1)
            shown = column < own.columns  # the last of each row is its newline
            cells = (row * own.columns + column)[shown]
            places = (patches + tokens)[shown]
            regions.append(Region("tiles", image, (own.rows, own.columns), places, cells))
        return regions

    @classmethod
    def layouts(cls, config: LlavaNextConfig, folder: Path) -> Callable[[int, int], ImageLayout]:
        """See `Family.layouts`."""
        return partial(tiled_layout, config)

    @classmethod
    def vision_costs(
        cls, config: LlavaNextConfig, size: tuple[int, int], layout: ImageLayout
    ) -> VisionCosts:
        """See `Family.vision_costs`; newline tokens pass no projector."""
        return clip_costs(config, layout.tokens - layout.newlines, tiles=num_tiles(*size, config))


def tiled_layout(config: LlavaNextConfig, height: int, width: int) -> ImageLayout:
    """What an image of this size gives LLaVA-NeXT."""
    own = packing(height, width, config)
    return ImageLayout(len(own.index), own.rows)
