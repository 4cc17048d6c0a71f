"""The host's half of Qwen2.5-VL and Qwen2-VL."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from resprune_jax import costs
from resprune_jax.models.decoder.mrope import Grid, rope_index, token_kinds
from resprune_jax.models.families.base import (
    Family,
    ImageAspect,
    ImageLayout,
    Layouts,
    Media,
    Picture,
    Pictures,
    Region,
    Video,
    VisionCosts,
    image_of,
    numbered,
    own_aspect,
)
from resprune_jax.models.families.qwen_vl.config import Qwen2VLConfig, Qwen25VLConfig
from resprune_jax.models.families.qwen_vl.images import QwenProcessor, VisionInput, pack
from resprune_jax.models.families.qwen_vl.module import Qwen2VL, Qwen25VL
from resprune_jax.models.images.video import read_video
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig


class QwenFamily(Family):
    """Qwen2.5-VL: images and videos of any size in one packed batch, M-RoPE positions."""

    config_class = Qwen25VLConfig
    module_class = Qwen25VL
    name = "Qwen2.5-VL"
    resprune: ClassVar[Mapping[str, Any]] = {"alpha": 0.3, "seed_rule": "max_norm"}
    positions: ClassVar[Literal["reindex", "original"]] = "original"

    def __init__(self, config: Qwen25VLConfig, folder: Path) -> None:
        self.config = config
        self.processor = QwenProcessor.from_checkpoint(folder, config.vision)

    @property
    def frame_span(self) -> int:  # type: ignore[override]
        """See `Family.frame_span`."""
        return self.config.vision.temporal_patch_size

    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        """See `Family.layout`."""
        _, rows, columns = self.processor.grid(height, width)
        side = self.config.vision.spatial_merge_size
        grid = Grid(1, rows // side, columns // side)
        return ImageLayout(grid.num_tokens, grid=grid)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        own_aspect(image_aspect, self.name)
        inputs = [self._input(picture) for row in rows for picture in row]
        return self._packed(inputs, numbered(rows))

    def read_smaller(
        self, rows: Sequence[Sequence[Picture]], keep: Sequence[Keep], image_aspect: ImageAspect
    ) -> Pictures:
        """See `Family.read_smaller`: each picture under an area of its own budget."""
        own_aspect(image_aspect, self.name)
        inputs = [
            self.processor.smaller(image_of(picture, f"downsampling of {self.name}"), own)
            for row, own in zip(rows, keep, strict=True)
            for picture in row
        ]
        return self._packed(inputs, numbered(rows))

    def blank(self, size: tuple[int, int], batch: int) -> Pictures:
        """See `Family.blank`; the processor's limits of an area do not count."""
        vision = self.config.vision
        rows, columns = (side // vision.pixel_factor * vision.spatial_merge_size for side in size)
        patches = np.zeros((rows * columns, vision.patch_values), np.float32)
        image = VisionInput(patches, (1, rows, columns))
        return self._packed([image] * batch, [[row] for row in range(batch)])

    def tower_inputs(self, pixels: np.ndarray, grid: tuple[int, int, int] | None) -> Any:
        """See `Family.tower_inputs`."""
        assert grid is not None
        return self._packed([VisionInput(pixels, grid)], [[0]]).inputs

    def real_pixels(self, pictures: Pictures) -> tuple[str, Any]:
        """See `Family.real_pixels`."""
        ((image,),) = pictures.layouts
        return "patches", slice(image.tokens * self.config.vision.merge_unit)

    def _packed(self, inputs: list[VisionInput], numbers: list[list[int]]) -> Pictures:
        patches, tables = pack(
            inputs, self.config.vision, rows=numbers, batch=buckets.batch_bucket(len(numbers))
        )
        layouts = tuple(tuple(self._layout(inputs[i]) for i in row) for row in numbers)
        packed = {"patches": patches, "tables": tables}
        return Pictures(packed, layouts, batched=False, slots=tables.tokens.shape[1])

    def _input(self, picture: Picture) -> VisionInput:
        if isinstance(picture, Video):
            return self.processor.video(picture.frames, fps=picture.fps, sampling=picture.sampling)
        return self.processor.image(picture)

    def _layout(self, read: VisionInput) -> ImageLayout:
        grid = read.cells(self.config.vision)
        media: Media = "image" if read.seconds is None else "video"
        return ImageLayout(grid.num_tokens, media=media, grid=grid)

    def rope(self, ids: np.ndarray, valid: np.ndarray, layouts: Layouts) -> Any:
        """See `Family.rope`."""
        config = self.config
        kinds = token_kinds(ids, config.image_token_id, config.video_token_id)
        grids = [[image.grid for image in row if image.grid is not None] for row in layouts]
        runs = buckets.image_bucket(max(map(len, grids)))
        return rope_index(kinds, valid, grids, config.vision.tokens_per_second, runs=runs)

    def regions(
        self, image: Image.Image, image_aspect: ImageAspect, *, together: int = 1
    ) -> list[Region]:
        """See `Family.regions`: the whole picture."""
        grid = self.layout(image.height, image.width).grid
        assert grid is not None
        cells = np.arange(grid.num_tokens)
        return [Region("", image, (grid.rows, grid.columns), cells, cells)]

    def frames(self, video: Video) -> AbstractContextManager[Iterable[Image.Image]]:
        """See `Family.frames`."""
        return read_video(
            video.frames, fps=video.fps, sampling=video.sampling, group=self.frame_span
        )

    @classmethod
    def vision_costs(
        cls, config: Qwen25VLConfig, size: tuple[int, int], layout: ImageLayout
    ) -> VisionCosts:
        """See `Family.vision_costs`."""
        assert layout.grid is not None
        rows, columns = layout.grid.rows, layout.grid.columns
        projector = costs.projector_flops(
            layout.tokens,
            vision_hidden=config.vision.hidden_size * config.vision.merge_unit,
            hidden=config.text.hidden_size,
        )
        return VisionCosts((rows, columns), tower_flops(config.vision, rows * columns), projector)


class Qwen2Family(QwenFamily):
    """Qwen2-VL: the same with another tower; a video's groups of frames count single steps."""

    config_class = Qwen2VLConfig
    module_class = Qwen2VL
    name = "Qwen2-VL"


def tower_flops(vision: QwenVisionConfig, cells: int) -> float:
    """FLOPs of the tower for an image of so many merged cells, without the merger.

    Four square matrices and an MLP a block; attention over the image in some blocks, over
    windows of `window_patches` in the others. 2 a multiply-add.
    """
    patches, width = cells * vision.merge_unit, vision.hidden_size
    inner = (3 if vision.gated else 2) * vision.intermediate_size
    matrices = 4 * width**2 + width * inner
    whole = sum(block < vision.num_layers for block in vision.full_attention_blocks)
    seen = whole * patches + (vision.num_layers - whole) * min(vision.window_patches, patches)
    linear = vision.num_layers * matrices + vision.patch_values * width
    return 2.0 * patches * (linear + 2 * width * seen)
