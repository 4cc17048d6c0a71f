"""SCOPE: saliency-weighted greedy coverage, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import cosine


def per_tile(keep: int, tiles: int) -> int:
    """The budget is the total of all tiles, the base tile included; the remainder is lost."""
    return int(keep / tiles)


def scope(
    *,
    features: np.ndarray,
    heads_saliency: np.ndarray,
    keep: int,
    alpha: float = 1.0,
    combined: str = "multiply",
    sort: bool = True,
) -> Kept:
    """kinredon/SCOPE @ 6bf7306, section SCOPE, one tile: coverage gain times saliency.

    m[i] is how well token i is covered so far (0 at the start). Choosing j would add, over all
    tokens i, what S[i, j] exceeds m[i] by, S being the cosines of the features. That gain is
    multiplied by saliency[j] ** alpha, or, with combined="add", that power is added to it. The
    best token not yet chosen is taken. Ties: lowest index.

    Args:
        features: tower output before the projector (N, v).
        heads_saliency: CLS attention of layer 22 (H, N). The method uses the *sum* over heads,
            which only "add" can tell from the mean.
        keep: the budget of this tile (see `per_tile`).
        sort: image order, as released; False is the order of choice.

    Open in the specification: rows of zeros (cosine 0 here); nothing else.
    """
    n = len(features)
    similarity = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            similarity[i, j] = cosine(features[i], features[j])
    saliency = [float(sum(np.float64(head[j]) for head in heads_saliency)) for j in range(n)]
    covered = [0.0] * n
    chosen: list[int] = []
    while len(chosen) < min(keep, n):
        best, most = -1, -np.inf
        for j in range(n):
            if j in chosen:
                continue
            gain = 0.0
            for i in range(n):
                gain += max(0.0, similarity[i, j] - covered[i])
            weight = saliency[j] ** alpha
            score = {"multiply": gain * weight, "add": gain + weight}[combined]
            if score > most:
                best, most = j, score
        chosen.append(best)
        for i in range(n):
            covered[i] = max(covered[i], similarity[i, best])
    return Kept(sorted(chosen) if sort else chosen)
