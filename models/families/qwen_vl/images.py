"""Pictures and videos to packed patches for Qwen2.5-VL, by the checkpoint's own image processor.

`transformers`' processor in its PIL form needs no torch. It has no such form for videos, so a
video's frames go through the image processor one at a time and are joined here. Resizing is
Pillow's; the torch path resizes by other code, up to two 8-bit levels away.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.mrope import Grid
from resprune_jax.models.families.qwen_vl.limits import (
    IMAGE_LIMITS,
    VIDEO_LIMITS,
    limits,
)
from resprune_jax.models.images.files import ImageLike, name_of, open_image
from resprune_jax.models.images.processor_files import (
    check_resizes,
    load_image_processor,
    read_settings,
    video_settings,
)
from resprune_jax.models.images.video import Frames, Sampling, VideoLike, read_video
from resprune_jax.models.prompts import budgets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.tables import VisionTables, make_tables

MAX_ASPECT = 200
"""The longest side of a picture over its shortest, at most."""

# A share of the context that a video with `cap_pixels` may fill.
_CAPPED_SHARE = 0.9


@dataclass(frozen=True)
class VisionInput:
    """One picture or video, ready to be packed.

    Attributes:
        patches: (t * h * w, channels * frames * side * side) float32, normalised, in the order of
            `towers.qwen_vision.tables`.
        grid: (t, h, w), groups of frames, rows and columns of patches.
        seconds: time from one group of frames to the next; `None` for a picture.
    """

    patches: np.ndarray
    grid: tuple[int, int, int]
    seconds: float | None = None

    def cells(self, config: QwenVisionConfig) -> Grid:
        """Its grid of merged cells, for `mrope.rope_index`."""
        frames, rows, columns = self.grid
        side = config.spatial_merge_size
        return Grid(frames, rows // side, columns // side, self.seconds)


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size a picture is resized to: sides in multiples of `factor`, area within limits.

    Args:
        height: of the picture, in pixels.
        width: the same.
        factor: side of a merged cell, in pixels.
        min_pixels: the smallest area.
        max_pixels: the largest area.

    Returns:
        (height, width), as near to the picture's own as the limits allow.

    Raises:
        CallError: a picture whose sides differ by more than `MAX_ASPECT` to 1.
    """
    if min(height, width) < 1 or max(height, width) > MAX_ASPECT * min(height, width):
        raise CallError(
            f"a picture of {width} x {height} pixels is longer than {MAX_ASPECT} to 1: crop it"
        )
    # Python's rounding to even decides halves, as in the reference.
    sides = tuple(round(side / factor) * factor for side in (height, width))
    if sides[0] * sides[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = tuple(
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif sides[0] * sides[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    return sides[0], sides[1]


class QwenProcessor:
    """Turns pictures and videos into patches.

    Made by `from_checkpoint`; wraps `transformers`' image processor.

    Attributes:
        config: the vision tower, for patch sizes.
        image_limits: the smallest and largest area of a resized picture, in pixels.
        video_limits: the same for each frame of a video.
        cap_pixels: bound a video's whole area too, as Qwen's own tools do: each frame gets an even
            share of nine tenths of `max_video_tokens` tokens.
        max_video_tokens: the most visual tokens that a video may give.
    """

    def __init__(
        self,
        processor: Any,
        config: QwenVisionConfig,
        *,
        areas: Mapping[str, Any] | None = None,
        video: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a processor that is already loaded.

        Args:
            processor: an image processor of `transformers` with the PIL backend.
            config: the vision tower.
            areas: the image processor's file, for the areas of pictures; `None` for those that the
                processor has.
            video: the video processor's settings; `None` for transformers' defaults.

        Raises:
            CallError: the processor's patches are not the vision tower's.
        """
        check_resizes(processor)
        wanted = (config.patch_size, config.temporal_patch_size, config.spatial_merge_size)
        names = ("patch_size", "temporal_patch_size", "merge_size")
        got = tuple(getattr(processor, name, None) for name in names)
        if got != wanted:
            raise CallError(
                f"the image processor cuts patches of {', '.join(names)} {got}, but the vision "
                f"tower takes {wanted}: correct preprocessor_config.json"
            )
        video = {} if video is None else video
        self.config = config
        own = {"size": dict(processor.size)} if areas is None else areas
        self.image_limits = limits(own, IMAGE_LIMITS)
        self.video_limits = limits(video, VIDEO_LIMITS)
        self.cap_pixels = bool(video.get("cap_pixels_per_frame", False))
        self.max_video_tokens = int(video.get("max_video_tokens", 128000))
        self._processor = processor

    @classmethod
    def from_checkpoint(
        cls, directory: str | os.PathLike[str], config: QwenVisionConfig
    ) -> "QwenProcessor":
        """Load the processor of a checkpoint.

        A video's settings are those of `processor_config.json` (its part `video_processor`),
        `video_preprocessor_config.json` or `preprocessor_config.json`, the first that there is.

        Args:
            directory: a folder with `preprocessor_config.json` or `processor_config.json`.
            config: the vision tower, from the model's configuration.

        Returns:
            The processor.

        Raises:
            CallError: no such file, or settings that do not fit the vision tower.
            RunError: a file that cannot be read.
        """
        folder = Path(directory)
        processor = load_image_processor(folder, ("Qwen2VLImageProcessor",))
        # The class knows a file's areas under other names only.
        areas = read_settings(folder)[0]
        return cls(processor, config, areas=areas, video=video_settings(folder))

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """The grid of a picture of this size: (1, rows, columns) in patches.

        Raises:
            CallError: a picture that `smart_resize` refuses.
        """
        return (1, *self._rows_columns(height, width, self.image_limits))

    def image(self, image: ImageLike) -> VisionInput:
        """Read a picture and cut it into patches.

        Args:
            image: a path, a PIL image or a uint8 array; see `open_image`.

        Returns:
            The patches.

        Raises:
            CallError: a picture that `open_image` or `smart_resize` refuses.
            RunError: a picture that cannot be read.
        """
        rgb = open_image(image)
        self._check_aspect(rgb, name_of(image))
        patches, grid = self._patches(rgb, self.image_limits)
        return VisionInput(patches, grid)

    def smaller(self, image: ImageLike, keep: Keep) -> VisionInput:
        """As `image`, the picture resized under an area of `keep` merged cells.

        Args:
            image: as for `image`.
            keep: tokens, or their share of those that the picture would give; None for all.

        Raises:
            CallError: also a picture so long that it gives more tokens at any size.
        """
        rgb = open_image(image)
        name = name_of(image)
        self._check_aspect(rgb, name)
        rows, columns = self._rows_columns(rgb.height, rgb.width, self.image_limits)
        full = rows * columns // self.config.merge_unit
        most = budgets.count(keep, full)
        if most >= full:
            patches, grid = self._patches(rgb, self.image_limits)
            return VisionInput(patches, grid)
        area = 1, most * self.config.pixel_factor**2  # the least area counts for full pictures
        rows, columns = self._rows_columns(rgb.height, rgb.width, area)
        least = rows * columns // self.config.merge_unit
        if least > most:
            raise CallError(
                f"{name} is {rgb.width} x {rgb.height} pixels, which give {least} visual tokens at"
                f" least, and {most} are to enter: keep more, or crop it"
            )
        patches, grid = self._patches(rgb, area)
        return VisionInput(patches, grid)

    def images(self, images: Sequence[ImageLike]) -> list[VisionInput]:
        """`image` for each of a list.

        Raises:
            CallError: no picture, or no list.
        """
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise CallError("images is a list of pictures: put a single one in a list")
        if len(images) == 0:
            raise CallError("no image was given")
        return [self.image(image) for image in images]

    def video(
        self,
        video: VideoLike,
        *,
        fps: float | None = None,
        sampling: Sampling | None = None,
        cap_pixels: bool | None = None,
    ) -> VisionInput:
        """Read a video and cut it into patches that span `temporal_patch_size` frames.

        Args:
            video: frames as an array (T, height, width, 3) uint8 or a list of pictures, a folder of
                pictures, or a video file; see `read_video`.
            fps: frames a second of the given frames, where the video itself does not say.
            sampling: which frames to take; see `read_video` for the defaults.
            cap_pixels: shrink the frames of a long video; default what the checkpoint says, else
                False, as transformers does.

        Returns:
            The patches. Where frames do not fill the last group, the last one is repeated.

        Raises:
            CallError: a video that cannot be used, frames of different sizes, or more visual tokens
                than `max_video_tokens`.
            RunError: a file that cannot be read.
        """
        with read_video(
            video, fps=fps, sampling=sampling, group=self.config.temporal_patch_size
        ) as frames:
            cap = self.cap_pixels if cap_pixels is None else cap_pixels
            return self._video_patches(frames, self._frame_limits(len(frames), cap))

    def _video_patches(self, frames: Frames, limits: tuple[int, int]) -> VisionInput:
        """Cut the frames one at a time and join them in groups."""
        config, span = self.config, self.config.temporal_patch_size
        size: tuple[int, int] | None = None
        groups: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for number, frame in enumerate(_repeat_last(frames, span)):
            if size is None:
                size = frame.size
                self._check_aspect(frame, frames.name)
                self._check_length(frames, frame, limits)
            elif frame.size != size:
                raise CallError(
                    f"{frames.name} has frames of {size[0]} x {size[1]} and of {frame.width} x "
                    f"{frame.height} pixels (frame {number}): a video's frames have one size"
                )
            patches, (_, rows, columns) = self._patches(frame, limits)
            # The image path repeats a frame over the span; one copy of each is wanted.
            shape = (len(patches), config.num_channels, span, config.patch_size**2)
            waiting.append(patches.reshape(shape)[:, :, 0])
            if len(waiting) == span:
                groups.append(np.stack(waiting, axis=2).reshape(len(patches), -1))
                waiting = []
        seconds = span / frames.sampled_fps
        return VisionInput(np.concatenate(groups), (len(groups), rows, columns), seconds)

    def _check_length(self, frames: Frames, first: Image.Image, limits: tuple[int, int]) -> None:
        """Refuse a video that no context holds, before gigabytes of patches are made."""
        rows, columns = self._rows_columns(first.height, first.width, limits)
        groups = -(-len(frames) // self.config.temporal_patch_size)
        tokens = groups * rows * columns // self.config.merge_unit
        if tokens > self.max_video_tokens:
            raise CallError(
                f"{len(frames)} frames of {frames.name} give {tokens} visual tokens, more than "
                f"{self.max_video_tokens}: take fewer (Sampling), or cap_pixels=True"
            )

    def _frame_limits(self, frames: int, cap: bool) -> tuple[int, int]:
        """The limits of one frame's area, in pixels, in a video of so many."""
        least, most = self.video_limits
        if cap:
            total = int(self.max_video_tokens * self.config.pixel_factor**2 * _CAPPED_SHARE)
            share = total * self.config.temporal_patch_size // frames
            most = max(min(most, share), int(least * 1.05))
        return least, most

    def _patches(
        self, image: Image.Image, limits: tuple[int, int]
    ) -> tuple[np.ndarray, tuple[int, int, int]]:
        """The patches of one RGB picture and its grid."""
        size = {"shortest_edge": limits[0], "longest_edge": limits[1]}
        out = self._processor(images=[image], size=size, return_tensors="np")
        patches = np.asarray(out["pixel_values"], np.float32)
        frames, rows, columns = (int(n) for n in out["image_grid_thw"][0])
        return patches, (frames, rows, columns)

    def _rows_columns(self, height: int, width: int, limits: tuple[int, int]) -> tuple[int, int]:
        tall, wide = smart_resize(
            height,
            width,
            factor=self.config.pixel_factor,
            min_pixels=limits[0],
            max_pixels=limits[1],
        )
        return tall // self.config.patch_size, wide // self.config.patch_size

    def _check_aspect(self, image: Image.Image, name: str) -> None:
        """Name the picture that is too long; the reference's message does not."""
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise CallError(
                f"{name} is {image.width} x {image.height} pixels, longer than {MAX_ASPECT} to 1: "
                "crop it"
            )


def pack(
    inputs: Sequence[VisionInput],
    config: QwenVisionConfig,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    patches: int | None = None,
    tokens: int | None = None,
    batch: int | None = None,
) -> tuple[np.ndarray, VisionTables]:
    """Put pictures and videos one behind the other, padded to a bucket with zeros.

    Args:
        inputs: what to pack.
        config: the vision tower.
        rows: which inputs each row of visual tokens holds; as are `patches`, `tokens` and `batch`,
            see `make_tables`.
        patches: the static P.
        tokens: the static N.
        batch: the static B.

    Returns:
        (patches (P, channels * frames * side * side) float32, tables), for
        `Qwen25VL.encode_images`.

    Raises:
        CallError: nothing to pack, or static sizes that are too small.
    """
    tables = make_tables(
        [each.grid for each in inputs], config, rows=rows, patches=patches, tokens=tokens,
        batch=batch,
    )  # fmt: skip
    packed = np.zeros((len(tables.segments), config.patch_values), np.float32)
    at = 0
    for each in inputs:
        packed[at : at + len(each.patches)] = each.patches
        at += len(each.patches)
    return packed, tables


def _repeat_last(frames: Iterable[Image.Image], span: int) -> Iterable[Image.Image]:
    """The frames, the last one again until groups of `span` are full."""
    count = 0
    for last in frames:
        yield last
        count += 1
    for _ in range(-count % span):
        yield last
