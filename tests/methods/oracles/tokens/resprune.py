"""ResPrune: greedy residual energy under a relevance gate, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import (
    EXHAUSTED,
    cosine,
    residual_energy,
    squared_norms,
)


def seed(
    rule: str,
    *,
    embeddings: np.ndarray,
    saliency: np.ndarray | None = None,
    relevance: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
) -> int:
    """The first token by the five rules of Table VII. Ties: lowest index."""
    n = len(embeddings)
    if rule == "max_norm":
        score = list(squared_norms(embeddings))
    elif rule == "cls_attention":
        assert saliency is not None
        score = [float(value) for value in saliency]
    elif rule == "text":
        assert relevance is not None
        score = [float(value) for value in relevance]
    elif rule == "mean_similarity":
        mean = np.mean(np.asarray(embeddings, np.float64), axis=0)
        score = [cosine(row, mean) for row in embeddings]
    else:
        assert rule == "center" and grid is not None
        rows, columns = grid
        score = [
            -((i // columns - (rows - 1) / 2) ** 2) - (i % columns - (columns - 1) / 2) ** 2
            for i in range(n)
        ]
    return max(range(n), key=lambda i: score[i])


def resprune(
    *,
    embeddings: np.ndarray,
    keep: int,
    relevance: np.ndarray | None = None,
    alpha: float = 0.75,
    first: int | None = None,
    sort: bool = True,
) -> Kept:
    """arXiv 2603.21105, objective and greedy rule: argmax of relevance ** alpha * residual energy.

    The residual energy of a token is the squared norm of what is left of it after projection onto
    the span of those chosen, computed anew at every step. Order: tokens with a gate above 0, by
    gate times energy; then those with gate 0, by energy; then the exhausted ones (2e-6 of the
    squared norm or less left), by gate. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d).
        relevance: weights >= 0 (N,), see `relevance.relevance`; None is 1 for all.
        alpha: 0.75 for the LLaVA models, 0.3 for Qwen2.5-VL; 0 leaves the text out (0 ** 0 = 1).
        first: the seed token, see `seed`; None is the largest norm. Its gate plays no part.
        sort: image order, as tokens enter the LLM; False is the order of choice.
    """
    n = len(embeddings)
    rows = np.asarray(embeddings, np.float64)
    norms = squared_norms(rows)
    weights = np.ones(n) if relevance is None else relevance
    gate = [float(weight) ** alpha if alpha else 1.0 for weight in weights]
    chosen = [seed("max_norm", embeddings=rows) if first is None else first]
    while len(chosen) < min(keep, n):
        rank = {}
        for i in range(n):
            if i in chosen:
                continue
            energy = residual_energy(rows[i], [rows[j] for j in chosen])
            if energy <= EXHAUSTED * norms[i]:
                rank[i] = (0, gate[i])
            elif gate[i] == 0:
                rank[i] = (1, energy)
            else:
                rank[i] = (2, gate[i] * energy)
        chosen.append(max(rank, key=lambda i: rank[i]))
    return Kept(sorted(chosen) if sort else chosen)
