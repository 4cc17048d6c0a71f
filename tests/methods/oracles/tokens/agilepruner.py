"""AgilePruner (the AdaPrune row): attention order under a growing distance threshold, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import cosine


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the singular values divided by their sum; 0 where all are zero.

    Not centred, not normalised by row. p log p is 0 at p = 0.
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    total = float(values.sum())
    if total == 0:
        return 0.0
    entropy = 0.0
    for value in values:
        share = float(value) / total
        if share > 0:
            entropy -= share * np.log(share)
    return float(np.exp(entropy))


def agilepruner(
    *,
    features: np.ndarray,
    saliency: np.ndarray,
    keep: int,
    erank_avg: float,
    tau_max: float,
    order_start: int = 1,
    slope: float = 0.01,
    sort: bool = True,
) -> Kept:
    """cvsp-lab/AgilePruner @ 3df95a3 (project page), arXiv 2603.01236, section AdaPrune.

    The token of highest attention is taken and every remaining candidate whose cosine distance to
    it is *below* tau is removed; then the best survivor, and so on. With order the number of the
    pick, tau = min(order * erank / erank_avg * slope, tau_max). Ties: lowest index.

    Args:
        features: the tokens (N, v) whose effective rank and distances count.
        saliency: CLS attention, mean over heads (N,).
        erank_avg, tau_max: not published, so required.
        order_start: the first pick's order; not published.
        sort: image order; False is the order of choice; not published.

    Open in the specification, and assumed here: features before or after the projector and the
    attention's layer (the caller's); once no survivor is left, the removed tokens follow in order
    of attention, without thresholds.
    """
    n = len(features)
    ratio = effective_rank(features) / erank_avg
    by_attention = sorted(range(n), key=lambda i: (-float(saliency[i]), i))
    survivors = list(by_attention)
    chosen: list[int] = []
    while survivors and len(chosen) < min(keep, n):
        pick = survivors.pop(0)
        tau = min((order_start + len(chosen)) * ratio * slope, tau_max)
        chosen.append(pick)
        survivors = [j for j in survivors if 1 - cosine(features[pick], features[j]) >= tau]
    for i in by_attention:
        if len(chosen) < min(keep, n) and i not in chosen:
            chosen.append(i)
    return Kept(sorted(chosen) if sort else chosen)
