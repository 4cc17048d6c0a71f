"""SparseVLM+ (v2.0): the raters' attention set right for distance, best heads only, no merging."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts
from tests.methods.oracles.decoder.drops import Drops, best

LISTS_PLUS = {
    192: (300, 200, 118),
    128: (238, 108, 60),
    96: (246, 54, 28),
    64: (66, 34, 20),
}
"""Tokens kept after layers 2, 6 and 15, by budget, as released."""


def rotated_ones(position: float, size: int, theta: float = 10000.0) -> np.ndarray:
    """A vector of `size` ones under RoPE: each pair of numbers turned by its own angle."""
    pairs = []
    for pair in range(size // 2):
        angle = position * theta ** (-2 * pair / size)
        pairs += [np.cos(angle) - np.sin(angle), np.sin(angle) + np.cos(angle)]
    return np.array(pairs)


def gravity(
    queries: Sequence[int],
    positions: Sequence[int],
    size: int,
    *,
    theta: float = 10000.0,
    kind: str = "softmax",
) -> np.ndarray:
    """The attention that RoPE alone would make: queries and keys of ones, (R, S).

    Left open, and assumed here: an attention *map* is one after the causal softmax;
    kind="logits" leaves the softmax out.

    Args:
        queries: position ids of the R raters.
        positions: position ids of the S keys.
        size: of a head.
    """
    rows = np.zeros((len(queries), len(positions)))
    for i, q in enumerate(queries):
        own = rotated_ones(q, size, theta)
        logits = np.array(
            [np.sum(own * rotated_ones(p, size, theta)) / np.sqrt(size) for p in positions]
        )
        if kind == "logits":
            rows[i] = logits
            continue
        seen = np.array([1.0 if p <= q else 0.0 for p in positions])
        exponentials = np.exp(logits - logits.max()) * seen
        rows[i] = exponentials / exponentials.sum()
    return rows


def sparsevlm_plus_stage(
    rows: np.ndarray,
    visual: Sequence[int],
    queries: Sequence[int],
    positions: Sequence[int],
    keep: int,
    *,
    size: int,
    theta: float = 10000.0,
    heads: int = 14,
    correct: bool = True,
    kind: str = "softmax",
) -> list[int]:
    """One drop from the output of a layer: who stays, by number among the current visual tokens.

    The raters' rows are divided by `gravity` (at the visual tokens, which all raters see); then the
    `heads` heads with the largest sum over raters and visual tokens count, in the mean. Left open,
    and assumed here: heads are chosen by the corrected attention; a decoder with fewer heads uses
    all.

    Args:
        rows: (H, R, S) attention after the softmax, the raters' rows.
        visual: the places of the current visual tokens.
        queries: position ids of the raters (the original ones).
        positions: (S,) position ids of the current sequence.
        keep: how many stay; at most one fewer than there are.
    """
    rows = np.array(rows, np.float64)
    if correct:
        alone = gravity(queries, positions, size, theta=theta, kind=kind)
        for place in visual:
            rows[:, :, place] /= alone[:, place]
    mass = [float(sum(head[r, p] for r in range(len(queries)) for p in visual)) for head in rows]
    chosen = best(mass, heads)
    scores = []
    for place in visual:
        values = [rows[head, r, place] for head in chosen for r in range(len(queries))]
        scores.append(sum(values) / len(values))
    return sorted(best(scores, min(keep, len(scores) - 1)))


def sparsevlm_plus(
    stages: Sequence[np.ndarray],
    raters: Sequence[int],
    tokens: int,
    *,
    start: int,
    text: int,
    size: int,
    keeps: Sequence[int] = LISTS_PLUS[192],
    at: Sequence[int] = (2, 6, 15),
    layers: int = 32,
    theta: float = 10000.0,
    heads: int = 14,
    correct: bool = True,
    kind: str = "softmax",
) -> Drops:
    """The whole schedule, given the raters' attention rows of each dropping layer.

    Gumpest/SparseVLMs @ 26a5f48. Where and how raters are found: as in v1.5. No merging, original
    position ids. Ties: lowest index first.

    Args:
        stages: for each drop the raters' rows (H, R, S) over the sequence as it then is.
        raters: numbers of the raters among the text tokens after the image.
        tokens: N, visual tokens at the start.
        start: text tokens in front of the image.
        text: M, text tokens after it.
        size: of a head.
    """
    left, kept = list(range(tokens)), []
    after = [start + tokens + m for m in range(text)]
    queries = [after[m] for m in raters]
    for rows, keep in zip(stages, keeps, strict=True):
        visual = range(start, start + len(left))
        positions = [*range(start), *(start + i for i in left), *after]
        stay = sparsevlm_plus_stage(
            rows, visual, queries, positions, keep,
            size=size, theta=theta, heads=heads, correct=correct, kind=kind,
        )  # fmt: skip
        left = [left[i] for i in stay]
        kept.append(left)
    drops = [(layer + 1, len(numbers)) for layer, numbers in zip(at, kept, strict=True)]
    return Drops(kept=kept, counts=[int(n) for n in layer_counts(tokens, drops, layers)])
