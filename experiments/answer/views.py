"""Which part of a picture each visual token shows, as panels for `overlay.draw`.

LLaVA-1.5 sees one square. LLaVA-NeXT sees the whole picture squeezed into a square and the picture
again in tiles; its newline tokens show nothing. Qwen2.5-VL sees the whole picture, and a video in
groups of frames.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.experiments.answer.overlay import SIDE, View, seen_by_model
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.images import ImageAspect
from resprune_jax.models.families.llava_next.anyres import packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.registry import Family, Picture, Video
from resprune_jax.models.images.files import open_image

MOST_FRAMES = 12
"""Groups of frames of a video that are drawn, evenly spread."""


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
    parts: list[Part] = []
    start = 0
    for number, picture in enumerate(pictures):
        title = f"image {number + 1}" if len(pictures) > 1 else ""
        if isinstance(picture, Video):
            own, count = _film(family, picture, start, title or "video")
        else:
            own, count = _image_parts(family, picture, start, title, image_aspect)
        parts += own
        start += count
    chosen = np.asarray([] if picks is None else picks, np.int64)
    views = [_view(part, None if picks is None else chosen) for part in parts]
    if len(parts) == 1:
        whole = View(f"all {start} visual tokens", parts[0].pixels, parts[0].grid, None)
        if picks is None:
            return [whole]
        kept = f"{len(chosen)} visual tokens kept"
        return [whole, dataclasses.replace(views[0], title=kept)]
    return views


def _view(part: Part, picks: np.ndarray | None) -> View:
    total = len(part.tokens)
    if picks is None:
        return View(f"{part.name}: all {total}", part.pixels, part.grid, None)
    cell = dict(zip(part.tokens.tolist(), part.cells.tolist(), strict=True))
    kept = [cell[pick] for pick in picks.tolist() if pick in cell]
    seed = len(picks) > 0 and int(picks[0]) in cell
    title = f"{part.name}: {len(kept)} of {total}"
    return View(title, part.pixels, part.grid, kept, seed)


def _image_parts(
    family: Family, picture: Any, start: int, title: str, image_aspect: ImageAspect
) -> tuple[list[Part], int]:
    """The parts of an image, and how many visual tokens it gives."""
    image, config = open_image(picture), family.config
    if isinstance(config, LlavaConfig):
        side, grid = config.vision.image_size, (config.vision.grid,) * 2
        seen = seen_by_model(image, image_aspect=image_aspect, image_size=side)
        cells = np.arange(config.num_visual_tokens)
        return [Part(title, seen, grid, start + cells, cells)], len(cells)
    if isinstance(config, LlavaNextConfig):
        return _tiled_parts(config, image, start, title)
    layout = family.layout(image.height, image.width)
    assert layout.grid is not None
    grid = layout.grid.rows, layout.grid.columns
    cells = np.arange(layout.tokens)
    return [Part(title, _drawn(image), grid, start + cells, cells)], layout.tokens


def _tiled_parts(
    config: LlavaNextConfig, image: Image.Image, start: int, title: str
) -> tuple[list[Part], int]:
    """The picture squeezed into a square, and the part of the tiles' plane that it covers."""
    own = packing(image.height, image.width, config)
    patches, front = config.patches_per_tile, f"{title}, " if title else ""
    base, side = np.arange(patches), config.vision.grid
    square = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    parts = [Part(f"{front}whole", square, (side, side), start + base, base)]
    if own.rows and own.columns:
        tokens = np.arange(own.rows * (own.columns + 1))
        row, column = np.divmod(tokens, own.columns + 1)
        shown = column < own.columns  # the last of each row is its newline
        cells = (row * own.columns + column)[shown]
        places = (start + patches + tokens)[shown]
        grid = own.rows, own.columns
        parts.append(Part(f"{front}tiles", _drawn(image), grid, places, cells))
    return parts, len(own.index)


def _film(family: Family, video: Video, start: int, title: str) -> tuple[list[Part], int]:
    """A part for each group of frames, shown by its first one."""
    layout = family.read([[video]], "processor").layouts[0][0]
    assert layout.grid is not None
    grid = layout.grid.rows, layout.grid.columns
    each, groups = grid[0] * grid[1], layout.grid.frames
    drawn = set(np.unique(np.linspace(0, groups - 1, min(groups, MOST_FRAMES)).round().astype(int)))
    parts = []
    span = family.config.vision.temporal_patch_size
    cells = np.arange(each)
    for number, frame in enumerate(_frames(video, span)):
        group, first = divmod(number, span)
        if first == 0 and group in drawn:
            tokens = start + group * each + cells
            parts.append(Part(f"{title}, frame {number + 1}", _drawn(frame), grid, tokens, cells))
    return parts, layout.tokens


def _frames(video: Video, span: int) -> Iterator[Image.Image]:
    """The frames that the model saw."""
    from resprune_jax.models.families.qwen_vl.video import read_video

    options = {"fps": video.fps, "sampling": video.sampling, "group": span}
    with read_video(video.frames, **options) as frames:  # type: ignore[arg-type]
        yield from frames


def _drawn(image: Image.Image) -> np.ndarray:
    """A picture at the size of a panel, its aspect ratio kept."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
