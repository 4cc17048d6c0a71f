"""How sure a measured figure is: intervals of accuracies, of paired differences, of mean AUCs.

One figure at a time: `wilson`, `share`, `clustered`. Many configurations at once: `resampled` and
`ends` (cluster bootstrap), `sign_flip` (paired test), `holm` (many comparisons), `relative`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from resprune_jax.errors import CallError

Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
RESAMPLES = 2000
FLIPS = 20_000
"""Draws of a sign-flip test; the least p-value that it can give is 1 in so many."""
ENUMERATED = 14
"""Up to so many clusters that differ, a sign-flip test goes through all 2^n signs."""
UNDEFINED = 0.05
"""Share of bootstrap samples in which a figure may be 0 / 0 before it has no interval."""

_AT_ONCE = 4_000_000  # numbers of a matrix of draws in memory at a time


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
    return np.concatenate(list(_draws(scenes, RESAMPLES, rng_seed)))


def _draws(clusters: int, draws: int, rng_seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn in each bootstrap sample, some samples at a time."""
    rng = np.random.default_rng(rng_seed)
    even = np.full(clusters, 1 / clusters)
    for first in range(0, draws, step := max(1, _AT_ONCE // clusters)):
        yield rng.multinomial(clusters, even, size=min(step, draws - first)).astype(np.float64)


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


def cluster_sums(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums over each cluster's examples.

    Args:
        values: (..., E).
        clusters: (E,), the number of each example's cluster, from 0, none left out.

    Returns:
        (..., S).
    """
    values, clusters = np.asarray(values, np.float64), np.asarray(clusters)
    order = np.argsort(clusters, kind="stable")
    starts = np.flatnonzero(np.diff(clusters[order], prepend=-1))
    return np.add.reduceat(values[..., order], starts, axis=-1)


def resampled(sums: np.ndarray, *, draws: int = RESAMPLES, rng_seed: int = 0) -> np.ndarray:
    """What sums over clusters come to in bootstrap samples of the clusters.

    Every figure goes through the same samples, so that what is made of several of them (a mean, a
    ratio to the full model's, a difference) has its paired distribution.

    Args:
        sums: (..., S), of each cluster.
        draws: how many samples.
        rng_seed: of the random generator; the same seed gives the same samples.

    Returns:
        (draws, ...).

    Raises:
        CallError: no cluster.
    """
    sums = np.asarray(sums, np.float64)
    if not sums.shape[-1]:
        raise CallError("no cluster was given: a bootstrap needs at least one")
    clusters = sums.shape[-1]
    flat = sums.reshape(-1, clusters)
    if draws == RESAMPLES and draws * clusters <= _AT_ONCE:
        drawn = [_resamples(clusters, rng_seed) @ flat.T]
    else:
        drawn = [own @ flat.T for own in _draws(clusters, draws, rng_seed)]
    return np.concatenate(drawn).reshape(draws, *sums.shape[:-1])


def ends(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of 95 % percentile intervals.

    Args:
        samples: (draws, ...), bootstrap samples of a figure; NaN where one is undefined.

    Returns:
        low, high: (...); NaN where more than UNDEFINED of the samples are.
    """
    known = np.isfinite(samples)
    enough = known.mean(0) >= 1 - UNDEFINED
    # Where too few are known any number will do: it is hidden below.
    whole = np.where(known | ~enough, samples, np.nan)
    whole = np.where(enough, whole, 0.0)
    low, high = np.nanquantile(whole, (0.025, 0.975), axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def relative(scores: np.ndarray, full: np.ndarray) -> np.ndarray:
    """Relative performance: the unweighted mean over benchmarks of score / full-model score.

    Args:
        scores: (..., G), of G benchmarks or categories.
        full: the full model's, of a shape that goes with it.

    Returns:
        (...), 1 for the full model; NaN where a full-model score is not above 0.
    """
    scores, full = np.asarray(scores, np.float64), np.asarray(full, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(full > 0, scores / full, np.nan).mean(-1)


def sign_flip(sums: np.ndarray, *, draws: int = FLIPS, rng_seed: int = 0) -> np.ndarray:
    """Two-sided paired permutation tests by cluster, of no difference between two ways to answer.

    Were the two alike, each cluster's difference could as well have the other sign, together for
    all its examples. The statistic is the absolute sum. With at most ENUMERATED clusters that
    differ at all, every choice of signs is gone through and p is exact; with more, `draws` random
    ones, and p = (1 + as extreme) / (1 + draws) (Phipson and Smyth, 2010), never 0.

    Args:
        sums: (..., S), each cluster's part of the difference.
        draws: how many random choices of signs.
        rng_seed: of the random generator.

    Returns:
        (...), p-values; 1 where no cluster differs.
    """
    sums = np.asarray(sums, np.float64)
    flat = sums.reshape(-1, sums.shape[-1])
    p = np.ones(len(flat))
    differs = flat != 0
    many = differs.sum(1) > ENUMERATED
    for row in np.flatnonzero(~many):
        own = flat[row, differs[row]]
        choices = np.arange(2 ** len(own))[:, None] >> np.arange(len(own)) & 1
        p[row] = (np.abs((1 - 2 * choices) @ own) >= _least(own.sum(), own)).mean()
    if many.any():
        tested = flat[many]
        least = np.array([_least(own.sum(), own) for own in tested])
        extreme = np.zeros(len(tested))
        rng = np.random.default_rng(rng_seed)
        for first in range(0, draws, step := max(1, _AT_ONCE // flat.shape[1])):
            size = min(step, draws - first), flat.shape[1]
            signs = 1.0 - 2.0 * rng.integers(0, 2, size, np.int8)
            extreme += (np.abs(signs @ tested.T) >= least).sum(0)
        p[many] = (1 + extreme) / (1 + draws)
    return p.reshape(sums.shape[:-1])


def _least(total: float, own: np.ndarray) -> float:
    """From where on a sum of signed parts counts as no smaller: a tie may be off by a rounding."""
    return abs(float(total)) - 1e-12 * float(np.abs(own).sum())


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) p-values for many comparisons: the family-wise error stays below the level.

    Args:
        p: (M,), of the comparisons.

    Returns:
        (M,): the k-th smallest times (M - k + 1), at least those before it, at most 1.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
