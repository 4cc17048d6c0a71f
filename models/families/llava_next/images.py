"""Pictures to tiles for LLaVA-NeXT, by the checkpoint's own image processor.

`transformers`' processor in its PIL form needs no torch and gives the same values wherever it runs;
the torch path resizes by other code, up to one 8-bit level away.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.families.llava_next.anyres import (
    AnyresTables,
    Size,
    make_tables,
    num_tiles,
    num_tokens,
)
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.images.files import ImageLike, open_image
from resprune_jax.models.images.processor_files import check_resizes, load_image_processor


@dataclass(frozen=True)
class TiledImage:
    """One picture, ready to be stacked.

    Attributes:
        tiles: (T, 3, S, S) float32, normalised: the base tile, then the plane's in raster order.
        size: (height, width) of the upright picture, in pixels.
    """

    tiles: np.ndarray
    size: Size


class NextProcessor:
    """Turns pictures into tiles.

    Made by `from_checkpoint`; wraps `transformers`' image processor.

    Attributes:
        config: the architecture, for pinpoints and the side S of a tile.
    """

    def __init__(self, processor: Any, config: LlavaNextConfig) -> None:
        """Wrap a processor that is already loaded.

        Args:
            processor: a LLaVA-NeXT image processor of `transformers` with the PIL backend.
            config: the architecture.

        Raises:
            CallError: the processor's tiles are not the model's.
        """
        side = config.vision.image_size
        if not type(processor).__name__.startswith("LlavaNext"):
            raise CallError(
                f"the image processor is {type(processor).__name__}, which makes no tiles: "
                "preprocessor_config.json must name LlavaNextImageProcessor"
            )
        own = tuple(tuple(pin) for pin in processor.image_grid_pinpoints or ())
        if own != config.image_grid_pinpoints:
            raise CallError(
                f"the image processor's image_grid_pinpoints {list(own)} are not those of "
                f"config.json, {list(config.image_grid_pinpoints)}: correct either file"
            )
        check_resizes(processor)
        size, crop = _entries(processor.size), _entries(processor.crop_size)
        square = {"height": side, "width": side}
        # The crop's size is that of the tiles too; without one, the resized edge is.
        cropped = crop == square or (not crop and not processor.do_center_crop)
        if size not in ({"shortest_edge": side}, square) or not cropped:
            raise CallError(
                f"the image processor's settings (size {size}, crop_size {crop}) do not give the "
                f"{side} x {side} pixels of the vision tower's tiles: correct "
                "preprocessor_config.json"
            )
        self.config = config
        self._processor = processor

    @classmethod
    def from_checkpoint(
        cls, directory: str | os.PathLike[str], config: LlavaNextConfig
    ) -> "NextProcessor":
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
        return cls(load_image_processor(directory, ("LlavaNextImageProcessor",)), config)

    def num_tokens(self, size: Size) -> int:
        """Visual tokens of a picture of this (height, width), known before it is encoded."""
        return num_tokens(*size, self.config)

    def image(self, image: ImageLike) -> TiledImage:
        """Read a picture and cut it into tiles.

        Args:
            image: a path, a PIL image or a uint8 array; see `open_image`.

        Returns:
            The tiles, bit for bit those of the checkpoint's own processor.

        Raises:
            CallError: a picture that `open_image` refuses.
            RunError: a picture that cannot be read.
        """
        rgb = open_image(image)
        out = self._processor(images=[rgb], return_tensors="np")
        tiles = np.asarray(out["pixel_values"][0], np.float32)
        assert len(tiles) == num_tiles(rgb.height, rgb.width, self.config)
        return TiledImage(tiles, (rgb.height, rgb.width))

    def base(self, image: Image.Image, side: int) -> np.ndarray:
        """The base tile alone, the whole picture squeezed into a square of this side, (1, 3, S, S).

        Args:
            image: RGB, upright.
            side: in pixels; the tower's own gives the base tile of `image`.
        """
        # With tiles of this size it makes one beside the base tile, which is left out.
        sizes: dict[str, Any] = {
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "image_grid_pinpoints": [[side, side]],
        }
        out = self._processor(images=[image], return_tensors="np", **sizes)
        return np.asarray(out["pixel_values"][0][:1], np.float32)

    def images(self, images: Sequence[ImageLike]) -> list[TiledImage]:
        """`image` for each of a list.

        Raises:
            CallError: no picture, or no list.
        """
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise CallError("images is a list of pictures: put a single one in a list")
        if len(images) == 0:
            raise CallError("no image was given")
        return [self.image(image) for image in images]


def stack_tiles(
    images: Sequence[TiledImage],
    config: LlavaNextConfig,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    tiles: int | None = None,
    tokens: int | None = None,
    batch: int | None = None,
) -> tuple[np.ndarray, AnyresTables]:
    """Put pictures of any sizes into one batch, padded to buckets with zeros.

    Args:
        images: the pictures.
        config: the architecture.
        rows: which pictures each row of the batch holds, in order; default: one row each.
        tiles: the static T; as are `tokens` and `batch`, see `make_tables`.
        tokens: the static N.
        batch: the static B.

    Returns:
        (pixels (B, T, 3, S, S) float32, tables), for `LlavaNext.encode_images`.

    Raises:
        CallError: nothing to stack, a row of an unknown picture, or static sizes that are too
            small.
    """
    rows = [[number] for number in range(len(images))] if rows is None else rows
    for row in rows:
        if not len(row) or min(row) < 0 or max(row) >= len(images):
            raise CallError(
                f"a row names images by their number below {len(images)}, got {list(row)}"
            )
    tables = make_tables(
        [[images[number].size for number in row] for row in rows], config, tiles=tiles,
        tokens=tokens, batch=batch,
    )  # fmt: skip
    side = config.vision.image_size
    shape = (*tables.tile_valid.shape, config.vision.num_channels, side, side)
    pixels = np.zeros(shape, np.float32)
    for at in range(len(pixels)):
        own = [images[number].tiles for number in rows[at if at < len(rows) else 0]]
        stacked = np.concatenate(own)
        pixels[at, : len(stacked)] = stacked
    return pixels, tables


def _entries(size: Any) -> dict[str, int]:
    """A size setting without the entries that are not set."""
    return {key: value for key, value in dict(size or {}).items() if value}
