"""VisPruner: important tokens by attention, the rest by dropping the most redundant."""

import math

import numpy as np

from tests.methods.oracles.encoder.ranking import cosine, descending
from tests.methods.oracles.result import Kept


def vispruner(
    *,
    features: np.ndarray,
    saliency: np.ndarray,
    keep: int,
    important_ratio: float = 0.5,
    step: int = 8,
) -> Kept:
    """int(T r) important tokens, then diverse ones until T, in image order.

    Theia-4869/VisPruner @ aefa01a. The rest in descending attention; in a round the even places
    of that list are compared with the odd ones (largest cosine of the pre-projector features), the
    min(8, excess) most redundant even ones go, and the list becomes the surviving even ones in
    descending redundancy followed by the odd ones. Ties: the earlier place of the list.

    Left open: a list of odd length, on which the released code fails (here the even places are one
    more), and an excess above the number of even places (here a round drops at most those).

    Args:
        features: (N, v) before the projector.
        saliency: (N,) CLS attention of the layer, mean over heads.
        keep: T.
        important_ratio: r.
        step: tokens dropped in a round.
    """
    if not 0 <= keep <= len(saliency):
        raise ValueError(f"{keep} of {len(saliency)} tokens")
    ranked = descending(saliency)
    important = int(keep * important_ratio)
    chosen, rest = ranked[:important], ranked[important:]
    diverse = keep - important
    while len(rest) > diverse:
        even, odd = rest[0::2], rest[1::2]
        drop = min(step, len(rest) - diverse, len(even))
        redundancy = []
        for a in even:
            nearest = -math.inf
            for b in odd:
                nearest = max(nearest, cosine(features[a], features[b]))
            redundancy.append(nearest)
        order = descending(redundancy)
        rest = [even[place] for place in order[drop:]] + odd
    return Kept(sorted(chosen + rest))
