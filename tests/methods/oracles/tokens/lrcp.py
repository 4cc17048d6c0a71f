"""LRCP: the tokens farthest from the low-rank background, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept


def background_rank(rows: np.ndarray, energy: float = 0.9) -> int:
    """The smallest k whose leading k squared singular values hold that share of their sum."""
    squares = np.linalg.svd(np.asarray(rows, np.float64), compute_uv=False) ** 2
    held = 0.0
    for k, square in enumerate(squares, start=1):
        held += float(square)
        if held >= energy * float(squares.sum()):
            return k
    return len(squares)


def lrcp(
    *,
    embeddings: np.ndarray,
    keep: int,
    rank: int | None = None,
    energy: float = 0.9,
    centered: bool = False,
    sort: bool = True,
) -> Kept:
    """arXiv 2605.15621 (abstract), section relatives of 2026: residual to the principal subspace.

    One shot: the residual of every token to the span of the leading `rank` right singular vectors
    of all tokens; the keep largest are kept. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d).
        rank: of the background; None: see `background_rank`, with `energy`.
        centered: the mean token is taken off first (for the rank too) and its direction is then no
            part of the background.
        sort: image order; False is by falling residual.

    Open in the specification: centring (option), the output order (image order assumed). Residuals
    of 1e-12 of the squared norm or less are rounding and count as 0, so that equal tokens tie.
    """
    rows = np.asarray(embeddings, np.float64)
    if centered:
        rows = rows - np.mean(rows, axis=0)
    k = background_rank(rows, energy) if rank is None else rank
    directions = np.linalg.svd(rows, full_matrices=False)[2][:k]  # [k, d]
    residual = []
    for row in rows:
        left = row.copy()
        for direction in directions:
            left = left - float(row @ direction) * direction
        share = float(left @ left)
        residual.append(share if share > 1e-12 * float(row @ row) else 0.0)
    order = sorted(range(len(rows)), key=lambda i: (-residual[i], i))[:keep]
    return Kept(sorted(order) if sort else order)
