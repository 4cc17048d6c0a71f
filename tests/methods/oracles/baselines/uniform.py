"""Evenly spaced tokens of the grid."""

import math

from tests.methods.oracles.result import Kept


def middles(length: int, count: int) -> list[int]:
    """Cells that hold the middles of `count` equal parts of a line of `length` cells."""
    return [((2 * part + 1) * length) // (2 * count) for part in range(count)]


def uniform(*, grid: tuple[int, int], keep: int, layout: str = "rows") -> Kept:
    """Tokens spread evenly over the picture, in image order.

    No repository and no paper defines this baseline: the specification only names it ("grid"), so
    each reading is an option.

    Args:
        grid: (rows, columns) of the image.
        keep: T.
        layout: "rows": exactly T tokens, r = round(sqrt(T rows / columns)) evenly spaced rows (half
            up; at least as many as T needs, at most the grid's) that share T evenly, row k taking
            floor((k+1) T / r) - floor(k T / r) evenly spaced columns. "cells": r x c tokens, r as
            before and c = floor(T / r), so at most T. "raster": the middles of T equal parts of
            the raster order, exactly T, blind to the second dimension.
    """
    rows, columns = grid
    if not 1 <= keep <= rows * columns:
        raise ValueError(f"{keep} of {rows} x {columns} tokens")
    if layout == "raster":
        return Kept(middles(rows * columns, keep))
    wanted = math.floor(math.sqrt(keep * rows / columns) + 0.5)
    lines = min(max(wanted, -(-keep // columns), 1), rows, keep)
    chosen = []
    for line, row in enumerate(middles(rows, lines)):
        if layout == "rows":
            share = (line + 1) * keep // lines - line * keep // lines
        elif layout == "cells":
            share = keep // lines
        else:
            raise ValueError(f"layout {layout!r}: rows, cells or raster")
        for column in middles(columns, share):
            chosen.append(row * columns + column)
    return Kept(chosen)
