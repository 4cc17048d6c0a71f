"""AdaptPrune: one drop before layer K by several cues, attention thinned out (arXiv 2503.08019)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts
from tests.methods.oracles.decoder.dart import cosine
from tests.methods.oracles.decoder.drops import Drops


def adaptprune_prior(grid: tuple[int, int], half: float = 12.0, sigma: float = 12.0) -> np.ndarray:
    """The Gaussian in the middle of the grid, (rows, columns), over -half..half on both axes.

    A single row or column lies in the middle.
    """
    axes = [np.linspace(-half, half, size) if size > 1 else [0.0] for size in grid]
    prior = np.zeros(grid)
    for r, y in enumerate(axes[0]):
        for c, x in enumerate(axes[1]):
            prior[r, c] = np.exp(-(x * x + y * y) / (2 * sigma * sigma))
    return prior


def adaptprune(
    attention_row: np.ndarray,
    keys: np.ndarray,
    visual: Sequence[int],
    keep: int,
    *,
    grid: tuple[int, int] = (24, 24),
    half: float = 12.0,
    prior_sigma: float = 12.0,
    radius: float = 5.0,
    space_sigma: float = 1.5,
    key_sigma: float = 0.05,
    steps: tuple[float, float] = (1.0, 1.0),
    layer: int = 2,
    layers: int = 32,
) -> Drops:
    """The peaks of attention times a prior; each pick lowers its neighbours that look like it.

    bzluan/AdaptPrune @ d0842f3. A pick at distance d of a cell, up to `radius` and that included,
    leaves it 1 - exp(-d^2 / (2 space_sigma^2)) exp(-(1 - cos)^2 / (2 key_sigma^2)) of its score.
    Image order, original position ids. Ties: lowest index first.

    Left open, and assumed here: the released factor of 0 for the pick itself would let it be picked
    again once every score is 0, so picked cells are out for good. "Within the radius" includes
    it. The prior is not divided by its largest cell (0.998 on 24 x 24): no rank depends on that.
    The release knows 24 x 24 only; `steps` says how many cells of that grid one row and one column
    count on another (see `adaptprune_steps`); the prior spans every grid.

    Args:
        attention_row: (H, S) attention after the softmax of layer `layer` - 1, last prompt token.
        keys: (N, D) of the visual tokens: layer `layer`'s key projection of the hidden states that
            enter it, *without* its input norm and without RoPE, all heads together.
        visual: the places of the N visual tokens in the sequence, raster order.
        keep: tokens after the drop.
        grid: (rows, columns) of the visual tokens.
    """
    row, keys = np.asarray(attention_row, np.float64), np.asarray(keys, np.float64)
    rows, columns = grid
    prior = adaptprune_prior(grid, half, prior_sigma)
    score = np.zeros(rows * columns)
    for i in range(rows * columns):
        mean = sum(row[head, visual[i]] for head in range(row.shape[0])) / row.shape[0]
        score[i] = mean * prior[i // columns, i % columns]
    picked: set[int] = set()
    while len(picked) < keep:
        pick = max((i for i in range(rows * columns) if i not in picked), key=lambda i: score[i])
        picked.add(pick)
        for i in range(rows * columns):
            down = steps[0] * (i // columns - pick // columns)
            right = steps[1] * (i % columns - pick % columns)
            squared = down * down + right * right
            if i in picked or squared > radius * radius:
                continue
            unlike = 1 - cosine(keys[i], keys[pick])
            near = np.exp(-squared / (2 * space_sigma**2))
            score[i] *= 1 - near * np.exp(-(unlike**2) / (2 * key_sigma**2))
    kept = sorted(picked)
    counts = layer_counts(len(visual), [(layer, len(kept))], layers)
    return Drops(kept=[kept], counts=[int(n) for n in counts])


def adaptprune_steps(grid: tuple[int, int], side: int = 24) -> tuple[float, float]:
    """How many cells of the released 24 x 24 grid a row and a column of another grid count."""
    return side / grid[0], side / grid[1]
