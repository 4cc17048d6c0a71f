"""The oracles of the encoder methods, held by problems worked out by hand."""

import math

import numpy as np
import pytest

from tests.methods.oracles.encoder import (
    fastervlm,
    hired,
    prumerge,
    schedule,
    tome,
    trim,
    visionzip,
    vispruner,
)


def angles(*degrees: float) -> np.ndarray:
    """Unit vectors of the plane: their cosines are those of the differences of the angles."""
    return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


# ---- ToMe


def test_tome_matches_and_merges_one_layer():
    # Places: CLS 0 | 1..6. Even: 0, 2, 4, 6; odd: 1, 3, 5 at 0, 40 and 90 degrees.
    # 2 at 2 degrees: best 1 (2 apart). 4 at 87: best 5 (3 apart). 6 at 30: best 3 (10 apart).
    keys = angles(0, 0, 2, 40, 87, 90, 30)[:, None, :]
    found = tome.match(keys=keys, r=2)
    assert found.into == {2: 1, 4: 5}
    assert found.unmerged == [0, 6]
    assert found.odd == [1, 3, 5]
    # CLS has the same key as place 1, yet is never a source: 3 sources at most, (7 - 1) // 2.
    assert set(tome.match(keys=keys, r=9).into) == {2, 4, 6}
    # Without a class token place 0 is the first source, and what stays is in order of its score.
    free = tome.match(keys=keys, r=1, class_token=False)
    assert free.into == {0: 1}
    assert free.unmerged == [2, 4, 6]
    assert tome.match(
        keys=angles(0, 40, 0, 90, 91)[:, None, :], r=1, class_token=False
    ).unmerged == [
        *(0, 2)  # tied at 40 degrees from place 1: place 0 first
    ]
    # Sizes 3 and 1: (3 * 8 + 1 * 4) / 4 = 7 at place 1; 4 into 5: (50 + 30) / 2.
    tokens = np.array([[9.0], [8.0], [4.0], [20.0], [30.0], [50.0], [60.0]])
    rows, sizes = tome.merge(tokens, [1, 3, 1, 1, 1, 1, 1], found)
    np.testing.assert_allclose(rows[:, 0], [9, 60, 7, 20, 40])
    assert sizes == [1, 1, 4, 1, 2]


def test_tome_score_order_without_a_class_token():
    # Even places 0, 2, 4 are 30, 10 and 20 degrees from place 1 (3 is far): 2 merges, then 4, 0.
    found = tome.match(keys=angles(30, 0, 10, 180, 20)[:, None, :], r=1, class_token=False)
    assert found.into == {2: 1}
    assert found.unmerged == [4, 0]


def test_tome_averages_keys_over_heads_before_they_are_normalised():
    # The second head of place 2 is long: its mean points up, to that of place 3, while the mean of
    # normalised heads, (0.5, 0.5), would be 90 degrees from both.
    keys = np.zeros((4, 2, 2))
    keys[0] = [[1, 0], [1, 0]]
    keys[1] = [[1, 0], [0, -1]]  # mean (0.5, -0.5)
    keys[2] = [[1, 0], [0, 20]]  # mean (0.5, 10)
    keys[3] = [[-1, 0], [0, 2]]  # mean (-0.5, 1)
    assert tome.match(keys=keys, r=1).into == {2: 3}


def test_tome_several_sources_into_one():
    found = tome.match(keys=angles(180, 0, 1, 90, 2)[:, None, :], r=2)
    assert found.into == {2: 1, 4: 1}
    rows, sizes = tome.merge(np.array([[0.0], [3.0], [6.0], [100.0], [9.0]]), [1] * 5, found)
    np.testing.assert_allclose(rows[:, 0], [0, 6, 100])
    assert sizes == [1, 3, 1]


def test_proportional_attention_is_attention_over_the_copies():
    # Three tokens of which two are equal: merged to one of size 2, log 2 restores the softmax.
    logits, values = np.array([0.3, 1.1, 1.1]), np.array([5.0, 2.0, 2.0])
    full = np.exp(logits) @ values / np.exp(logits).sum()
    short = logits[:2] + tome.bias([1, 2])
    assert math.isclose(np.exp(short) @ values[:2] / np.exp(short).sum(), full)
    assert tome.bias([1, 2], proportional=False) == [0.0, 0.0]


def test_tome_over_two_layers():
    # Toy block: a key's angle is its token, attention adds the sum of the biases, the MLP doubles.
    def attention(layer, x, bias):
        return np.full_like(x, sum(bias)), angles(*(x[:, 0] % 360))[:, None, :]

    def mlp(layer, x):
        return x * 1.0

    # CLS 200; 1..4 at 0, 10, 50, 120. Layer 0: even 0, 2, 4; 2 is 10 from place 1, 4 is 70 from 3.
    # 2 merges into 1: 5 (size 2). Sequence CLS, 4 | 1, 3 = 200, 120 | 5, 50; doubled by the MLP:
    # 400, 240, 10, 100. Layer 1: keys at 40, 240, 10, 100; all rows + log 2. Even: CLS and place 2
    # (the token 1, at 10), odd: 4 at 240, 3 at 100: it merges into 3 (90 < 130):
    # (2 (10 + log 2) + 100 + log 2) / 3 = 40 + log 2, doubled.
    kept = tome.tome(
        tokens=np.array([[200.0], [0.0], [10.0], [50.0], [120.0]]),
        counts=[1, 1],
        attention=attention,
        mlp=mlp,
    )
    assert kept.indices == [3, 2]  # tokens 4 and 3, counted without CLS
    np.testing.assert_allclose(kept.merged[:, 0], [480 + 2 * math.log(2), 80 + 2 * math.log(2)])


def test_tome_schedules():
    for keep, constant, last in ((192, 16, 32), (128, 19, 30), (64, 22, 28)):
        counts = schedule.schedule(tokens=576, keep=keep, layers=23)
        assert counts == [constant] * 22 + [last]
        assert 576 - sum(counts) == keep
    # 16 to 4 in 2 layers: 6, then 10 left of which 5 can go, not 6; 7 each leaves 9, which cannot
    # lose 5; 8 leaves 8, which can lose 4. To 3: never.
    assert schedule.schedule(tokens=16, keep=4, layers=2) == [8, 4]
    with pytest.raises(ValueError, match="16 tokens down to 3"):
        schedule.schedule(tokens=16, keep=3, layers=2)
    assert schedule.schedule(tokens=16, keep=16, layers=3) == [0, 0, 0]
    assert schedule.linear_schedule(8, 5) == [8] * 5
    assert schedule.linear_schedule(8, 5, -1.0) == [16, 12, 8, 4, 0]


# ---- PruMerge


def test_cls_row_leaves_out_its_own_column():
    # v = 4: scale 1/2. Logits: CLS 0, patches 2 log 2 / 2 = log 2 and 0: softmax 1/4, 1/2, 1/4.
    query = np.array([math.log(2), 0.0, 0.0, 0.0])
    keys = np.array([[2.0, 0, 0, 0], [0.0, 5, 0, 0]])
    row = prumerge.cls_row(cls_query=query, cls_key=np.array([0.0, 0, 1, 0]), keys=keys)
    np.testing.assert_allclose(row, [0.5, 0.25])


def test_prumerge_by_hand():
    # c: token 2, then 0. Keys: 2 at 0 degrees has 1 (5) nearest, 0 at 100 has 3 (90); one
    # neighbour each: rows x2 + c1 x1 and x0 + c3 x3; aggregate c1 x1 + c3 x3.
    attention = np.array([0.3, 0.1, 0.4, 0.05])
    features = np.array([[10.0, 1], [20, 1], [30, 1], [40, 1]])
    keys = angles(100, 5, 0, 90)
    kept = prumerge.prumerge(
        features=features, attention=attention, keys=keys, keep=3, neighbours=1
    )
    assert kept.indices == [2, 0, -1]
    np.testing.assert_allclose(kept.merged, [[32, 1.1], [12, 1.05], [4, 0.15]])
    # All three others of each: kept neighbours count as well, with what they were.
    kept = prumerge.prumerge(features=features, attention=attention, keys=keys, keep=3)
    np.testing.assert_allclose(kept.merged[:, 0], [30 + 2 + 3 + 2, 10 + 2 + 12 + 2, 4])


def test_prumerge_counts():
    features, keys = np.ones((24, 2)), np.ones((24, 2))
    attention = np.full(24, 0.01)
    attention[[5, 11, 17]] = [0.2, 0.4, 0.3]
    same = {"features": features, "attention": attention, "keys": keys}
    # Adaptive: three outliers. rho = 1/8: int(3) too. Plus: step 8, stride 2, 0..22 even, none of
    # them chosen before: 3 + 12 + 1 rows. 23 = N - 1 is never a sample.
    assert prumerge.prumerge(**same).indices == [11, 17, 5, -1]
    assert prumerge.prumerge(**same, ratio=1 / 8).indices == [11, 17, 5, -1]
    plus = prumerge.prumerge(**same, plus=True)
    assert plus.indices == [11, 17, 5, *range(0, 24, 2), -1]
    assert len(plus.merged) == 16
    assert prumerge.samples(24, 8) == list(range(23))  # step 3, stride 1
    for count in (0, 9):
        with pytest.raises(ValueError, match="not defined"):
            prumerge.samples(24, count)
    # Budgets: T - 1 + aggregate; plus: the most that fit. One by attention: step 24, stride 8, the
    # samples 0, 8, 16: 5 rows. Two: step 12, stride 4, six samples: 9 rows. Three: 16 rows, and
    # four (the fourth is token 0, a sample itself) 4 + 11 + 1 too, so 16 rows hold four.
    for keep in (2, 5, 24):
        assert len(prumerge.prumerge(**same, keep=keep).indices) == keep
    assert [prumerge.budgeted(attention, keep, True) for keep in (5, 8, 9, 15, 16)] == [
        1,
        1,
        2,
        2,
        4,
    ]
    assert prumerge.prumerge(**same, keep=9, plus=True).indices == [11, 17, *range(0, 23, 4), -1]


# ---- TRIM


def test_trim_by_hand():
    # Dot products 4, 0, 2, -1: the two lowest are 3 and 1, kept in image order.
    patches = np.array([[4.0, 0], [0.0, 9], [2, 0], [-1, 1]])
    text = np.array([[1.0, 0]])
    features = np.array([[1.0], [2], [5], [8]])
    same = {"features": features, "clip_patch": patches, "clip_text": text}
    kept = trim.trim(**same, keep=2)
    assert kept.indices == [1, 3, -1]
    np.testing.assert_allclose(kept.merged[:, 0], [2, 8, 3])  # (1 + 5) / 2
    assert trim.trim(**same, keep=2, sign=1).indices == [0, 2, -1]
    assert trim.trim(**same, keep=4).indices == [0, 1, 2, 3]
    scores = trim.trim_scores(
        clip_patch=np.array([[0.0], [math.log(2)]]), clip_text=np.array([[1.0]])
    )
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3])


def test_trim_is_not_a_cosine():
    # Along the text 3 of length 30 against 2 of length 2: lowest dot product 2, lowest cosine 0.1.
    patches = np.array([[3.0, math.sqrt(891)], [2.0, 0]])
    kept = trim.trim(features=np.eye(2), clip_patch=patches, clip_text=np.array([[1.0, 0]]), keep=1)
    assert kept.indices == [1, -1]


def test_trim_counts():
    rng = np.random.default_rng(0)
    patches, features = rng.normal(size=(576, 4)), rng.normal(size=(576, 3))
    for ratio, rows in ((1 / 3, 193), (2 / 9, 129), (1 / 9, 65)):
        kept = trim.trim(
            features=features, clip_patch=patches, clip_text=np.ones((1, 4)), ratio=ratio
        )
        assert len(kept.indices) == len(kept.merged) == rows
    # Adaptive: scores of seven equal patches and one far below: one outlier.
    patches = np.array([[1.0]] * 7 + [[-2.0]])
    kept = trim.trim(features=np.ones((8, 1)), clip_patch=patches, clip_text=np.ones((1, 1)))
    assert kept.indices == [7, -1]


# ---- FasterVLM, VisPruner, HiRED


def test_fastervlm_in_image_order():
    assert fastervlm.fastervlm(saliency=np.array([0.1, 0.5, 0.2, 0.4]), keep=2).indices == [1, 3]
    assert fastervlm.fastervlm(saliency=np.array([0.2, 0.2, 0.2, 0.4]), keep=2).indices == [0, 3]


def test_vispruner_by_hand():
    # Attention descends with the index. T = 4, r = 0.5: 0 and 1 are important, 2 of 2..7 stay.
    # Steps of 2. Round 1: even places 2, 4, 6 at 0, 50, 100 degrees; odd 3, 5, 7 at 30, 52, 180:
    # nearest 30, 2 and 48 away: 4, then 2 go; list 6 | 3, 5, 7.
    # Round 2, 4 left, 2 to go: even 6 (100), 5 (52), odd 3 (30), 7 (180): 70 and 22 away; both go.
    # Left 3, 7.
    features = angles(300, 310, 0, 30, 50, 52, 100, 180)
    saliency = np.arange(8.0)[::-1]
    kept = vispruner.vispruner(features=features, saliency=saliency, keep=4, step=2)
    assert kept.indices == [0, 1, 3, 7]
    # T = 5: int(2.5) = 2 important, 3 diverse: the second round drops the nearer one only, 5.
    kept = vispruner.vispruner(features=features, saliency=saliency, keep=5, step=2)
    assert kept.indices == [0, 1, 3, 6, 7]
    # Steps of 8: three places are even, so a round drops three at most; 1 + 4 of 7 with r = 0.2.
    kept = vispruner.vispruner(features=features, saliency=saliency, keep=5, important_ratio=0.2)
    assert len(kept.indices) == 5


def test_vispruner_list_order_changes():
    # Attention 4 > 3 > 2 > 1 > 0 > 5, none important. List 4, 3, 2, 1, 0, 5: even 4, 2, 0 at 10,
    # 70, 220, odd 3, 1, 5 at 0, 100, 200: 10, 30 and 20 away. 4 goes; list 0, 2 (in descending
    # redundancy) | 3, 1, 5. Its even places are 0, 3, 5, its odd ones 2, 1: 120, 70 and 100 away,
    # so 3 goes. With the survivors in their old order (2, 0, 3, 1, 5), with the odd ones first or
    # with the whole list in the order of attention it would be 5, 20 away from 0.
    features = angles(220, 100, 70, 0, 10, 200)
    saliency = np.array([1, 2, 3, 4, 5, 0])
    kept = vispruner.vispruner(
        features=features, saliency=saliency, keep=4, important_ratio=0.0, step=1
    )
    assert kept.indices == [0, 1, 2, 5]


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 8, 9])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 1.0])
def test_vispruner_budgets(keep, ratio):
    rng = np.random.default_rng(1)
    kept = vispruner.vispruner(
        features=rng.normal(size=(9, 3)),
        saliency=rng.random(9),
        keep=keep,
        important_ratio=ratio,
    )
    assert len(set(kept.indices)) == keep


def test_hired_sums_heads_and_floors():
    heads = np.array([[0.5, 0.1, 0.3, 0.1], [0.0, 0.4, 0.3, 0.3]])  # sums 0.5, 0.5, 0.6, 0.4
    assert hired.hired(heads_saliency=heads, rate=0.5).indices == [0, 2]
    assert hired.hired(heads_saliency=heads, rate=0.74).indices == [0, 2]
    scores = np.random.default_rng(2).random((2, 576))
    for rate, count in ((0.222, 127), (2 / 9, 128), (1 / 3, 192), (1 / 9, 64), (0.2, 115)):
        assert len(hired.hired(heads_saliency=scores, rate=rate).indices) == count
    mean = fastervlm.fastervlm(saliency=scores.mean(0), keep=64)
    assert hired.hired(heads_saliency=scores, keep=64) == mean


def test_hired_regions():
    # 4 x 4 tokens, 2 x 2 tiles. Runs: token // 4 is a row. Quadrants: halves of rows and columns.
    runs = [hired.region(token, (4, 4), (2, 2)) for token in range(16)]
    assert runs == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    quadrants = [hired.region(token, (4, 4), (2, 2), "quadrants") for token in range(16)]
    assert quadrants == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    # 24 x 24 with 2 x 2: run k is rows 6k..6k+5.
    assert [hired.region(24 * row, (24, 24), (2, 2)) for row in (0, 5, 6, 17, 18)] == [
        0,
        0,
        1,
        2,
        3,
    ]
    with pytest.raises(ValueError, match="do not divide"):
        hired.region(0, (3, 3), (1, 2))


def test_hired_budgets_of_the_tiles():
    # Layer 0 marks int(16 / 2) = 8 of 16: the upper row 0..3, then 4, 5, 6 and 8.
    first = np.zeros((1, 16))
    first[0, [0, 1, 2, 3, 4, 5, 6, 8]] = 1.0
    same = {"first_heads_saliency": first, "grid": (4, 4), "tiles": (2, 2)}
    # B = int(5 * 16 * 0.2) = 16; base 8, of the other 8: runs 4, 3, 1, 0 of 8 marks; quadrants
    # {0,1,4,5}, {2,3,6}, {8}, {}: 4, 3, 1, 0 as well.
    assert hired.allocate(**same) == [8, 4, 3, 1, 0]
    assert hired.allocate(**same, regions="quadrants") == [8, 4, 3, 1, 0]
    # B = 13: base 6, 7 left: floor of 3.5, 2.625, 0.875, 0: two are lost.
    assert hired.allocate(**same, keep=13) == [6, 3, 2, 0, 0]
    # The left half of the picture marked: two marks in each row, all of them in two quadrants.
    first = np.zeros((1, 16))
    first[0, [0, 1, 4, 5, 8, 9, 12, 13]] = 1.0
    same["first_heads_saliency"] = first
    assert hired.allocate(**same) == [8, 2, 2, 2, 2]
    assert hired.allocate(**same, regions="quadrants") == [8, 4, 0, 4, 0]
    # Cut at N: B = 80 gives base min(40, 16), 64 left in two quadrants of 32, cut to 16.
    assert hired.allocate(**same, rate=1.0, regions="quadrants") == [16, 16, 0, 16, 0]
    assert hired.allocate(**same, alpha=1.0) == [16, 0, 0, 0, 0]
    # alpha = 1/4: base 4 of 16, 12 marks: ties add 2, 3, 6, 7, so rows have 4, 4, 2, 2 of them.
    assert hired.allocate(**same, alpha=0.25) == [4, 4, 4, 2, 2]
    tiles = [np.arange(16.0)[None]] * 5
    kept = hired.hired_next(heads_saliency=tiles, **same, regions="quadrants")
    assert [k.indices for k in kept] == [
        *(list(range(8, 16)), [12, 13, 14, 15], [], [12, 13, 14, 15], [])
    ]


# ---- VisionZip


def visionzip_problem():
    # D = 2: CLS and token 1. Others 0, 2, 3, 4, 5, C = 2: stride 2, targets 0 and 3.
    # Keys at 0 (0), 90 (3); 2 at 20 and 5 at 10 go to 0, 4 at 80 to 3.
    return {
        "features": np.array([[1.0], [50], [2], [10], [20], [6]]),
        "cls_feature": np.array([99.0]),
        "saliency": np.array([0.1, 0.9, 0.2, 0.3, 0.1, 0.2]),
        "keys": angles(0, 45, 20, 90, 80, 10)[:, None, :],
    }


def test_visionzip_by_hand():
    kept = visionzip.visionzip(**visionzip_problem(), dominant=2, contextual=2)
    assert kept.indices == [-1, 1, 0, 3]
    np.testing.assert_allclose(kept.merged[:, 0], [99, 50, 1 + (2 + 6) / 2, 10 + 20])
    kept = visionzip.visionzip(**visionzip_problem(), dominant=2, contextual=2, combine="mean")
    np.testing.assert_allclose(kept.merged[:, 0], [99, 50, 3, 15])
    # Three targets: 5 // 3 = 1, so 0, 2, 3, and 4 goes to 3. 5 would be tied between 0 and 2: at 9
    # degrees it goes to 0.
    problem = visionzip_problem()
    problem["keys"][5, 0] = angles(9)[0]
    kept = visionzip.visionzip(**problem, dominant=2, contextual=3)
    assert kept.indices == [-1, 1, 0, 2, 3]
    np.testing.assert_allclose(kept.merged[:, 0], [99, 50, 1 + 6, 2, 10 + 20])


def test_visionzip_averages_heads_before_it_normalises():
    # The mean of the heads of 2 points to 3 (its long second head), the heads' cosines to 0.
    problem = visionzip_problem()
    keys = np.repeat(problem["keys"], 2, axis=1)
    keys[2, 0], keys[2, 1] = angles(0)[0], 9 * angles(90)[0]
    problem["keys"] = keys
    kept = visionzip.visionzip(**problem, dominant=2, contextual=2)
    np.testing.assert_allclose(kept.merged[:, 0], [99, 50, 1 + 6, 10 + (2 + 20) / 2])


def test_visionzip_counts():
    assert [visionzip.split(keep) for keep in (192, 128, 64, 32)] == [
        *((162, 30), (108, 20), (54, 10), (27, 5))
    ]
    rng = np.random.default_rng(3)
    for keep in (64, 32):
        dominant, contextual = visionzip.split(keep)
        kept = visionzip.visionzip(
            features=rng.normal(size=(144, 3)),
            cls_feature=np.ones(3),
            saliency=rng.random(144),
            keys=rng.normal(size=(144, 2, 2)),
            dominant=dominant,
            contextual=contextual,
        )
        assert len(kept.indices) == len(kept.merged) == keep
        assert len(set(kept.indices)) == keep  # CLS is the one -1
        assert kept.indices[1:dominant] == sorted(kept.indices[1:dominant])
