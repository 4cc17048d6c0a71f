"""SVD-Prune: the tokens of largest statistical leverage, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept


def numerical_rank(values: np.ndarray, shape: tuple[int, int]) -> int:
    """Singular values above max(N, d) float32 roundings of the largest one.

    float32, because that is the precision in which tokens come and selections are made.
    """
    least = max(shape) * float(np.finfo(np.float32).eps) * float(values[0])
    return sum(1 for value in values if value > least)


def leverage(embeddings: np.ndarray, rank: int) -> list[float]:
    """Squared norm of each row of the leading `rank` left singular vectors, not centred.

    `rank` is capped at the numerical rank.
    """
    rows = np.asarray(embeddings, np.float64)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    rank = min(rank, numerical_rank(values, rows.shape))
    # To 12 places: at full row rank every score is 1, and what is equal shall tie.
    return [round(sum(float(left[i, k]) ** 2 for k in range(rank)), 12) for i in range(len(rows))]


def svdprune(
    *, embeddings: np.ndarray, keep: int, rank: int | None = None, sort: bool = True
) -> Kept:
    """arXiv 2604.11530 (abstract), section relatives of 2026: top leverage scores, one shot.

    Args:
        embeddings: projected tokens (N, d).
        rank: of the leading subspace; None is keep; capped at the numerical rank.
        sort: image order (assumed); False is by falling score.

    Ties: lowest index. Open in the specification: the output order; whether tokens are centred or
    brought to unit length first (assumed: neither); the numerical rank's threshold. Scores are
    ill-conditioned where the singular values number rank and rank + 1 are close.
    """
    keep = min(keep, len(embeddings))
    scores = leverage(embeddings, keep if rank is None else rank)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep]
    return Kept(sorted(order) if sort else order)
