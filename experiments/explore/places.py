"""Pictures for the page, and which place of them each visual token shows.

The families say it (`Family.regions`): LLaVA-1.5 sees one square, LLaVA-NeXT and LLaVA-OneVision
the whole picture and its tiles, Qwen a grid over the whole picture.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.explore.data import Picture, View
from resprune_jax.models.families.base import Family, ImageAspect, Video
from resprune_jax.models.images.files import open_image

SIDES = (896, 768, 640, 512, 384, 256, 160)
"""Longest sides that pictures are drawn with, in pixels: the first that fits its share."""

QUALITY = 86  # of JPEG

DRAWN = 4096
"""Colours up to which a picture is a drawing: as PNG it is smaller, and sharp."""


def views_of(
    family: Family,
    images: Sequence[Any],
    *,
    image_aspect: ImageAspect = "processor",
    most_bytes: int = 10**9,
) -> tuple[list[Picture], list[View], int]:
    """The pictures of one prompt, and the grids of visual tokens on them.

    Args:
        family: the model's.
        images: the prompt's images, in order.
        image_aspect: as the call has it.
        most_bytes: that each picture may take, as far as `SIDES` go.

    Returns:
        (pictures, views, visual tokens of the prompt).

    Raises:
        CallError: a video.
    """
    if any(isinstance(image, Video) for image in images):
        raise CallError("a page shows images, not videos: give frames of it as images")
    pictures: list[Picture] = []
    views: list[View] = []
    start = 0
    for number, given in enumerate(images):
        image = open_image(given)
        title = f"image {number + 1}" if len(images) > 1 else ""
        drawn: dict[int, int] = {}  # a picture that several views lie on is held once
        for region in family.regions(image, image_aspect, together=len(images)):
            if id(region.picture) not in drawn:
                drawn[id(region.picture)] = len(pictures)
                pictures.append(embedded(region.picture, most_bytes))
            views.append(
                View(
                    ", ".join(filter(None, (title, region.name))),
                    drawn[id(region.picture)],
                    *region.grid,
                    tuple((start + region.tokens).tolist()),
                    tuple(region.cells.tolist()),
                )
            )
        start += family.layout(image.height, image.width, together=len(images)).tokens
    return pictures, views, start


def embedded(image: Image.Image, most_bytes: int) -> Picture:
    """A picture as a data URI, small enough for its share: JPEG, or PNG where it is a drawing.

    Args:
        image: RGB.
        most_bytes: of the URI; the smallest of `SIDES` is taken where none fits.
    """
    for side in SIDES:
        scale = min(1.0, side / max(image.size))
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
        kinds = {"jpeg": _bytes(small, "JPEG", quality=QUALITY, optimize=True)}
        if small.getcolors(DRAWN) is not None:
            kinds["png"] = _bytes(small, "PNG", optimize=True)
        kind, content = min(kinds.items(), key=lambda own: len(own[1]))
        src = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        if len(src) <= most_bytes:
            break
    return Picture(src, *small.size)


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
