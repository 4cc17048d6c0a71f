"""Images to pixel arrays: the checkpoint's own processor, or the original LLaVA pipeline.

Hugging Face's processor of LLaVA-1.5 resizes the shortest edge to 336 and crops the centre, which
loses the borders of a picture that is not square. The original LLaVA code pads to a square with the
mean colour and resizes, which keeps them. Both are here, by name: "processor" and "pad".
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.families.base import ImageAspect
from resprune_jax.models.images.files import ImageLike, name_of, open_image
from resprune_jax.models.images.processor_files import load_image_processor

Way = Literal["crop", "pad", "squeeze"]
"""How a picture becomes a square."""

MAX_RESIZED_PIXELS = 2**25
"""Pixels that "processor" may resize a picture to: sides of about 300 to 1 at 336 pixels."""

PAD_COLOUR = (122, 116, 104)
"""CLIP's mean colour, with which the original LLaVA pads."""

_PROCESSORS = {
    "clip_vision_model": ("CLIPImageProcessor", "LlavaImageProcessor"),
    "siglip_vision_model": ("SiglipImageProcessor",),
}
"""What prepares a tower's pictures, by the tower's type."""

# Pixels that `pad_and_resize` widens at a time.
_STRIP_PIXELS = 2**21


class ImageProcessor:
    """Turns pictures into the pixel arrays of the vision tower.

    Made by `from_checkpoint`; wraps `transformers`' image processor in its PIL form, which needs no
    torch and gives the same values wherever it runs.

    Attributes:
        image_size: side S of the square pictures that the vision tower takes, in pixels.
    """

    def __init__(self, processor: Any, image_size: int) -> None:
        """Wrap a processor that is already loaded.

        Args:
            processor: an image processor of `transformers` with the PIL backend.
            image_size: side of the vision tower's pictures, in pixels.

        Raises:
            CallError: the processor's settings do not give pictures of that size.
        """
        self.image_size = image_size
        self._processor = processor
        self._sizes: dict[str, Any] = {}  # in place of the processor's own
        self._size = _entries(processor, "size") if _flag(processor, "do_resize") else {}
        crop = _entries(processor, "crop_size") if _flag(processor, "do_center_crop") else {}
        # LLaVA's own processor class pads to a square where its file says so.
        self._pads = _flag(processor, "do_pad") and type(processor).__name__.startswith("Llava")
        self._check(crop)

    @classmethod
    def from_checkpoint(
        cls, directory: str | os.PathLike[str], image_size: int, tower: str = "clip_vision_model"
    ) -> "ImageProcessor":
        """Load the processor of a checkpoint.

        Args:
            directory: a folder with `preprocessor_config.json` or `processor_config.json`.
            image_size: side of the vision tower's pictures, in pixels, from the model's
                configuration.
            tower: the vision tower's type there.

        Returns:
            The processor.

        Raises:
            CallError: no such file, or settings that do not give pictures of that size.
            RunError: a file that cannot be read.
        """
        return cls(load_image_processor(directory, _PROCESSORS[tower]), image_size)

    def __call__(
        self, images: Sequence[ImageLike], image_aspect: ImageAspect = "processor"
    ) -> np.ndarray:
        """Read pictures and prepare them for the vision tower.

        One picture is held at a time, so memory does not grow with the list but for the result. The
        largest that `open_image` reads takes 1.8 GiB with "processor", 1 GiB with "pad".

        Args:
            images: B pictures, each a path, a PIL image or a uint8 array; see `open_image`.
            image_aspect: "processor" does what the checkpoint's own processor does, bit for bit;
                "pad" pads to a square with the mean colour, then resizes: the original LLaVA
                pipeline.

        Returns:
            Pixels (B, 3, S, S), float32, normalised.

        Raises:
            CallError: no picture, an unknown `image_aspect`, or a picture that `open_image` refuses
                or that "processor" would resize to more than `MAX_RESIZED_PIXELS` pixels.
            RunError: a picture that cannot be read.
        """
        if image_aspect not in get_args(ImageAspect):
            raise CallError(f'image_aspect is "processor" or "pad", got {image_aspect!r}')
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise CallError("images is a list of pictures: put a single one in a list")
        if len(images) == 0:
            raise CallError("no image was given")
        # [B, 3, S, S]
        pixels = np.empty((len(images), 3, self.image_size, self.image_size), np.float32)
        for row, image in enumerate(images):
            pixels[row] = self._pixels(image, pad=self.way(image_aspect) == "pad")
        return pixels

    def smaller(self, side: int) -> "ImageProcessor":
        """The processor of a tower of smaller pictures: every size of it shrinks alike.

        Args:
            side: of these pictures, in pixels.
        """

        def shrunk(name: str) -> dict[str, int]:
            sizes = _entries(self._processor, name)
            return {
                key: max(1, round(value * side / self.image_size)) for key, value in sizes.items()
            }

        made = copy.copy(self)
        made.image_size, made._size = side, shrunk("size") if self._size else {}
        made._sizes = {name: shrunk(name) for name in ("size", "crop_size") if shrunk(name)}
        return made

    def way(self, image_aspect: ImageAspect) -> Way:
        """How a picture becomes a square: of LLaVA's processors some crop, some pad, SigLIP's
        squeezes."""
        if image_aspect == "pad" or self._pads:
            return "pad"
        square = {"height": self.image_size, "width": self.image_size}
        return "squeeze" if self._size == square else "crop"

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour that "pad" fills with: the processor's mean, in 0..255, rounded down."""
        red, green, blue = (int(255 * mean) for mean in self._processor.image_mean or (0, 0, 0))
        return red, green, blue

    def _pixels(self, image: ImageLike, *, pad: bool) -> np.ndarray:
        """The pixels (3, S, S) of one picture."""
        rgb = open_image(image)
        options = dict(self._sizes)
        if pad:
            resample = Image.Resampling(self._processor.resample)
            rgb = pad_and_resize(rgb, self.image_size, self.mean_colour, resample)
            options = {"do_resize": False, "do_center_crop": False, "do_pad": False}
        else:
            self._check_resized(rgb, name_of(image))
        return self._processor(images=[rgb], return_tensors="np", **options)["pixel_values"][0]

    def _check_resized(self, image: Image.Image, name: str) -> None:
        """Refuse a picture so long and thin that its shortest edge cannot be resized."""
        edge = self._size.get("shortest_edge")
        if edge is None:
            return
        short, long = sorted(image.size)
        resized = edge * int(edge * long / short)
        if resized > MAX_RESIZED_PIXELS:
            raise CallError(
                f"{name} is {image.width} x {image.height} pixels and would be resized to "
                f"{resized} pixels, more than {MAX_RESIZED_PIXELS}: crop it, or use "
                'image_aspect="pad" (--image-aspect pad)'
            )

    def _check(self, crop: Mapping[str, int]) -> None:
        """Refuse settings that do not give pictures of the vision tower's size."""
        side = self.image_size
        square = {"height": side, "width": side}
        # What a square picture, as padding gives it, may be resized by without a crop.
        exact = self._size in ({"shortest_edge": side}, square)
        if crop:
            known = set(self._size) in ({"shortest_edge"}, {"height", "width"})
            fits = crop == square and (exact if self._pads else known)
        else:
            fits = exact if self._pads else self._size == square
        if not fits:
            raise CallError(
                f"the image processor's settings (size {self._size}, crop_size {dict(crop)}) do "
                f"not give the {side} x {side} pixels that the vision tower takes: correct "
                "preprocessor_config.json"
            )


def pad_and_resize(
    image: Image.Image,
    side: int,
    colour: tuple[int, int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Pad a picture to a square with one colour, then resize the square: LLaVA's "pad".

    The padded square of a long, thin picture can be far larger than the picture, so it never
    exists: Pillow resizes along the rows first and then along the columns, and rows do not see one
    another, so a strip of rows at a time is padded and narrowed. The result equals that of resizing
    the whole square, bit for bit.

    Args:
        image: an RGB picture.
        side: of the result, in pixels.
        colour: the fill, red, green and blue in 0..255.
        resample: Pillow's filter.

    Returns:
        An RGB picture of `side` x `side` pixels, the given one in its middle.
    """
    width, height = image.size
    long = max(width, height)
    left, top = (long - width) // 2, (long - height) // 2
    # A row of one colour keeps it, so only the rows of the picture need work.
    narrow = Image.new("RGB", (side, long), colour)
    step = max(1, _STRIP_PIXELS // long)
    for start in range(0, height, step):
        rows = min(step, height - start)
        strip = Image.new("RGB", (long, rows), colour)
        strip.paste(image.crop((0, start, width, start + rows)), (left, 0))
        narrow.paste(strip.resize((side, rows), resample), (0, top + start))
    return narrow.resize((side, side), resample)


def seen_by_model(
    image: Image.Image,
    *,
    image_aspect: ImageAspect,
    image_size: int,
    side: int = 672,
) -> Image.Image:
    """The square part of an image that enters the vision tower, drawn larger than it enters.

    Args:
        image: RGB, upright.
        image_aspect: "processor": the shortest edge fills the square, the rest is cropped evenly;
            "pad": the whole image on a square of CLIP's mean colour.
        image_size: side of the tower's input in pixels; the crop is rounded as it is there.
        side: side of the result in pixels.

    Returns:
        An RGB picture of `side` x `side` pixels.
    """
    width, height = image.size
    if image_aspect == "pad":
        return pad_and_resize(image, side, PAD_COLOUR, Image.Resampling.LANCZOS)
    # The processor resizes, rounding down, and then crops: its box, in the original's pixels.
    sizes = [int(image_size * length / min(width, height)) for length in (width, height)]
    starts = [(length - image_size) // 2 for length in sizes]
    scale = [width / sizes[0], height / sizes[1]]
    box = (
        starts[0] * scale[0],
        starts[1] * scale[1],
        min((starts[0] + image_size) * scale[0], width),
        min((starts[1] + image_size) * scale[1], height),
    )
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box)


def _entries(processor: Any, name: str) -> dict[str, int]:
    """A size setting without the entries that are not set."""
    return {key: value for key, value in dict(getattr(processor, name) or {}).items() if value}


def _flag(processor: Any, name: str) -> bool:
    """A switch of the processor; a missing one is off."""
    return bool(getattr(processor, name, False))
