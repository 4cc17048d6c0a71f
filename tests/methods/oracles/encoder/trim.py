"""TRIM: tokens by CLIP's dot product with the text, and one mean of the others."""

import math

import numpy as np

from tests.methods.oracles.encoder.ranking import outliers, top
from tests.methods.oracles.result import Kept


def trim_scores(*, clip_patch: np.ndarray, clip_text: np.ndarray, sign: int = -1) -> list[float]:
    """Softmax over the patches of sign (e_i . t), no normalisation of either.

    Args:
        clip_patch: (N, c) W_vis LN_post(x_i).
        clip_text: (1, c) pooled projection of the whole prompt, cut at 77 tokens.
        sign: -1 as released (the lowest dot products score highest), +1 the other way.
    """
    if len(clip_text) != 1:
        raise ValueError(f"{len(clip_text)} texts, TRIM has one")
    logits = []
    for patch in np.asarray(clip_patch, np.float64):
        product = sum(float(p) * float(t) for p, t in zip(patch, clip_text[0], strict=True))
        logits.append(sign * product)
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def trim(
    *,
    features: np.ndarray,
    clip_patch: np.ndarray,
    clip_text: np.ndarray,
    keep: int | None = None,
    ratio: float | None = None,
    sign: int = -1,
) -> Kept:
    """Kept tokens in image order and the plain mean of all dropped features: count + 1 rows.

    FreedomIntelligence/TRIM @ f5a232d. Count: `keep`, else int(N ratio), else as many as score
    above Q3 + 1.5 IQR (of this image; the code counts over the batch). Ties: the lowest index.
    Left open: nothing dropped: here no aggregate then. The adaptive count may be 0.

    Args:
        features: (N, v) before the projector.
    """
    scores = trim_scores(clip_patch=clip_patch, clip_text=clip_text, sign=sign)
    if keep is not None:
        count = keep
    elif ratio is not None:
        count = int(len(scores) * ratio)
    else:
        count = outliers(scores)
    indices = sorted(top(scores, count))
    rows = [np.asarray(features[i], np.float64) for i in indices]
    total, dropped = np.zeros(features.shape[1]), 0
    for i in range(len(scores)):
        if i not in indices:
            total, dropped = total + np.asarray(features[i], np.float64), dropped + 1
    if dropped:
        indices, rows = [*indices, -1], [*rows, total / dropped]
    return Kept(indices, np.stack(rows))
