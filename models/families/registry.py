"""What each model family adds to the engine they share: images to arrays, layouts, positions.

A `Family` is the host's half of a model: it reads images and lays them out in static shapes. The
devices' half is the family's module, which turns those arrays into visual tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.mrope import Grid, rope_index, token_kinds
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.images import ImageAspect, ImageProcessor
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.llava_next.anyres import packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.llava_next.images import NextProcessor, stack_tiles
from resprune_jax.models.families.llava_next.module import LlavaNext
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig
from resprune_jax.models.families.qwen_vl.images import QwenProcessor, VisionInput, pack
from resprune_jax.models.families.qwen_vl.module import Qwen25VL
from resprune_jax.models.families.qwen_vl.video import Sampling, VideoLike
from resprune_jax.models.images.files import ImageLike
from resprune_jax.models.prompts import buckets

Media = Literal["image", "video"]


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
    """

    inputs: Any
    layouts: Layouts
    batched: bool


class Family(Protocol):
    """The host's half of a model family.

    Attributes:
        name: as users know it.
        config: the architecture.
        resprune: ResPrune's settings for this family where they are not its defaults.
        positions: the rule for position ids after pruning.
    """

    name: str
    config: Any
    resprune: Mapping[str, Any]
    positions: Literal["reindex", "original"]

    def layout(self, height: int, width: int) -> ImageLayout:
        """What an image of this size in pixels gives.

        Raises:
            CallError: an image that cannot be used.
        """
        ...

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """Read the images of every row.

        Raises:
            CallError, RunError: an image that cannot be used.
        """
        ...

    def rope(self, ids: np.ndarray, valid: np.ndarray, layouts: Layouts) -> Any:
        """Positions of unpruned prompts (B, S) as the module's `place` takes them, or None."""
        ...


class LlavaFamily:
    """LLaVA-1.5: every image the same number of tokens, positions that count up."""

    name = "LLaVA-1.5"
    resprune: Mapping[str, Any] = {}
    positions: Literal["reindex", "original"] = "reindex"

    def __init__(self, config: LlavaConfig, folder: Path) -> None:
        self.config = config
        self.processor = ImageProcessor.from_checkpoint(folder, config.vision.image_size)

    def layout(self, height: int, width: int) -> ImageLayout:
        """See `Family.layout`."""
        return fixed_layout(self.config, height, width)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        flat = [_image(picture, self.name) for row in rows for picture in row]
        pixels = self.processor(flat, image_aspect)  # [I, 3, H, W]
        inputs = {"pixels": pad_rows(pixels, buckets.batch_bucket(len(pixels)))}
        if any(len(row) != 1 for row in rows):
            table = np.full((len(rows), max(map(len, rows))), -1, np.int32)
            for row, own in enumerate(_numbered(rows)):
                table[row, : len(own)] = own
            inputs["rows"] = pad_rows(table, buckets.batch_bucket(len(rows)))
        layout = fixed_layout(self.config, 0, 0)
        return Pictures(inputs, tuple((layout,) * len(row) for row in rows), batched=True)

    def rope(self, ids: np.ndarray, valid: np.ndarray, layouts: Layouts) -> None:
        """Positions count up: nothing is needed."""
        return None


class NextFamily:
    """LLaVA-NeXT: a picture and its tiles, packed with a newline token behind each row."""

    name = "LLaVA-NeXT"
    resprune: Mapping[str, Any] = {}
    positions: Literal["reindex", "original"] = "reindex"

    def __init__(self, config: LlavaNextConfig, folder: Path) -> None:
        self.config = config
        self.processor = NextProcessor.from_checkpoint(folder, config)

    def layout(self, height: int, width: int) -> ImageLayout:
        """See `Family.layout`."""
        return tiled_layout(self.config, height, width)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        _own_aspect(image_aspect, self.name)
        images = [self.processor.image(_image(p, self.name)) for row in rows for p in row]
        numbers = _numbered(rows)
        pixels, tables = stack_tiles(
            images, self.config, rows=numbers, batch=buckets.batch_bucket(len(rows))
        )
        counts = [self.layout(*image.size) for image in images]
        layouts = tuple(tuple(counts[i] for i in row) for row in numbers)
        return Pictures({"pixels": pixels, "tables": tables}, layouts, batched=True)

    def rope(self, ids: np.ndarray, valid: np.ndarray, layouts: Layouts) -> None:
        """Positions count up: nothing is needed."""
        return None


class QwenFamily:
    """Qwen2.5-VL: images and videos of any size in one packed batch, M-RoPE positions."""

    name = "Qwen2.5-VL"
    resprune: Mapping[str, Any] = {"alpha": 0.3, "seed_rule": "max_norm"}
    positions: Literal["reindex", "original"] = "original"

    def __init__(self, config: Qwen25VLConfig, folder: Path) -> None:
        self.config = config
        self.processor = QwenProcessor.from_checkpoint(folder, config.vision)

    def layout(self, height: int, width: int) -> ImageLayout:
        """See `Family.layout`."""
        _, rows, columns = self.processor.grid(height, width)
        side = self.config.vision.spatial_merge_size
        grid = Grid(1, rows // side, columns // side)
        return ImageLayout(grid.num_tokens, grid=grid)

    def read(self, rows: Sequence[Sequence[Picture]], image_aspect: ImageAspect) -> Pictures:
        """See `Family.read`."""
        _own_aspect(image_aspect, self.name)
        inputs = [self._input(picture) for row in rows for picture in row]
        numbers = _numbered(rows)
        patches, tables = pack(
            inputs, self.config.vision, rows=numbers, batch=buckets.batch_bucket(len(rows))
        )
        layouts = tuple(tuple(self._layout(inputs[i]) for i in row) for row in numbers)
        return Pictures({"patches": patches, "tables": tables}, layouts, batched=False)

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


def fixed_layout(config: LlavaConfig, height: int, width: int) -> ImageLayout:
    """What an image of any size gives LLaVA-1.5."""
    return ImageLayout(config.num_visual_tokens)


def tiled_layout(config: LlavaNextConfig, height: int, width: int) -> ImageLayout:
    """What an image of this size gives LLaVA-NeXT."""
    own = packing(height, width, config)
    return ImageLayout(len(own.index), own.rows)


def _numbered(rows: Sequence[Sequence[Picture]]) -> list[list[int]]:
    """The images of every row by number, counted through the rows."""
    ends = np.cumsum([len(row) for row in rows]).tolist()
    return [list(range(end - len(row), end)) for end, row in zip(ends, rows, strict=True)]


def pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first row until the batch has `size` rows: real work, so nothing can be NaN."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])


def _image(picture: Picture, name: str) -> ImageLike:
    if isinstance(picture, Video):
        raise CallError(f"{name} takes images, not videos: give frames of it as images")
    return picture


def _own_aspect(image_aspect: ImageAspect, name: str) -> None:
    if image_aspect != "processor":
        raise CallError(
            f'image_aspect="{image_aspect}" is a way of LLaVA-1.5 to prepare images; {name} keeps'
            " their aspect ratio: leave it out"
        )


_FAMILIES: dict[str, tuple[type[Any], type[Any], type[CausalLM]]] = {
    "llava": (LlavaConfig, LlavaFamily, Llava),
    "llava_next": (LlavaNextConfig, NextFamily, LlavaNext),
    "qwen2_5_vl": (Qwen25VLConfig, QwenFamily, Qwen25VL),
}
"""By `model_type`: the configuration, the host's half, the module."""


def read_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint of any supported family.

    Args:
        hf: the parsed `config.json`.

    Raises:
        CallError: another family, named with those that are supported.
    """
    kind = hf.get("model_type", "llava")
    if kind not in _FAMILIES:
        supported = ", ".join(repr(name) for name in _FAMILIES)
        raise CallError(f"model type {kind!r} is not supported; supported: {supported}")
    return _FAMILIES[kind][0].from_hf(hf)


def _entry(config: ModelConfig) -> tuple[type[Any], type[Any], type[CausalLM]]:
    return next(entry for entry in _FAMILIES.values() if type(config) is entry[0])


def make_family(config: ModelConfig, folder: Path) -> Family:
    """The host's half of a model, its processor loaded from the checkpoint's folder."""
    return _entry(config)[1](config, folder)


def layout_of(config: ModelConfig, folder: Path) -> Callable[[int, int], ImageLayout]:
    """`Family.layout` of a checkpoint: its processor is read only where the count depends on it."""
    if isinstance(config, LlavaConfig):
        return partial(fixed_layout, config)
    if isinstance(config, LlavaNextConfig):
        return partial(tiled_layout, config)
    return make_family(config, folder).layout


def family_class(config: ModelConfig) -> type[Any]:
    """The host's half of a configuration's family, not yet made."""
    return _entry(config)[1]


def module_class(config: ModelConfig) -> type[Any]:
    """The module of a configuration's family."""
    return _entry(config)[2]
