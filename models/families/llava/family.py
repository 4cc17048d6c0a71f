"""The host's half of LLaVA-1.5."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax import costs
from resprune_jax.errors import CallError
from resprune_jax.methods.inputs import ATTENDED, BEHIND, CLASS_TOKEN
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
    pad_rows,
)
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.images import ImageProcessor, seen_by_model
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.prompts import buckets, budgets
from resprune_jax.models.prompts.budgets import Keep

WITHOUT_CLASS_TOKEN: Mapping[str, Any] = {"seed_rule": "max_norm"}
"""ResPrune's settings for towers like SigLIP's."""


class LlavaFamily(Family):
    """LLaVA-1.5 and llava-interleave: every image as many tokens, positions that count up."""

    config_class = LlavaConfig
    module_class = Llava
    name = "LLaVA-1.5"

    def __init__(self, config: LlavaConfig, folder: Path) -> None:
        self.config = config
        vision = config.vision
        self.processor = ImageProcessor.from_checkpoint(
            folder, vision.image_size, vision.model_type
        )

    @property
    def trained_aspect(self) -> ImageAspect:
        """See `Family.trained_aspect`: LLaVA-1.5 pads, where the processor of its port crops."""
        return "pad" if self.processor.way("processor") == "crop" else "processor"

    @property
    def gives(self) -> frozenset[str]:
        """See `Family.gives`: what a class token shows where there is one."""
        shown = class_token_parts(self.config) if self.config.vision.class_token else frozenset()
        return super().gives | {"tile"} | ATTENDED | shown

    @property
    def defaults(self) -> Mapping[str, Any]:
        """See `Family.defaults`: without a class token there is no attention of it."""
        return self.resprune if self.config.vision.class_token else WITHOUT_CLASS_TOKEN

    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        """See `Family.layout`."""
        return ImageLayout(self.config.num_visual_tokens)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        return self._read(rows, image_aspect, self.config.vision.grid)

    def read_smaller(
        self, rows: Sequence[Sequence[Picture]], keep: Sequence[Keep], image_aspect: ImageAspect
    ) -> Pictures:
        """See `Family.read_smaller`: round(sqrt(keep)) cells a side, the same for all rows."""
        full = self.config.num_visual_tokens
        counts = [budgets.count(own, full) for own in keep]
        return self._read(rows, image_aspect, side_of(counts, self.name))

    def _read(
        self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect, grid: int
    ) -> Pictures:
        """The pictures at a grid of `grid` x `grid` patches."""
        flat = [image_of(picture, self.name) for row in rows for picture in row]
        vision = self.config.vision
        processor = self.processor
        if grid < vision.grid:
            processor = processor.smaller(grid * vision.patch_size)
        pixels = processor(flat, image_aspect)  # [I, 3, H, W]
        inputs: dict[str, Any] = {"pixels": pad_rows(pixels, buckets.batch_bucket(len(pixels)))}
        if grid < vision.grid:
            inputs["smaller"] = ()  # the name alone says it, and is static
        if any(len(row) != 1 for row in rows):
            table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
            for row, own in enumerate(numbered(rows)):
                table[row, : len(own)] = own
            inputs["rows"] = pad_rows(table, buckets.batch_bucket(len(rows)))
        layout = ImageLayout(grid * grid)
        slots = max(map(len, rows)) * layout.tokens
        layouts = tuple((layout,) * len(row) for row in rows)
        return Pictures(inputs, layouts, batched=True, slots=slots)

    def blank(self, size: tuple[int, int], batch: int) -> Pictures:
        """See `Family.blank`: the tower's own size, whatever the picture's."""
        vision, layout = self.config.vision, ImageLayout(self.config.num_visual_tokens)
        shape = (vision.num_channels, vision.image_size, vision.image_size)
        pixels = np.zeros((buckets.batch_bucket(batch), *shape), np.float32)
        return Pictures({"pixels": pixels}, ((layout,),) * batch, batched=True, slots=layout.tokens)

    def regions(
        self, image: Image.Image, image_aspect: ImageAspect, *, together: int = 1
    ) -> list[Region]:
        """See `Family.regions`: the square that enters the tower."""
        grid, cells = self.config.vision.grid, np.arange(self.config.num_visual_tokens)
        way = self.processor.way(image_aspect)
        if way == "squeeze":
            return [Region("", image, (grid, grid), cells, cells, square=True)]
        seen = seen_by_model(
            image,
            image_aspect="pad" if way == "pad" else "processor",
            image_size=self.config.vision.image_size,
        )
        return [Region("", seen, (grid, grid), cells, cells)]

    @classmethod
    def layouts(cls, config: LlavaConfig, folder: Path) -> Callable[[int, int], ImageLayout]:
        """See `Family.layouts`."""
        return lambda height, width: ImageLayout(config.num_visual_tokens)

    @classmethod
    def usual_sizes(cls, config: LlavaConfig) -> tuple[tuple[int, int], ...]:
        """See `Family.usual_sizes`: all give the same."""
        return ((config.vision.image_size,) * 2,)

    @classmethod
    def vision_costs(
        cls, config: LlavaConfig, size: tuple[int, int], layout: ImageLayout
    ) -> VisionCosts:
        """See `Family.vision_costs`."""
        return clip_costs(config, layout.tokens)


def class_token_parts(config: LlavaConfig | Any) -> frozenset[str]:
    """What a CLIP tower shows: of the block behind the last that runs, where there is one."""
    behind = config.num_vision_blocks < config.vision.num_layers
    return CLASS_TOKEN if behind else CLASS_TOKEN - BEHIND


def side_of(counts: Iterable[int], name: str) -> int:
    """The cells a side of pictures that are to give so many tokens: round(sqrt(count)), one grid.

    Raises:
        CallError: counts of different grids, which one batch of a tower cannot hold.
    """
    sides = sorted({max(1, round(math.sqrt(count))) for count in counts})
    if len(sides) > 1:
        grids = ", ".join(f"{side} x {side}" for side in sides)
        raise CallError(
            f"downsampling of {name} makes one grid a call, and these budgets give {grids}: ask"
            " them one after the other"
        )
    return sides[0]


def clip_costs(config: LlavaConfig | Any, projected: int, *, tiles: int = 1) -> VisionCosts:
    """Costs of a tower of plain blocks and a projector.

    Args:
        config: the architecture.
        projected: visual tokens that pass the projector.
        tiles: pictures that pass the tower.
    """
    vision = config.vision
    tower = costs.vision_tower_flops(
        vision.num_patches,
        layers=config.num_vision_blocks,
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        patch_values=vision.num_channels * vision.patch_size**2,
        cls_token=vision.class_token,
    )
    projector = costs.projector_flops(
        projected, vision_hidden=vision.hidden_size, hidden=config.text.hidden_size
    )
    return VisionCosts((vision.grid, vision.grid), tiles * tower, projector, tiles)
