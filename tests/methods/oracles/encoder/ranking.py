"""Ranks, cosines and the outlier count, each in its slow and obvious form."""

from collections.abc import Sequence

import numpy as np


def descending(scores: Sequence[float]) -> list[int]:
    """Positions from the highest to the lowest score, ties by the lowest position."""
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))


def top(scores: Sequence[float], count: int) -> list[int]:
    """The `count` positions of the highest scores, highest first; fewer are an error."""
    if not 0 <= count <= len(scores):
        raise ValueError(f"{count} of {len(scores)} cannot be kept")
    return descending(scores)[:count]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine similarity of two vectors in float64 (0 where one of them is 0)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    product = float(np.sqrt(np.sum(a * a))) * float(np.sqrt(np.sum(b * b)))
    return float(np.sum(a * b)) / product if product > 0 else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between order statistics, as NumPy's default percentile."""
    ordered = sorted(float(v) for v in values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def outliers(values: Sequence[float]) -> int:
    """How many values lie strictly above Q3 + 1.5 (Q3 - Q1)."""
    first, third = quantile(values, 0.25), quantile(values, 0.75)
    count = 0
    for value in values:
        if float(value) > third + 1.5 * (third - first):
            count += 1
    return count
