"""Fewer pixels in: the plain baseline that VTC-Bench (arXiv 2510.07143) asks for."""

import math

import numpy as np


def side(keep: int) -> int:
    """s = round(sqrt(T)), at least 1: the picture is resized to s x s patches, s^2 tokens."""
    return max(1, round(math.sqrt(keep)))  # an integer's root is never half way between two


def count(keep: int) -> int:
    """s^2, the tokens that really enter: 128 -> 121, 192 -> 196, 64 -> 64."""
    return side(keep) ** 2


def max_pixels(keep: int, *, patch: int = 14, merge: int = 2) -> int:
    """Qwen2.5-VL: the picture's area in pixels for T merged tokens of (patch merge)^2 each."""
    return keep * (patch * merge) ** 2


def cubic(x: float, a: float) -> float:
    """Keys' cubic kernel with parameter a."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return ((x - 5) * x + 8) * a * x - 4 * a
    return 0.0


def weights(length: int, new: int, place: int, antialias: bool) -> dict[int, float]:
    """The cells of a line of `length`, and their weights, that make cell `place` of `new`.

    Cells are intervals (corners are not aligned). Without antialiasing: four taps, a = -0.75, taps
    beyond the border fall on the border cell. With it: a = -0.5, the kernel stretched by the
    reduction, cut at the border and normalised.
    """
    scale = length / new
    found: dict[int, float] = {}
    if not antialias:
        centre = (place + 0.5) * scale - 0.5
        first = math.floor(centre)
        for tap in range(first - 1, first + 3):
            cell = min(max(tap, 0), length - 1)
            found[cell] = found.get(cell, 0.0) + cubic(centre - tap, -0.75)
        return found
    centre, stretch = (place + 0.5) * scale, max(scale, 1.0)
    start = max(int(centre - 2 * stretch + 0.5), 0)
    end = min(int(centre + 2 * stretch + 0.5), length)
    for cell in range(start, end):
        found[cell] = cubic((cell + 0.5 - centre) / stretch, -0.5)
    total = sum(found.values())
    return {cell: weight / total for cell, weight in found.items()}


def position_embeddings(
    table: np.ndarray, size: tuple[int, int], *, antialias: bool = False
) -> np.ndarray:
    """Position embeddings for a smaller grid: the CLS row as it is, the rest bicubically.

    "As CLIP ports do" is read as the Hugging Face port: no antialiasing. open_clip and timm
    resize with antialiasing: an option.

    Args:
        table: (1 + n^2, d), CLS first, then the square grid in raster order.
        size: (rows, columns) of the new grid.

    Returns:
        (1 + rows columns, d).
    """
    old = math.isqrt(len(table) - 1)
    if old * old != len(table) - 1:
        raise ValueError(f"{len(table)} rows are not a CLS row and a square grid")
    table = np.asarray(table, np.float64)
    rows = [table[0]]
    for i in range(size[0]):
        for j in range(size[1]):
            row = np.zeros(table.shape[1])
            for y, down in weights(old, size[0], i, antialias).items():
                for x, across in weights(old, size[1], j, antialias).items():
                    row = row + down * across * table[1 + y * old + x]
            rows.append(row)
    return np.stack(rows)
