"""Intervals and areas against known values, slow oracles and simulated samples."""

import math

import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.evaluation.tables import verdict
from resprune_jax.experiments.statistics import Z, auc, clustered, share, wilson


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), Table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
     (1, 29, 0.0061, 0.1718)],
)  # fmt: skip
def test_wilson_gives_the_published_intervals(right, asked, low, high):
    found = wilson(right, asked)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.value == right / asked
    mirrored = wilson(asked - right, asked)
    assert math.isclose(mirrored.low, 1 - found.high) and math.isclose(mirrored.high, 1 - found.low)


def test_wilson_ends_where_the_score_test_rejects():
    checked = 0
    for asked in (1, 7, 200, 2500):
        for right in {0, 1, asked // 3, asked - 1, asked}:
            found, share = wilson(right, asked), right / asked
            for end in (found.low, found.high):
                if 0 < end < 1:
                    error = abs(share - end) - Z * math.sqrt(end * (1 - end) / asked)
                    assert abs(error) < 1e-12
                    checked += 1
    print(f"{checked} ends solve the score equation")
    assert checked > 25


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_counts_that_cannot_be(counts):
    with pytest.raises(CallError, match="right"):
        wilson(*counts)


def test_the_bootstrap_covers_the_truth_and_knows_scenes():
    rng = np.random.default_rng(5)
    trials, scenes, each = 300, 80, 5
    covered, widths, naive = 0, [], []
    for _ in range(trials):
        # Half of what decides an answer belongs to the scene, half to the question.
        scene = rng.normal(size=(scenes, 1))
        values = 0.3 + scene + rng.normal(size=(scenes, each))
        found = clustered(values.sum(1), np.full(scenes, each))
        assert math.isclose(found.value, values.mean())
        covered += found.low <= 0.3 <= found.high
        widths.append(found.high - found.low)
        naive.append(2 * Z * values.std(ddof=1) / math.sqrt(values.size))
    print(f"{covered} of {trials} intervals hold the truth; {np.mean(widths) / np.mean(naive):.2f}"
          " times as wide as if questions stood alone")  # fmt: skip
    assert 0.90 < covered / trials < 0.985
    expected = math.sqrt((1 + 1 / each) / (2 / each))  # of the standard errors
    assert abs(np.mean(widths) / np.mean(naive) - expected) < 0.1


def test_a_share_counts_scenes_where_their_questions_go_together():
    rng = np.random.default_rng(11)
    ones = np.ones(60)
    for right in (rng.random(60) < 0.3, np.zeros(60), ones):
        alone, plain = share(right, ones), wilson(right.sum(), 60)
        assert np.allclose([alone.value, alone.low, alone.high],
                           [plain.value, plain.low, plain.high])  # fmt: skip
        # Five questions a scene that are all right or all wrong tell as much as one.
        whole = share(5 * right, 5 * ones)
        assert np.allclose([whole.low, whole.high], [alone.low, alone.high])
    trials, covered, narrow, widths = 400, 0, 0, []
    for _ in range(trials):
        easy = rng.beta(4, 1, (500, 1))  # mean 0.8; some scenes are harder than others
        right = (rng.random((500, 5)) < easy).sum(1)
        found, plain = share(right, np.full(500, 5)), wilson(right.sum(), 2500)
        covered += found.low <= 0.8 <= found.high
        narrow += plain.low <= 0.8 <= plain.high
        widths.append((found.high - found.low) / (plain.high - plain.low))
    print(f"{covered} of {trials} intervals hold the truth, {narrow} of Wilson's own;"
          f" {np.mean(widths):.2f} times as wide")  # fmt: skip
    assert 0.92 < covered / trials < 0.98 and narrow < covered
    # The share of the variance that scenes hold is 1/6: design effect 1 + 4/6.
    assert abs(np.mean(widths) - math.sqrt(1 + 4 / 6)) < 0.05
    for bad in (([2], [1]), ([0], [0]), ([-1], [3]), ([1, 1], [2])):
        with pytest.raises(CallError):
            share(np.array(bad[0]), np.array(bad[1]))


def test_scenes_may_have_different_numbers_of_questions():
    totals, counts = np.array([3.0, 0.0, 2.0, 0.0]), np.array([4, 3, 2, 0])
    found = clustered(totals, counts, rng_seed=1)
    assert math.isclose(found.value, 5 / 9)
    # A scene without questions changes nothing.
    assert clustered(totals[:3], counts[:3], rng_seed=1) == found
    # Three scenes can be drawn in 27 ways: the ends are means of some of these.
    ways = {
        (totals[[a, b, c]].sum() / counts[[a, b, c]].sum())
        for a in range(3) for b in range(3) for c in range(3)
    }  # fmt: skip
    assert min(ways) <= found.low < found.value < found.high <= max(ways)
    values = np.arange(40.0)
    first, again, other = (clustered(values, np.ones(40), seed) for seed in (1, 1, 2))
    assert first == again != other
    for bad in ((np.zeros(2), np.zeros(2)), (np.zeros(3), np.ones(2))):
        with pytest.raises(CallError):
            clustered(*bad)


def test_auc_is_how_often_a_member_scores_higher():
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(200):
        size = int(rng.integers(2, 40))
        scores = rng.integers(0, 6, size) / 5 if rng.random() < 0.7 else rng.random(size)
        members = rng.random(size) < 0.4
        members[:2] = True, False
        pairs = [(a, b) for a in scores[members] for b in scores[~members]]
        ties += sum(a == b for a, b in pairs)
        slow = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
        assert math.isclose(auc(scores, members), slow, abs_tol=1e-12)
    print(f"200 areas equal the count of pairs, {ties} ties among them")
    assert ties > 1000
    assert auc(np.zeros(5), np.arange(5) < 2) == 0.5
    assert auc(np.arange(5), np.arange(5) > 2) == 1.0


@pytest.mark.parametrize(
    ("scores", "members"), [([1, 2], [1, 1]), ([1, 2], [0, 0]), ([np.nan, 2], [1, 0])]
)
def test_no_area(scores, members):
    with pytest.raises(CallError):
        auc(np.array(scores), np.array(members, bool))


@pytest.mark.parametrize(
    ("intervals", "good", "says"),
    [
        ([(0.91, 0.95)], {"low": 0.90}, "yes"), ([(0.88, 0.95)], {"low": 0.90}, "undecided"),
        ([(0.80, 0.89)], {"low": 0.90}, "no"), ([(0.2, 0.3)], {"high": 0.55}, "yes"),
        ([(0.5, 0.6)], {"high": 0.55}, "undecided"), ([(0.6, 0.7)], {"high": 0.55}, "no"),
        ([(0.9, 1.0), (0.7, 0.85)], {"low": 0.8}, "undecided"),
        ([(0.9, 1.0), (0.7, 0.79)], {"low": 0.8}, "no"),
        ([(0.7, 0.85), (0.6, 0.7)], {"low": 0.8}, "no"), ([(-0.03, -0.01)], {"high": 0.03}, "yes"),
    ],
)  # fmt: skip
def test_a_goal_is_decided_by_its_whole_interval(
    intervals: list[tuple[float, float]], good: dict[str, float], says: str
) -> None:
    estimates = [{"value": (a + b) / 2, "low": a, "high": b} for a, b in intervals]
    assert verdict(estimates, **good) == says
