"""Pictures and videos to tiles for LLaVA-OneVision, by the checkpoint's own image processor.

`transformers`' processor in its PIL form needs no torch. It has no such form for videos, whose
frames are resized here and normalised by the image processor with the video's own settings.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.families.llava.images import pad_and_resize
from resprune_jax.models.families.llava_next.anyres import num_tiles
from resprune_jax.models.families.onevision.config import OneVisionConfig
from resprune_jax.models.images.files import ImageLike, open_image
from resprune_jax.models.images.processor_files import (
    check_resizes,
    load_image_processor,
    video_settings,
)
from resprune_jax.models.images.video import Sampling, VideoLike, read_video
from resprune_jax.models.prompts.chat_files import read_json

MAX_VIDEO_TOKENS = 128_000
"""Visual tokens of a video, at most: what fits no context is refused before it is read."""

# What a video's settings may say of its pixels.
_PIXELS = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")


class OneVisionProcessor:
    """Turns pictures and videos into tiles.

    Made by `from_checkpoint`; wraps `transformers`' image processor.

    Attributes:
        config: the architecture, for pinpoints and the side S of a tile.
    """

    def __init__(
        self, processor: Any, config: OneVisionConfig, *, video: dict[str, Any] | None = None
    ) -> None:
        """Wrap a processor that is already loaded.

        Args:
            processor: a LLaVA-OneVision image processor of `transformers` with the PIL backend.
            config: the architecture.
            video: the video processor's settings; `None` for those of pictures.

        Raises:
            CallError: the processor's tiles are not the model's.
        """
        name = type(processor).__name__
        if not name.startswith("LlavaOnevision"):
            raise CallError(
                f"the image processor is {name}, another family's: preprocessor_config.json must "
                "name LlavaOnevisionImageProcessor"
            )
        own = tuple(tuple(pin) for pin in processor.image_grid_pinpoints or ())
        if own != config.image_grid_pinpoints:
            raise CallError(
                f"the image processor's {len(own)} image_grid_pinpoints are not the "
                f"{len(config.image_grid_pinpoints)} of config.json: correct either file"
            )
        check_resizes(processor)
        video = {} if video is None else video
        for what, size in (("image", processor.size), ("video", video.get("size"))):
            _check_size(size or processor.size, what, config.vision.image_size)
        if processor.do_center_crop or video.get("do_center_crop"):
            raise CallError("do_center_crop is not supported: LLaVA-OneVision crops nothing")
        self.config = config
        self._processor = processor
        self._video = {name: video[name] for name in _PIXELS if video.get(name) is not None}
        self._video_resample = Image.Resampling(video.get("resample", processor.resample))

    @classmethod
    def from_checkpoint(
        cls, directory: str | os.PathLike[str], config: OneVisionConfig
    ) -> "OneVisionProcessor":
        """Load the processor of a checkpoint.

        Args:
            directory: a folder with `preprocessor_config.json` or `processor_config.json`.
            config: the architecture, from the model's configuration.

        Returns:
            The processor.

        Raises:
            CallError: no such file, or settings that do not fit the model.
            RunError: a file that cannot be read.
        """
        folder = Path(directory)
        aspect = read_json(folder / "processor_config.json").get("vision_aspect_ratio")
        if aspect not in (None, f"anyres_max_{config.max_tiles}"):
            raise CallError(
                f"processor_config.json has vision_aspect_ratio {aspect!r}, config.json "
                f"'anyres_max_{config.max_tiles}': correct either file"
            )
        processor = load_image_processor(folder, ("LlavaOnevisionImageProcessor",))
        return cls(processor, config, video=dict(video_settings(folder)))

    def alone(self, image: ImageLike) -> tuple[np.ndarray, tuple[int, int]]:
        """Read a picture that is alone in its prompt and cut it into tiles.

        Args:
            image: a path, a PIL image or a uint8 array; see `open_image`.

        Returns:
            (tiles (T, 3, S, S) float32, bit for bit those of the checkpoint's own processor: the
            base tile, then the plane's in raster order; (height, width) of the upright picture).

        Raises:
            CallError: a picture that `open_image` refuses.
            RunError: a picture that cannot be read.
        """
        rgb = open_image(image)
        tiles = self._processor(images=[[rgb]], return_tensors="np")["pixel_values"][0]
        assert len(tiles) == num_tiles(rgb.height, rgb.width, self.config)
        return np.asarray(tiles, np.float32), (rgb.height, rgb.width)

    def one_of_several(self, image: ImageLike) -> np.ndarray:
        """Read one of several pictures of a prompt: a square with the mean colour around it.

        Returns:
            (1, 3, S, S) float32, bit for bit that of the checkpoint's own processor.

        Raises:
            CallError, RunError: as `alone`.
        """
        resample = Image.Resampling(self._processor.resample)
        return self._squares(self.padded(open_image(image), self._side, resample))

    def padded(
        self,
        image: Image.Image,
        side: int,
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """An RGB picture in the middle of a square of this side, in pixels."""
        red, green, blue = (int(255 * mean) for mean in self._processor.image_mean)
        return pad_and_resize(image, side, (red, green, blue), resample)

    def video(
        self, video: VideoLike, *, fps: float | None = None, sampling: Sampling | None = None
    ) -> tuple[np.ndarray, float]:
        """Read a video, each frame squeezed into a square.

        Args:
            video: frames as an array (T, height, width, 3) uint8 or a list of pictures, a folder of
                pictures, or a video file; see `read_video`.
            fps: frames a second of the given frames, where the video itself does not say.
            sampling: which frames to take; see `read_video` for the defaults.

        Returns:
            (frames (T, 3, S, S) float32, how many of them there are in a second).

        Raises:
            CallError: a video that cannot be used, or with too many frames.
            RunError: a file that cannot be read.
        """
        size = (self._side, self._side)
        with read_video(video, fps=fps, sampling=sampling, group=1) as frames:
            tokens = len(frames) * self.config.pooled**2
            if tokens > MAX_VIDEO_TOKENS:
                raise CallError(
                    f"{len(frames)} frames of {frames.name} give {tokens} visual tokens, more than "
                    f"{MAX_VIDEO_TOKENS}: take fewer (Sampling)"
                )
            squares = [
                self._squares(frame.resize(size, self._video_resample), **self._video)
                for frame in frames
            ]
            return np.concatenate(squares), frames.sampled_fps

    @property
    def _side(self) -> int:
        return self.config.vision.image_size

    def _squares(self, square: Image.Image, **settings: Any) -> np.ndarray:
        """A square of the tower's size as the processor normalises it, (1, 3, S, S)."""
        # Of several pictures each gives one tile; given twice, a single one does too.
        made = self._processor(images=[[square, square]], return_tensors="np", **settings)
        return np.asarray(made["pixel_values"][0], np.float32)


def _check_size(size: Any, what: str, side: int) -> None:
    """Refuse a processor whose tiles are not the tower's pictures."""
    own = {key: value for key, value in dict(size or {}).items() if value}
    if own not in ({"height": side, "width": side}, {"shortest_edge": side}):
        raise CallError(
            f"the {what} processor's size {own} does not give the {side} x {side} pixels that the "
            "vision tower takes: correct the processor's file"
        )
