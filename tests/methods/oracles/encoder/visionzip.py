"""VisionZip: CLS, the dominant tokens, and contextual ones into which the rest is merged."""

import numpy as np

from tests.methods.oracles.encoder.ranking import cosine, top
from tests.methods.oracles.result import Kept


def split(keep: int) -> tuple[int, int]:
    """Dominant (CLS counted) and contextual tokens for a budget.

    Published: 192 = 162 + 30, 128 = 108 + 20, 64 = 54 + 10, 32 = 27 + 5, all of them 5/32
    contextual. Other budgets are left open: here 5/32 rounded half up.
    """
    contextual = (10 * keep + 32) // 64
    return keep - contextual, contextual


def visionzip(
    *,
    features: np.ndarray,
    cls_feature: np.ndarray,
    saliency: np.ndarray,
    keys: np.ndarray,
    dominant: int,
    contextual: int,
    combine: str = "sum",
) -> Kept:
    """[CLS, dominant in image order, contextual], before the projector (LLaVA-1.5).

    dvlab-research/VisionZip @ 3151f6d. Dominant: CLS and the D - 1 patches with the largest CLS
    attention. Of the R others in image order the targets are places 0, s, 2s, ..., the first C,
    s = max(1, R // C). Each other one goes to the target with the largest cosine (keys of the
    layer, mean over heads first, then normalised). Ties: the lowest index, the first target.
    Left open: R < C (here every one of the R is a target, so fewer rows).

    Args:
        features: (N, v); cls_feature: (v,).
        saliency: (N,) CLS attention, summed or averaged over heads (the ranking is the same).
        keys: (N, H, h) of the same layer.
        dominant: D, CLS counted. contextual: C.
        combine: "sum" as released: target + mean of those assigned to it (nothing adds 0);
            "mean": the mean of the group, the target one of it.

    Returns:
        indices: -1 for CLS, the dominant patches, the targets; merged: (D + C, v).
    """
    if dominant < 1 or contextual < 0:
        raise ValueError(f"{dominant} dominant (CLS counted) and {contextual} contextual tokens")
    features = np.asarray(features, np.float64)
    leading = sorted(top(saliency, dominant - 1))
    others = [i for i in range(len(features)) if i not in leading]
    targets = []
    if contextual:
        stride = max(1, len(others) // contextual)
        targets = [others[place] for place in range(0, len(others), stride)][:contextual]
    metric = []
    for key in np.asarray(keys, np.float64):  # [H, h]
        metric.append(sum(key[head] for head in range(len(key))) / len(key))
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for i in others:
        if i in groups or not targets:
            continue
        nearest = targets[0]
        for target in targets[1:]:
            if cosine(metric[i], metric[target]) > cosine(metric[i], metric[nearest]):
                nearest = target
        groups[nearest].append(i)
    rows = [np.asarray(cls_feature, np.float64)] + [features[i] for i in leading]
    for target, members in groups.items():
        total = np.zeros(features.shape[1])
        for i in members:
            total = total + features[i]
        if combine == "sum":
            rows.append(features[target] + (total / len(members) if members else 0.0))
        elif combine == "mean":
            rows.append((features[target] + total) / (len(members) + 1))
        else:
            raise ValueError(f"combine {combine!r}: sum or mean")
    return Kept([-1, *leading, *targets], np.stack(rows))
