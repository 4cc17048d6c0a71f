"""Average pooling on the grid."""

import math
from fractions import Fraction

import numpy as np

from tests.methods.oracles.result import Kept


def pooled_size(*, grid: tuple[int, int], keep: int, rule: str = "largest") -> tuple[int, int]:
    """The pooled grid (r, c) with r c <= T, r <= rows, c <= columns.

    Left open by the specification. "largest": the largest product, among equal products the shape
    whose r/c is nearest to rows/columns in logarithm, then the fewest rows: 128 -> 8 x 16 on
    24 x 24. "aspect": r = floor(sqrt(T rows / columns)), at least 1, c = floor(T / r), each cut to
    the grid: 128 -> 11 x 11.
    """
    rows, columns = grid
    if keep < 1:
        raise ValueError(f"{keep} tokens")
    if rule == "aspect":
        high = min(max(math.isqrt(keep * rows // columns), 1), rows)
        return high, min(keep // high, columns)
    if rule != "largest":
        raise ValueError(f"rule {rule!r}: largest or aspect")
    best, nearest = (1, 1), Fraction(rows * columns)
    for high in range(1, rows + 1):
        for wide in range(1, columns + 1):
            stretch = Fraction(high * columns, wide * rows)
            stretch = max(stretch, 1 / stretch)  # 1: the picture's own shape
            product, most = high * wide, best[0] * best[1]
            if most < product <= keep or (product == most and stretch < nearest):
                best, nearest = (high, wide), stretch
    return best


def edges(length: int, count: int, part: int, bins: str) -> tuple[int, int]:
    """First cell and end of one bin: "adaptive" bins may overlap, "partition" bins never do."""
    start = part * length // count
    if bins == "adaptive":
        return start, -(-(part + 1) * length // count)
    if bins == "partition":
        return start, (part + 1) * length // count
    raise ValueError(f"bins {bins!r}: adaptive or partition")


def pooling(
    *,
    embeddings: np.ndarray,
    grid: tuple[int, int],
    keep: int,
    size: tuple[int, int] | None = None,
    bins: str = "adaptive",
) -> Kept:
    """Means over the bins of a coarser grid, in image order; every row is an aggregate.

    Left open by the specification: the pooled size (`size`, or `pooled_size`), the bins where the
    size does not divide the grid ("adaptive": from floor(k n / r) to ceil((k+1) n / r), as
    adaptive average pooling is commonly defined; "partition": each token in one bin) and whether
    it is before or after the projector: give the rows that are to be pooled.

    Args:
        embeddings: (N, d) rows in raster order.
        grid: (rows, columns).
        keep: T, at most.
        size: the pooled grid; None is `pooled_size(grid=grid, keep=keep)`.
        bins: "adaptive" or "partition".
    """
    rows, columns = grid
    if len(embeddings) != rows * columns:
        raise ValueError(f"{len(embeddings)} rows, a grid of {rows} x {columns}")
    high, wide = size or pooled_size(grid=grid, keep=keep)
    if high * wide > keep or high > rows or wide > columns:
        raise ValueError(f"{high} x {wide} bins of {rows} x {columns} for {keep}")
    merged = []
    for i in range(high):
        top, bottom = edges(rows, high, i, bins)
        for j in range(wide):
            left, right = edges(columns, wide, j, bins)
            total = np.zeros(embeddings.shape[1], np.float64)
            for row in range(top, bottom):
                for column in range(left, right):
                    total = total + np.asarray(embeddings[row * columns + column], np.float64)
            merged.append(total / ((bottom - top) * (right - left)))
    return Kept([-1] * len(merged), np.stack(merged))
