"""CDPruner: greedy MAP of a conditional determinantal point process, an oracle."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import EXHAUSTED, cosine, residual_energy


def raw_relevance(patches: np.ndarray, text: np.ndarray, sign: int = -1) -> list[float]:
    """sign * cos(patch, text row), mean over the text rows: (N, c) and (S, c) to N values."""
    return [float(np.mean([sign * cosine(patch, row) for row in text])) for patch in patches]


def bounds(tiles: Sequence[np.ndarray], text: np.ndarray) -> tuple[float, float]:
    """Least and largest raw relevance over all tiles together, as the released code scales."""
    values = [value for patches in tiles for value in raw_relevance(patches, text)]
    return min(values), max(values)


def scaled(raw: Sequence[float], between: tuple[float, float] | None = None) -> list[float]:
    """(r - min + 1e-6) / (max - min); 1 for every token where all are alike (assumed)."""
    low, high = between if between else (min(raw), max(raw))
    if high == low:
        return [1.0 for _ in raw]
    return [(value - low + 1e-6) / (high - low) for value in raw]


def exponential(relevance: Sequence[float], theta: float) -> list[float]:
    """exp(alpha r) with alpha = theta / (2 (1 - theta))."""
    return [float(np.exp(theta / (2 * (1 - theta)) * value)) for value in relevance]


def greedy_map(embeddings: np.ndarray, relevance: Sequence[float], keep: int) -> list[int]:
    """Picks in order: always the token that multiplies the kernel's determinant the most.

    The kernel is L[i, j] = r[i] cos(i, j) r[j]. The factor that token i would bring,
    det(L of chosen + i) / det(L of chosen), is r[i] ** 2 times the squared norm of what is left of
    the unit row i after projection onto those chosen: that is computed here. Ties: lowest index.

    Past the rank nothing is left but rounding. A token with 2e-6 or less of its unit row left comes
    after all others; among such tokens the larger relevance first, then the index (assumed).
    """
    units = []
    for row in np.asarray(embeddings, np.float64):
        length = np.linalg.norm(row)
        units.append(row / length if length > 0 else row)
    chosen: list[int] = []
    while len(chosen) < min(keep, len(units)):
        best, most = -1, (-1, -np.inf)
        for i, unit in enumerate(units):
            if i in chosen:
                continue
            if chosen:
                left = residual_energy(unit, [units[j] for j in chosen])
            else:
                left = 1.0 if unit.any() else 0.0  # exactly: equal relevances tie
            score = (1, relevance[i] ** 2 * left) if left > EXHAUSTED else (0, relevance[i])
            if score > most:
                best, most = i, score
        chosen.append(best)
    return chosen


def cdpruner(
    *,
    embeddings: np.ndarray,
    clip_patch: np.ndarray,
    clip_text: np.ndarray,
    keep: int,
    theta: float | None = None,
    between: tuple[float, float] | None = None,
    sort: bool = True,
) -> Kept:
    """Theia-4869/CDPruner @ 9541616, arXiv 2506.10967, section CDPruner, one tile.

    Args:
        embeddings: projected tokens (N, d), for the similarity.
        clip_patch, clip_text: CLIP projections (N, c) and (S, c), for the relevance; S counts the
            question's segments of 77 tokens.
        keep: the budget of this tile.
        theta: None as released; else the relevance becomes exp(theta / (2 (1 - theta)) r), r being
            the scaled one (assumed).
        between: least and largest raw relevance for the scaling. None: this tile's own. The
            released code takes those of all tiles of the image together (see `bounds`).
        sort: image order, as released; False is the order of choice.
    """
    relevance = scaled(raw_relevance(clip_patch, clip_text), between)
    if theta is not None:
        relevance = exponential(relevance, theta)
    order = greedy_map(embeddings, relevance, keep)
    return Kept(sorted(order) if sort else order)


def cdpruner_openvino(
    *,
    embeddings: np.ndarray,
    text: np.ndarray,
    keep: int,
    relevance_weight: float = 0.5,
    sign: int = -1,
    split: bool = True,
    sort: bool = True,
) -> Kept:
    """OpenVINO GenAI @ 03b17e1 (its document), section CDPruner: relevance from LLM embeddings.

    Known: the relevance comes of the LLM's embeddings of the instruction's tokens (text, (M, d)),
    weighted by relevance_weight, 0 being none; the kernel is split in two halves, half of the
    budget is chosen in each, and the two are merged.

    Open, and assumed here: the relevance is CDPruner's own formula, sign included (sign=1 turns
    it), scaled over the whole image before the split; relevance_weight is theta; the halves are
    the first N // 2 tokens and the rest, with keep // 2 and the rest of the budget.
    """
    relevance = exponential(scaled(raw_relevance(embeddings, text, sign)), relevance_weight)
    n, keep = len(embeddings), min(keep, len(embeddings))
    order = []
    parts = [(0, n // 2, keep // 2), (n // 2, n, keep - keep // 2)] if split else [(0, n, keep)]
    for begin, end, quota in parts:
        part = greedy_map(embeddings[begin:end], relevance[begin:end], quota)
        order += [begin + i for i in part]
    return Kept(sorted(order) if sort else order)
