"""LLaVA-PruMerge and PruMerge+: outliers of the CLS row, into which neighbours are merged."""

import math

import numpy as np

from tests.methods.oracles.encoder.ranking import cosine, descending, outliers, top
from tests.methods.oracles.result import Kept


def cls_row(*, cls_query: np.ndarray, cls_key: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """c (N,): softmax(q k / sqrt(v)) of CLS over all N + 1 keys, the CLS column removed after.

    q and k are the raw projections of the last vision layer (23), heads not split, so the scale is
    that of the whole width: 1/sqrt(1024) in CLIP-L. c sums to less than 1.

    Args:
        cls_query: (v,); cls_key: (v,); keys: (N, v).
    """
    logits = []
    for key in [cls_key, *keys]:
        product = sum(float(q) * float(k) for q, k in zip(cls_query, key, strict=True))
        logits.append(product / math.sqrt(len(cls_query)))
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return np.array([power / sum(powers) for power in powers[1:]])


def samples(tokens: int, count: int) -> list[int]:
    """PruMerge+: places 0, stride, 2 stride, ... below N - 1 for `count` tokens by attention.

    rho = count / N, stride = int(int(1 / rho) / 3). The released code crashes on rho = 0 and
    above 1/3 (stride 0): an error here too.
    """
    if count < 1 or tokens // count // 3 < 1:
        raise ValueError(f"PruMerge+ is not defined for {count} of {tokens} tokens")
    return list(range(0, tokens - 1, tokens // count // 3))


def budgeted(attention: np.ndarray, keep: int, plus: bool) -> int:
    """How many tokens are taken by attention for exactly (plus: at most) `keep` rows.

    Plain: T - 1, the aggregate is the last. Plus is left open by the specification: here the
    largest k for which k tokens, their samples not among them and the aggregate are at most T.
    """
    if not plus:
        return keep - 1
    ranked, best = descending(attention), 0
    for count in range(1, len(ranked) // 3 + 1):
        grid = [i for i in samples(len(ranked), count) if i not in ranked[:count]]
        if count + len(grid) + 1 <= keep:
            best = count
    return best


def prumerge(
    *,
    features: np.ndarray,
    attention: np.ndarray,
    keys: np.ndarray,
    keep: int | None = None,
    ratio: float | None = None,
    plus: bool = False,
    neighbours: int = 32,
) -> Kept:
    """Tokens by descending attention, then (plus) grid samples ascending, then one aggregate.

    42Shawn/LLaVA-PruMerge @ 097c041, before the projector. Row of a kept token:
    x_i + sum over its 32 nearest others (cosine of raw keys; kept ones too) of c_j x_j, with
    unmerged x_j and weights that are not normalised. Aggregate: sum of c_j x_j over the dropped.
    Ties: the lowest index. Left open: fewer than 32 others (here all of them); nothing dropped
    (here the aggregate stays, as zeros).

    Args:
        features: (N, v); attention: (N,) `cls_row`; keys: (N, v) of the same layer, heads
            not split.
        keep: T rows with the aggregate (fixed form); else `ratio` (int(N ratio) by attention; 1/8
            is the released fixed default); else adaptive, the outliers of `attention` above
            Q3 + 1.5 IQR.
    """
    tokens = len(attention)
    if keep is not None:
        count = budgeted(attention, keep, plus)
    elif ratio is not None:
        count = int(tokens * ratio)
    else:
        count = outliers(attention)
    kept = top(attention, count)
    if plus:
        chosen = set(kept)
        kept = kept + [i for i in samples(tokens, count) if i not in chosen]
    features = np.asarray(features, np.float64)
    rows = []
    for i in kept:
        others = [j for j in range(tokens) if j != i]
        nearest = top([cosine(keys[i], keys[j]) for j in others], min(neighbours, tokens - 1))
        row = features[i]
        for place in nearest:
            row = row + float(attention[others[place]]) * features[others[place]]
        rows.append(row)
    aggregate = np.zeros(features.shape[1])
    for j in range(tokens):
        if j not in kept:
            aggregate = aggregate + float(attention[j]) * features[j]
    return Kept([*kept, -1], np.stack([*rows, aggregate]))
