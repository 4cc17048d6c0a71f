"""SPARE: largest residual first, and tokens unlike the text preferred, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import (
    EXHAUSTED,
    cosine,
    residual_energy,
    squared_norms,
)


def spare(
    *,
    embeddings: np.ndarray,
    text: np.ndarray,
    keep: int,
    exponent: float = 1.0,
    sort: bool = True,
) -> Kept:
    """arXiv 2606.18681 (abstract), section relatives of 2026: column subset selection.

    First the token of largest norm (its weight plays no part), then always the one with the largest
    weight ** exponent * squared residual, raw norms kept. The weight is (1 - c) / 2, c being the
    largest cosine with a token of the prompt. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d).
        text: embeddings of all tokens of the question (M, d); none (0, d): every weight is 1.
        sort: image order; False is the order of choice.

    Open in the specification, and assumed here: the residual counts as its squared norm (with
    exponent=2 that is the order of weight times norm); tokens without weight follow by residual,
    then the exhausted ones (2e-6 of the squared norm or less left) by weight; image order.
    """
    n = len(embeddings)
    rows = np.asarray(embeddings, np.float64)
    norms = squared_norms(rows)
    weight = []
    for row in rows:
        likeness = max((cosine(row, word) for word in text), default=-1.0)
        weight.append(max(0.0, (1 - likeness) / 2) ** exponent)
    chosen = [max(range(n), key=lambda i: norms[i])]
    while len(chosen) < min(keep, n):
        best, most = -1, (-1, -np.inf)
        for i in range(n):
            if i in chosen:
                continue
            energy = residual_energy(rows[i], [rows[j] for j in chosen])
            score = (2, weight[i] * energy) if weight[i] > 0 else (1, energy)
            if energy <= EXHAUSTED * norms[i]:
                score = (0, weight[i])
            if score > most:
                best, most = i, score
        chosen.append(best)
    return Kept(sorted(chosen) if sort else chosen)
