"""HiRED: top tokens by CLS attention, the budget of the tiles shared out by an early layer."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.encoder.ranking import top
from tests.methods.oracles.result import Kept


def summed(heads_saliency: np.ndarray) -> list[float]:
    """CLS attention (H, N) summed over heads."""
    heads, tokens = heads_saliency.shape
    return [sum(float(heads_saliency[h, i]) for h in range(heads)) for i in range(tokens)]


def hired(*, heads_saliency: np.ndarray, keep: int | None = None, rate: float = 0.2) -> Kept:
    """LLaVA-1.5: top int(N rate) by CLS attention of layer 22 summed over heads, image order.

    hasanar1f/HiRED @ 502d6dd. `keep` takes the place of int(N rate). Ties: the lowest index.
    """
    scores = summed(heads_saliency)
    count = int(len(scores) * rate) if keep is None else keep
    return Kept(sorted(top(scores, count)))


def region(
    token: int, tokens: tuple[int, int], tiles: tuple[int, int], regions: str = "runs"
) -> int:
    """The sub-image (raster order of the tiles) to which a token of the base tile counts.

    "runs": as the code, equal contiguous runs of the raster order. "quadrants": the part of the
    picture that the sub-image shows; a cell on a border between parts counts by its upper left
    corner.
    """
    rows, columns = tokens
    high, wide = tiles
    if regions == "runs":
        if (rows * columns) % (high * wide):
            raise ValueError(f"{rows * columns} tokens do not divide into {high * wide} runs")
        return token // (rows * columns // (high * wide))
    if regions == "quadrants":
        row, column = token // columns, token % columns
        return (row * high // rows) * wide + column * wide // columns
    raise ValueError(f"regions {regions!r}: runs or quadrants")


def allocate(
    *,
    first_heads_saliency: np.ndarray,
    grid: tuple[int, int],
    tiles: tuple[int, int],
    keep: int | None = None,
    rate: float = 0.2,
    alpha: float = 0.5,
    regions: str = "runs",
) -> list[int]:
    """The budgets of the base tile and of each sub-image (LLaVA-NeXT).

    B = int(n_tiles N rate) with the base tile counted, or `keep`. Base: min(int(B alpha), N). What
    is left of B goes to the sub-images in proportion to the marks that fall into their regions,
    the marks being the top int(N (1 - alpha)) places of the base tile by CLS attention of layer
    0 (summed over heads); floored and cut at N, remainders are lost. Flooring is done in integers
    (the code's floats are taken to mean that). Left open: no marks at all (alpha = 1): nothing.
    """
    scores = summed(first_heads_saliency)
    parts = tiles[0] * tiles[1]
    budget = int((parts + 1) * len(scores) * rate) if keep is None else keep
    base = min(int(budget * alpha), len(scores))
    marks = [0] * parts
    for token in top(scores, int(len(scores) * (1 - alpha))):
        marks[region(token, grid, tiles, regions)] += 1
    shares = [base]
    for mark in marks:
        share = (budget - base) * mark // sum(marks) if sum(marks) else 0
        shares.append(min(share, len(scores)))
    return shares


def hired_next(
    *,
    heads_saliency: Sequence[np.ndarray],
    first_heads_saliency: np.ndarray,
    grid: tuple[int, int],
    tiles: tuple[int, int],
    keep: int | None = None,
    rate: float = 0.2,
    alpha: float = 0.5,
    regions: str = "runs",
) -> list[Kept]:
    """LLaVA-NeXT: each tile's own top tokens, as many as `allocate` gives it.

    Args:
        heads_saliency: one (H, N) of layer 22 a tile, the base tile first.
        first_heads_saliency: (H, N) of layer 0, the base tile's.
        grid: (rows, columns) of the tokens of a tile.
        tiles: (rows, columns) of the sub-images.

    Returns:
        One keep list a tile, in image order, indices within the tile. Features and mask are
        unpadded afterwards, and there are no newline tokens: not the oracle's affair.
    """
    shares = allocate(
        first_heads_saliency=first_heads_saliency,
        grid=grid,
        tiles=tiles,
        keep=keep,
        rate=rate,
        alpha=alpha,
        regions=regions,
    )
    kept = []
    for tile, share in zip(heads_saliency, shares, strict=True):
        kept.append(hired(heads_saliency=tile, keep=share))
    return kept
