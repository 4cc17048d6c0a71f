"""Statistics of many configurations at once against slow, obvious loops."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax import paper
from resprune_jax.errors import CallError
from resprune_jax.experiments import statistics
from resprune_jax.experiments.statistics import (
    RESAMPLES,
    cluster_sums,
    clustered,
    ends,
    holm,
    relative,
    resampled,
    sign_flip,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_sums_over_clusters(words, rng_seed):
    _, clusters = np.unique(words, return_inverse=True)
    values = np.random.default_rng(rng_seed).normal(size=(2, 3, len(words)))
    slow = np.zeros((2, 3, clusters.max() + 1))
    for i, cluster in enumerate(clusters):
        slow[..., cluster] += values[..., i]
    assert np.allclose(cluster_sums(values, clusters), slow, atol=1e-12)


def test_bootstrap_samples_are_explicit_resamplings(monkeypatch):
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(2, 3, 7))
    found = resampled(sums, draws=50, rng_seed=4)
    counts = np.random.default_rng(4).multinomial(7, np.full(7, 1 / 7), size=50)
    for r, own in enumerate(counts):
        picked = np.repeat(np.arange(7), own)  # the clusters of this sample, one by one
        assert len(picked) == 7
        slow = np.zeros((2, 3))
        for cluster in picked:
            slow += sums[..., cluster]
        assert np.allclose(found[r], slow)
    # Neither how many samples are in memory at a time nor what is kept between calls matters.
    monkeypatch.setattr(statistics, "_AT_ONCE", 20)
    assert np.allclose(resampled(sums, draws=50, rng_seed=4), found)
    few = resampled(sums, rng_seed=4)
    monkeypatch.setattr(statistics, "_AT_ONCE", 10**6)
    assert few.shape == (RESAMPLES, 2, 3) and np.allclose(resampled(sums, rng_seed=4), few)
    with pytest.raises(CallError, match="cluster"):
        resampled(np.zeros((2, 0)))


def test_many_intervals_are_each_the_one_of_a_single_figure():
    rng = np.random.default_rng(1)
    totals, counts = rng.normal(size=(4, 30)), rng.integers(1, 6, 30).astype(float)
    samples = resampled(totals, rng_seed=2) / resampled(counts, rng_seed=2)[:, None]
    low, high = ends(samples)
    for own, down, up in zip(totals, low, high, strict=True):
        single = clustered(own, counts, rng_seed=2)
        assert math.isclose(single.low, down) and math.isclose(single.high, up)


def test_questions_about_one_image_make_intervals_wider():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(60, 1)) + 0.2 * rng.normal(size=(60, 5))
    right = (images > 0).astype(float).reshape(-1)

    def width(clusters: np.ndarray) -> float:
        low, high = ends(resampled(cluster_sums(right, clusters)))
        return float(high - low) / 300

    together, apart = width(np.repeat(np.arange(60), 5)), width(np.arange(300))
    print(f"{together:.3f} by image, {apart:.3f} as if questions stood alone")
    assert together > 1.6 * apart


@pytest.mark.parametrize(("unknown", "says"), [(0, True), (100, True), (101, False), (2000, False)])
def test_a_figure_that_is_often_undefined_has_no_interval(unknown: int, says: bool) -> None:
    samples = np.linspace(0, 1, 2000)
    samples[:unknown] = np.nan
    low, high = ends(np.stack([samples, np.ones(2000)], axis=1))
    assert (low[1], high[1]) == (1, 1)
    assert np.isfinite([low[0], high[0]]).all() == says
    if says:
        known = samples[unknown:]
        assert np.allclose([low[0], high[0]], np.quantile(known, [0.025, 0.975]))


def test_relative_performance_is_the_papers():
    rng = np.random.default_rng(5)
    scores, full = rng.uniform(0.2, 1, (2, 3, 6)), rng.uniform(0.3, 1, (2, 1, 6))
    found = relative(scores, full)
    names = [str(n) for n in range(6)]
    for at in itertools.product(range(2), range(3)):
        own, base = (dict(zip(names, one, strict=True)) for one in (scores[at], full[at[0], 0]))
        assert math.isclose(100 * found[at], paper.relative_performance(own, base, names))
    # The mean of ratios, not the ratio of means; over categories, not over settings.
    assert not np.allclose(found, scores.mean(-1) / full.mean(-1))
    assert found.shape == (2, 3) and np.isnan(relative(np.ones(2), np.array([1.0, 0.0])))
    for row, computed in paper.tables()["IV"].compared():
        table = paper.tables()["IV"]
        own = np.array([row.values[name] for name in table.averaged], float)
        base = np.array([table.base(row)[name] for name in table.averaged])
        assert math.isclose(100 * float(relative(own, base)), computed)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_few_clusters_are_gone_through_sign_by_sign(sums):
    extreme = sum(
        abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= abs(sum(sums))
        for signs in itertools.product((1, -1), repeat=len(sums))
    )
    expected = Fraction(extreme, 2 ** len(sums))
    assert sign_flip(np.array(sums, float)) == float(expected)
    # Thirds are not exact in binary: ties must stay ties.
    assert sign_flip(np.array(sums) / 3) == float(expected)


def test_many_clusters_are_drawn(monkeypatch):
    rng = np.random.default_rng(6)
    sums = rng.normal(0.25, 1, size=(3, 2, 16))
    sums[1, 1] = 0
    drawn = sign_flip(sums, rng_seed=1)
    monkeypatch.setattr(statistics, "ENUMERATED", 16)
    exact = sign_flip(sums)
    assert drawn[1, 1] == exact[1, 1] == 1
    error = np.sqrt(exact * (1 - exact) / statistics.FLIPS)
    print(np.round(drawn, 4), np.round(exact, 4))
    assert (np.abs(drawn - exact) <= 4 * error + 1e-4).all() and np.ptp(exact) > 0.3
    monkeypatch.setattr(statistics, "ENUMERATED", 3)
    monkeypatch.setattr(statistics, "_AT_ONCE", 100)
    again = sign_flip(sums, rng_seed=1)
    assert (np.abs(again - exact) <= 4 * error + 1e-4).all()
    # A clear difference: the least p there can be, and not 0.
    assert sign_flip(np.ones(40)) == 1 / (1 + statistics.FLIPS)


def test_the_sign_flip_test_keeps_its_level():
    rng = np.random.default_rng(7)
    # Scores of two like methods differ at a few images, more at some than at others.
    apart = rng.integers(-1, 2, (600, 25)) * rng.integers(1, 4, 25)
    p = sign_flip(apart.astype(float), draws=999)
    print(f"{(p <= 0.05).mean():.3f} of 600 tests of no difference at 5 %")
    assert (p <= 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert (sign_flip(apart + 1.5, draws=999) <= 0.05).mean() > 0.5


def test_holm_by_hand():
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert np.allclose(holm(np.array([0.6, 0.5])), [1, 1])
    assert holm(np.array([0.02])) == [0.02] and holm(np.array([])).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.integers(1, 99))
def test_holm_decides_as_the_sequence_of_tests_does(hundredths, level):
    p, alpha = np.array(hundredths) / 100, (level + 0.5) / 100
    rejected = set()
    for step, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - step) > alpha:
            break
        rejected.add(int(i))
    assert set(np.flatnonzero(holm(p) <= alpha)) == rejected
