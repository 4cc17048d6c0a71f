"""Which part of a picture each visual token shows, as panels for `overlay.draw`.

LLaVA-1.5 sees one square. LLaVA-NeXT sees the whole picture squeezed into a square and the picture
again in tiles; its newline tokens show nothing. Qwen2.5-VL sees the whole picture, and a video in
groups of frames.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.experiments.answer.overlay import SIDE, View
from resprune_jax.models.families.base import Family, ImageAspect, Picture, Video
from resprune_jax.models.images.files import open_image

MOST_FRAMES = 12
"""Groups of frames of a video that are drawn, evenly spread."""

LONGEST = 34
"""Letters of a panel's title."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Visual tokens that lie on one drawing.

    Attributes:
        name: what it shows, for the panel's title; empty where it is all there is.
        pixels: (H, W, 3) uint8.
        grid: rows and columns of tokens.
        tokens: (n,) the prompt's visual tokens that lie on it.
        cells: (n,) where each of them lies, in raster order.
    """

    name: str
    pixels: np.ndarray
    grid: tuple[int, int]
    tokens: np.ndarray
    cells: np.ndarray


def panels_of(
    family: Family,
    pictures: Sequence[Picture],
    picks: Sequence[int] | None,
    *,
    image_aspect: ImageAspect = "processor",
) -> list[View]:
    """Panels of one prompt's pictures.

    Args:
        family: the model's.
        pictures: the prompt's images and videos, in order.
        picks: the visual tokens kept, in order of choice; None for all.
        image_aspect: as the call had it.

    Returns:
        A panel a part, or two, all and kept, where a prompt has a single part.
    """
    parts, start = parts_of(family, pictures, image_aspect=image_aspect)
    chosen = np.asarray([] if picks is None else picks, np.int64)
    views = [view_of(part, None if picks is None else chosen) for part in parts]
    if len(parts) == 1:
        whole = View(f"all {start} visual tokens", parts[0].pixels, parts[0].grid, None)
        if picks is None:
            return [whole]
        kept = f"{len(chosen)} visual tokens kept"
        return [whole, dataclasses.replace(views[0], title=kept)]
    return views


def titled(
    family: Family, pictures: Sequence[Picture], picks: Sequence[int] | None, title: str
) -> list[View]:
    """The panels of one setting among several: a part each, no seed ringed.

    Args:
        family: the model's.
        pictures: the prompt's images and videos, in order.
        picks: the visual tokens kept; None for all.
        title: of the first panel, cut to its width; the others say which part they are.
    """
    parts, _ = parts_of(family, pictures)
    chosen = None if picks is None else np.asarray(picks, np.int64)
    views = [view_of(part, chosen) for part in parts]
    short = title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…"
    heads = [short, *(view.title for view in views[1:])]
    return [
        dataclasses.replace(view, title=head, seed=False)
        for view, head in zip(views, heads, strict=True)
    ]


def parts_of(
    family: Family, pictures: Sequence[Picture], *, image_aspect: ImageAspect = "processor"
) -> tuple[list[Part], int]:
    """What the visual tokens of one prompt lie on, and how many there are.

    Args:
        family: the model's.
        pictures: the prompt's images and videos, in order.
        image_aspect: as the call had it.
    """
    parts: list[Part] = []
    start, together = 0, sum(not isinstance(picture, Video) for picture in pictures)
    for number, picture in enumerate(pictures):
        title = f"image {number + 1}" if len(pictures) > 1 else ""
        if isinstance(picture, Video):
            own, count = _film(family, picture, start, title or "video")
        else:
            own, count = _image_parts(family, picture, start, title, image_aspect, together)
        parts += own
        start += count
    return parts, start


def view_of(part: Part, picks: np.ndarray | None) -> View:
    """A panel of a part; `picks` (K,) are the prompt's tokens in order of choice, None for all."""
    total = len(part.tokens)
    if picks is None:
        return View(f"{part.name}: all {total}", part.pixels, part.grid, None)
    cell = dict(zip(part.tokens.tolist(), part.cells.tolist(), strict=True))
    kept = [cell[pick] for pick in picks.tolist() if pick in cell]
    seed = len(picks) > 0 and int(picks[0]) in cell
    title = f"{part.name}: {len(kept)} of {total}"
    return View(title, part.pixels, part.grid, kept, seed)


def _image_parts(
    family: Family,
    picture: Any,
    start: int,
    title: str,
    image_aspect: ImageAspect,
    together: int,
) -> tuple[list[Part], int]:
    """The parts of an image, and how many visual tokens it gives."""
    image = open_image(picture)
    parts = [
        Part(
            ", ".join(filter(None, (title, region.name))),
            _drawn(region.picture, square=region.square),
            region.grid,
            start + region.tokens,
            region.cells,
        )
        for region in family.regions(image, image_aspect, together=together)
    ]
    return parts, family.layout(image.height, image.width, together=together).tokens


def _film(family: Family, video: Video, start: int, title: str) -> tuple[list[Part], int]:
    """A part for each group of frames, shown by its first one."""
    layout = family.read([[video]], "processor").layouts[0][0]
    assert layout.grid is not None
    grid = layout.grid.rows, layout.grid.columns
    each, groups = grid[0] * grid[1], layout.grid.frames
    drawn = set(np.unique(np.linspace(0, groups - 1, min(groups, MOST_FRAMES)).round().astype(int)))
    parts = []
    span = family.frame_span
    cells = np.arange(each)
    with family.frames(video) as frames:
        for number, frame in enumerate(frames):
            group, first = divmod(number, span)
            if first == 0 and group in drawn:
                name = f"{title}, frame {number + 1}"
                tokens = start + group * each + cells
                parts.append(Part(name, _drawn(frame), grid, tokens, cells))
    return parts, layout.tokens


def _drawn(image: Image.Image, *, square: bool = False) -> np.ndarray:
    """A picture at the size of a panel, its aspect ratio kept unless it is drawn as a square."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    size = (SIDE, SIDE) if square else size
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
