"""Outlines of shapes and glyphs of printed text, as small anti-aliased masks."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resprune_jax.experiments.pocket.scenes.words import SHAPES

FINE = 4  # masks are drawn this many times larger, then averaged
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
)
"""Files that matplotlib ships (Bitstream Vera and SIL Open Font licences)."""

_MEASURE = 1024  # font size at which glyphs are measured, large enough for hinting not to matter

Points = np.ndarray
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def _arc(radius: float, start: float, stop: float, steps: int, x: float = 0.0) -> list[list[float]]:
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return [[x + radius * math.cos(a), radius * math.sin(a)] for a in angles]


def _unit_outlines() -> dict[str, Points]:
    """Each shape around the origin, y downwards, the longer side of its box two units long."""
    full = _arc(1.0, 0, 360, 44)
    star = [
        [r * math.sin(math.radians(36 * i)), -r * math.cos(math.radians(36 * i))]
        for i, r in enumerate([1.0, 0.44] * 5)
    ]
    heart = []
    for i in range(44):
        t = 2 * math.pi * i / 44
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        heart.append([16 * math.sin(t) ** 3, -y])
    # A crescent: the outer circle's left part, back along a smaller circle that sits to the right.
    inner, shift = 0.80, 0.46
    cut = (1 - inner**2 + shift**2) / (2 * shift)
    outer_end = math.degrees(math.acos(cut))
    inner_end = math.degrees(math.acos((cut - shift) / inner))
    moon = _arc(1.0, outer_end, 360 - outer_end, 36)
    moon += _arc(inner, 360 - inner_end, inner_end, 30, x=shift)
    raw = {
        "circle": full,
        "square": [[-1, -1], [1, -1], [1, 1], [-1, 1]],
        "triangle": [[0, -0.9], [1, 0.84], [-1, 0.84]],
        "star": star,
        # One line around the rim, a slit to the hole, and back around it.
        "ring": full + _arc(0.56, 360, 0, 44),
        "diamond": [[0, -1], [0.7, 0], [0, 1], [-0.7, 0]],
        "heart": heart,
        "moon": moon,
        "arrow": [
            [-1, -0.3], [0.08, -0.3], [0.08, -0.86], [1, 0], [0.08, 0.86], [0.08, 0.3], [-1, 0.3],
        ],
    }  # fmt: skip
    outlines = {}
    for shape in SHAPES:
        points = np.array(raw[shape], np.float64)
        low, high = points.min(0), points.max(0)
        outlines[shape] = (points - (low + high) / 2) * (2 / (high - low).max())
    # A square that fills its box looks larger than everything else.
    outlines["square"] *= 0.9
    return outlines


_UNIT = _unit_outlines()
TURN = {"circle": 0, "ring": 0, "square": 8, "diamond": 6, "moon": 25}
"""Largest rotation in degrees, either way; a square on its tip would be a diamond. Others: 12."""


@lru_cache(maxsize=4096)
def outline(shape: str, extent: float, angle: int) -> Points:
    """The corners of a shape about its centre.

    Args:
        shape: one of SHAPES.
        extent: longer side of its box before rotation, in pixels.
        angle: rotation in degrees, clockwise.

    Returns:
        (P, 2) float64 (x, y) in pixels, rounded to 1/64 so that every platform agrees.
    """
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return np.round(_UNIT[shape] @ matrix * (extent / 2) * 64) / 64


def polygon_mask(points: Points) -> tuple[Image.Image, int, int]:
    """An anti-aliased mask of a polygon.

    Args:
        points: (P, 2) corners (x, y) in pixels of the image.

    Returns:
        The mask (mode L, 255 inside) and the column and row of its first pixel.
    """
    left, top = (int(v) for v in np.floor(points.min(0)))
    right, bottom = (int(v) for v in np.ceil(points.max(0)))
    fine = Image.new("L", ((right - left) * FINE, (bottom - top) * FINE))
    # Pillow speaks of pixels by their centres, which lie half a fine pixel in.
    corners = (points - (left, top)) * FINE - 0.5
    ImageDraw.Draw(fine).polygon(corners.ravel().tolist(), fill=255)
    return fine.reduce(FINE), left, top


def stroke_mask(
    points: Sequence[tuple[float, float]], width: float
) -> tuple[Image.Image, int, int]:
    """An anti-aliased mask of a line through points, or of a dot where there is one point.

    Args:
        points: (x, y) in pixels of the image.
        width: of the line, or the dot's diameter, in pixels.

    Returns:
        The mask (mode L) and the column and row of its first pixel.
    """
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    left, top = math.floor(min(xs) - width), math.floor(min(ys) - width)
    size = (math.ceil(max(xs) + width) - left, math.ceil(max(ys) + width) - top)
    fine = Image.new("L", (size[0] * FINE, size[1] * FINE))
    at = [((x - left) * FINE, (y - top) * FINE) for x, y in points]
    if len(at) == 1:
        ImageDraw.Draw(fine).circle(at[0], width * FINE / 2, fill=255)
    else:
        ImageDraw.Draw(fine).line(at, fill=255, width=round(width * FINE), joint="curve")
    return fine.reduce(FINE), left, top


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=256)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that matplotlib ships, by the name of its file, at a size in pixels."""
    path = str(_font_folder() / f"{name}.ttf")
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1024)
def _measure(name: str, character: str) -> tuple[float, float, float]:
    """Advance, and top and bottom of the ink about the baseline (y downwards), in ems."""
    font = load_font(name, _MEASURE)
    _, top, _, bottom = font.getbbox(character, anchor="ls")
    # In steps coarse enough that another version of FreeType measures the same.
    advance, high, low = (
        round(v / _MEASURE * 128) / 128 for v in (font.getlength(character), top, bottom)
    )
    return advance, high, low


def text_cells(text: str, font: str, em: float) -> list[Box]:
    """The cell of every character: as wide as its advance, as high as the ink of the whole text.

    Args:
        text: what is printed.
        font: one of FONTS.
        em: font size in pixels.

    Returns:
        Boxes whose first has its left top corner at (0, 0).
    """
    measures = [_measure(font, character) for character in text]
    height = em * (max(m[2] for m in measures) - min(m[1] for m in measures))
    cells, x = [], 0.0
    for advance, _, _ in measures:
        cells.append((x, 0.0, x + advance * em, height))
        x += advance * em
    return cells


@lru_cache(maxsize=8192)
def _glyph(font: str, size: int, character: str) -> tuple[Image.Image, int, int]:
    """A glyph's mask, and where it starts about the pen on the baseline, in fine pixels."""
    left, top, right, bottom = (
        int(v) for v in load_font(font, size).getbbox(character, anchor="ls")
    )
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text(
        (1 - left, 1 - top), character, fill=255, font=load_font(font, size), anchor="ls"
    )
    return mask, left - 1, top - 1


def text_mask(text: str, font: str, em: float, x: float, y: float) -> tuple[Image.Image, int, int]:
    """An anti-aliased mask of printed text, glyph by glyph without kerning.

    Args:
        text: what is printed.
        font: one of FONTS.
        em: font size in pixels, a multiple of 1/FINE.
        x: left edge of the text's box in pixels, a multiple of 1/FINE.
        y: top edge of the same.

    Returns:
        The mask (mode L) and the column and row of its first pixel.
    """
    cells = text_cells(text, font, em)
    left, top = math.floor(x) - 1, math.floor(y) - 1
    width = math.ceil(x + cells[-1][2]) + 2 - left
    height = math.ceil(y + cells[-1][3]) + 2 - top
    fine = Image.new("L", (width * FINE, height * FINE))
    baseline = round((y - top - em * min(_measure(font, c)[1] for c in text)) * FINE)
    for character, cell in zip(text, cells, strict=True):
        mask, dx, dy = _glyph(font, round(em * FINE), character)
        at = (round((x - left + cell[0]) * FINE) + dx, baseline + dy)
        fine.paste(255, at, mask)
    return fine.reduce(FINE), left, top
