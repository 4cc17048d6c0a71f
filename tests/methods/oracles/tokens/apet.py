"""ApET: the tokens that a small basis explains worst, the others merged, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import cosine, squared_norms


def apart(a: np.ndarray, b: np.ndarray, distance: str) -> float:
    """How far two tokens are from each other: Euclidean, or one minus the cosine."""
    return float(np.linalg.norm(a - b)) if distance == "euclidean" else 1 - cosine(a, b)


def farthest_points(rows: np.ndarray, count: int, distance: str) -> list[int]:
    """The token of largest norm, then always the one farthest from its nearest chosen token."""
    norms = squared_norms(rows)
    chosen = [max(range(len(rows)), key=lambda i: norms[i])]
    while len(chosen) < count:
        gap = {
            i: min(apart(rows[i], rows[j], distance) for j in chosen)
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(max(gap, key=lambda i: gap[i]))
    return chosen


def reconstruction_error(row: np.ndarray, basis: np.ndarray, ridge: float) -> float:
    """Squared norm of row - c @ basis, c minimising that plus ridge times the squared norm of c.

    Solved as plain least squares with one more equation sqrt(ridge) c_k = 0 for every coefficient.
    """
    system = np.concatenate([basis.T, np.sqrt(ridge) * np.eye(len(basis))])  # [d + b, b]
    wanted = np.concatenate([row, np.zeros(len(basis))])
    fit = np.linalg.lstsq(system, wanted, rcond=None)[0]
    left = row - fit @ basis
    return float(left @ left)


def apet(
    *,
    embeddings: np.ndarray,
    keep: int,
    basis: int = 10,
    ridge: float = 1e-5,
    distance: str = "euclidean",
    sort: bool = True,
) -> Kept:
    """MaQianKun0/ApET @ 70cc01b (read about), arXiv 2602.19870, section relatives of 2026.

    `basis` tokens by farthest-point sampling from the largest norm on; every token fitted by them
    with ridge least squares; the keep tokens of largest error, the last `basis` of which give way
    to the basis tokens; every other token is merged into its nearest kept one: the output row is
    the mean of the kept token and those that came to it. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d). For the second cut (off by default), call this with the
            hidden states of the visual tokens after layer 16 and keep=32 (assumed: the same rule).
        distance: "euclidean" or "cosine", for the sampling and for the nearest kept token.
        sort: image order (assumed); False: by falling error, the basis last, in sampling order.

    Open in the specification, and assumed here: the distance; basis tokens take no part in the
    ranking, so that exactly keep different tokens are kept; a budget below `basis` takes its
    first tokens; the mean counts the kept token itself.
    """
    rows = np.asarray(embeddings, np.float64)
    n = len(rows)
    keep = min(keep, n)
    corner = farthest_points(rows, min(basis, keep), distance)
    error = {
        i: reconstruction_error(rows[i], rows[corner], ridge) for i in range(n) if i not in corner
    }
    worst = sorted(error, key=lambda i: (-error[i], i))[: keep - len(corner)]
    kept = worst + corner
    if sort:
        kept = sorted(kept)
    groups: dict[int, list[int]] = {i: [i] for i in kept}
    for j in range(n):
        if j not in groups:
            # Of two kept tokens equally near, the lower index.
            home = min(sorted(kept), key=lambda i: apart(rows[j], rows[i], distance))
            groups[home].append(j)
    merged = np.stack([np.mean(rows[groups[i]], axis=0) for i in kept])
    return Kept(kept, merged)
