"""How sure a measured figure is: intervals of accuracies, of paired differences, of mean AUCs."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from resprune_jax.errors import CallError

Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: float, asked: float) -> Estimate:
    """A share of right answers with Wilson's score interval.

    Args:
        right: how many were right.
        asked: of how many independent questions, above 0; see `share` for why it may be no count.

    Returns:
        The share; the interval stays inside [0, 1] and has a width also at 0 and 1.

    Raises:
        CallError: counts that cannot be.
    """
    if not 0 <= right <= asked or not asked:
        raise CallError(f"{right} of {asked} answers right: give 0 <= right <= asked, asked > 0")
    value = right / asked
    shrunk = 1 + Z**2 / asked
    middle = (value + Z**2 / (2 * asked)) / shrunk
    half = Z * math.sqrt(value * (1 - value) / asked + Z**2 / (4 * asked**2)) / shrunk
    # The ends at 0 and 1 are exact; computed, they are off by a rounding.
    low = middle - half if right else 0.0
    return Estimate(value, low, middle + half if right < asked else 1.0)


def share(right: np.ndarray, asked: np.ndarray) -> Estimate:
    """A share of right answers, when questions about one scene stand or fall together.

    Wilson's interval for as many independent questions as the ones asked are worth: fewer by the
    ratio of the variance between scenes to that of independent answers (the design effect, at least
    1). With one question a scene it is `wilson`.

    Args:
        right: (S,), right answers about each scene.
        asked: (S,), questions about each.

    Raises:
        CallError: counts that cannot be.
    """
    right, asked = np.asarray(right, np.float64), np.asarray(asked, np.float64)
    if right.shape != asked.shape or (right > asked).any() or (right < 0).any() or not asked.sum():
        raise CallError(f"right {right} of asked {asked}: give 0 <= right <= asked, one asked")
    total = asked.sum()
    value = right.sum() / total
    if 0 < value < 1:
        effect = ((right - value * asked) ** 2).sum() / (total * value * (1 - value))
    else:  # nothing varies: count scenes
        effect = (asked**2).sum() / total
    independent = float(total / max(effect, 1.0))
    return wilson(min(float(value) * independent, independent), independent)


@lru_cache(maxsize=4)
def _resamples(scenes: int, rng_seed: int) -> np.ndarray:
    """How often each scene is drawn in each bootstrap sample, (RESAMPLES, scenes)."""
    rng = np.random.default_rng(rng_seed)
    return rng.multinomial(scenes, np.full(scenes, 1 / scenes), size=RESAMPLES).astype(np.float64)


def clustered(totals: np.ndarray, counts: np.ndarray, rng_seed: int = 0) -> Estimate:
    """A mean over questions, resampled by scene: questions about one scene stand or fall together.

    Of the differences between two ways to answer the same questions it gives the paired interval.

    Args:
        totals: (S,), the sum over each scene's questions.
        counts: (S,), how many they are; scenes without any are left out.
        rng_seed: of the random generator; the same seed gives the same interval.

    Returns:
        The mean with the percentile interval of RESAMPLES bootstrap samples.

    Raises:
        CallError: no question at all, or shapes that differ.
    """
    totals, counts = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    if totals.shape != counts.shape or totals.ndim != 1:
        raise CallError(f"totals {totals.shape} and counts {counts.shape} must be one list each")
    has = counts > 0
    totals, counts = totals[has], counts[has]
    if not len(counts):
        raise CallError("no question was given: an estimate needs at least one")
    weights = _resamples(len(counts), rng_seed)
    means = (weights @ totals) / (weights @ counts)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(totals.sum() / counts.sum()), float(low), float(high))


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Area under the ROC curve: how often a member scores above another, ties counting half.

    Args:
        scores: (N,), finite.
        members: (N,) bool.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        CallError: no member, or nothing but members, or a score that is not finite.
    """
    scores, members = np.asarray(scores, np.float64), np.asarray(members, bool)
    inside = int(members.sum())
    outside = len(members) - inside
    if not inside or not outside:
        raise CallError(f"{inside} members and {outside} others: an AUC needs one of each")
    if not np.isfinite(scores).all():
        raise CallError("a score is not finite: an AUC has no place for it")
    _, which, many = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(many) - (many - 1) / 2  # the mean rank of each distinct score, from 1
    above = ranks[which][members].sum() - inside * (inside + 1) / 2
    return float(above / (inside * outside))
