"""The oracles of methods that drop inside the language model, on problems worked out by hand."""

import numpy as np
import pytest

from tests.methods.oracles.decoder import accounting
from tests.methods.oracles.decoder.adaptprune import (
    adaptprune,
    adaptprune_prior,
    adaptprune_steps,
)
from tests.methods.oracles.decoder.dart import dart, rms_norm
from tests.methods.oracles.decoder.dpc_knn import dpc_knn
from tests.methods.oracles.decoder.fastv import fastv
from tests.methods.oracles.decoder.pdrop import pdrop, pdrop_counts, pdrop_scores, pdrop_stage
from tests.methods.oracles.decoder.sparsevlm import (
    LISTS,
    sparsevlm,
    sparsevlm_raters,
    sparsevlm_stage,
)
from tests.methods.oracles.decoder.sparsevlm_plus import (
    LISTS_PLUS,
    gravity,
    rotated_ones,
    sparsevlm_plus,
    sparsevlm_plus_stage,
)

# ---- what drops cost --------------------------------------------------------------------------


def test_one_drop_keeps_less_than_the_average_says() -> None:
    for layer, keeps in {2: (166, 98, 30), 3: (152, 82, 11)}.items():
        got = [accounting.keep_for_average(t, 576, layer) for t in (192, 128, 64)]
        assert got == list(keeps)
        for keep, target in zip(got, (192, 128, 64), strict=True):
            # One token more or less moves the average by (32 - K) / 32, so it is met to half that.
            assert abs(accounting.average(576, [(layer, keep)]) - target) <= 0.5
    # K = 8 of 32: the first layers alone cost 144 a layer.
    with pytest.raises(ValueError, match="before layer 8"):
        accounting.keep_for_average(128, 576, 8)


def test_pyramids_ratio_for_an_average() -> None:
    ratios = [accounting.ratio_for_average(t, 576) for t in (192, 128, 64)]
    assert [f"{ratio:.3f}" for ratio in ratios] == ["0.560", "0.420", "0.192"]
    # (2 + 6 x + 8 x^2 + 16 x^3) / 32 of 576 tokens.
    for ratio, target in zip(ratios, (192, 128, 64), strict=True):
        layers = 2 + 6 * ratio + 8 * ratio**2 + 16 * ratio**3
        assert abs(576 * layers / 32 - target) < 1e-9
    # The released halves at 8, 16 and 24: 576 (1 + 1/2 + 1/4 + 1/8) / 4.
    released = accounting.geometric(576, 0.5, (8, 16, 24))
    assert accounting.average(576, released) == 270
    # The author's own example for 64.
    assert round(accounting.average(576, accounting.geometric(576, 0.19, (2, 8, 16))), 1) == 63.7


def test_sparsevlms_lists_average_what_they_say_on_outputs_only() -> None:
    outputs = [accounting.sparsevlm_average(576, LISTS[t], processed=False) for t in (192, 128, 64)]
    assert [round(n, 1) for n in outputs] == [192.0, 128.6, 64.8]
    worked = [accounting.sparsevlm_average(576, LISTS[t], processed=True) for t in (192, 128, 64)]
    # 82.25 is printed as 82.3: halves away from zero.
    assert worked == [206.5, 145.40625, 82.25]
    # 276 dropped: 82 + 1 clustered, 8 + 1 clusters; 109 of 309: 33 and 4; 94 of 204: 29 and 3.
    assert accounting.sparsevlm_outputs(576, (300, 200, 110)) == [309, 204, 113]
    assert accounting.merged_rows(1) == (1, 1)
    # Never all of them: 4 tokens of which 9 may stay leave 3 and a cluster.
    assert accounting.sparsevlm_outputs(4, (9,)) == [4]
    # Without merging, as v2.0: (2 x 576 + 4 x 300 + 9 x 200 + 17 x 118) / 32 on outputs.
    plain = accounting.sparsevlm_average(576, LISTS_PLUS[192], processed=False, merge=False)
    assert plain == (1152 + 1200 + 1800 + 2006) / 32


def test_dart_keeps_four_and_eight_times() -> None:
    kept = [accounting.dart_count(t) for t in (192, 128, 64)]
    assert kept == [196, 132, 68]
    averages = [accounting.average(576, [(2, n)]) for n in kept]
    assert averages == [219.75, 159.75, 99.75]
    assert accounting.dart_count(7) == 4


def test_flops_and_cache() -> None:
    # d = 2, m = 3, one layer of 5 tokens: 2 (4*5*4 + 2*25*2 + 3*5*6) = 2 (80 + 100 + 90).
    assert accounting.flops([5], 2, 3) == 540
    # LLaVA-1.5-7B: half a MiB a token; 98 from layer 2 on are (2 x 576 + 30 x 98) / 32 of them.
    assert accounting.kv_bytes([1] * 32, 32, 128) == 2**19
    counts = accounting.layer_counts(576, [(2, 98)])
    assert accounting.kv_bytes(counts, 32, 128) == 127.875 * 2**19
    assert counts == [576] * 2 + [98] * 30


def test_layers_of_other_depths() -> None:
    assert [accounting.scaled_layer(2, depth) for depth in (4, 28, 32, 80)] == [2] * 4
    assert [accounting.scaled_layer(8, depth) for depth in (3, 4, 28, 32, 40)] == [1, 1, 7, 8, 10]
    assert accounting.scaled_layers((2, 6, 15), 28) == [2, 5, 13]  # 1.75, 5.25, 13.125
    assert accounting.scaled_layers((8, 16, 24), 4) == [1, 2, 3]
    assert accounting.scaled_layers((2, 8, 16), 40) == [2, 10, 20]  # 2.5 to the even number


# ---- FastV ------------------------------------------------------------------------------------


def test_fastv_takes_the_mean_over_heads_of_the_image_alone() -> None:
    # A text token, four visual ones, a text token. Means of the visual ones: .15 .20 .10 .25;
    # the largest of all, .30, belongs to the text.
    rows = np.array([[0.3, 0.30, 0.20, 0.10, 0.10, 0.0], [0.3, 0.00, 0.20, 0.10, 0.40, 0.0]])
    got = fastv(rows, [1, 2, 3, 4], 2, layers=4)
    assert got.kept == [[1, 3]]
    assert got.counts == [4, 4, 2, 2]
    # Of equal ones the first: 0 and 1 tie when heads are swapped in one of them.
    tied = np.array([[0.2, 0.2, 0.1]])
    assert fastv(tied, [0, 1, 2], 1, layer=1, layers=2).kept == [[0]]


# ---- DART -------------------------------------------------------------------------------------


def test_dart_goes_from_pivot_to_pivot() -> None:
    # Places: text 0, image 1..5, text 6 and 7. One pivot of each kind, two tokens each.
    # L1 norms over both heads: 4, 6, 1, 1, 1 in the image -> pivot place 2 (L2, 4 against 3, would
    # say place 1); 1 and 2 in the text -> pivot place 7.
    keys = np.zeros((2, 8, 2))
    keys[0, 1] = [4, 0]
    keys[:, 2] = 1.5
    keys[0, 3:6, 0] = 1
    keys[0, 6, 0], keys[0, 7, 0] = 1, -2
    # Angles (degrees) of the states: pivot 2 at 0. Cosines to it: place 1 at 170 -> -0.98,
    # 3 at 90 -> 0, 4 at 100 -> -0.17, 5 at 60 -> 0.5. It takes 1 and 4.
    # Text pivot 7 at 80: 3 at 90 -> 0.98, 5 at 60 -> 0.94: with a quota of 2 both go.
    angles = np.deg2rad([0, 170, 0, 90, 100, 60, 0, 80])
    hidden = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 9)[:, None]
    problem = {"visual": [1, 2, 3, 4, 5], "text": [6, 7], "image_pivots": 1, "text_pivots": 1}
    assert dart(keys, hidden, keep=4, **problem).kept == [[0, 1, 2, 3, 4]]
    # A quota of one: pivot 2 takes 1 (number 0), the text pivot then 5 of {3, 4, 5} (number 4).
    got = dart(keys, hidden, keep=2, layers=3, **problem)
    assert got.kept == [[0, 1, 4]]
    assert got.counts == [5, 5, 3]
    # Below one token a pivot only the image's pivots stay; a quota may be given.
    assert dart(keys, hidden, keep=1, **problem).kept == [[1]]
    assert dart(keys, hidden, keep=1, quota=1, **problem).kept == [[0, 1, 4]]


def test_dart_counts_and_norm() -> None:
    rng = np.random.default_rng(0)
    keys, hidden = rng.normal(size=(2, 130, 4)), rng.normal(size=(130, 8))
    for keep in (64, 71, 8, 5):
        kept = dart(keys, hidden, range(10, 110), range(110, 130), keep).kept[0]
        assert len(kept) == accounting.dart_count(keep) == len(set(kept))
        assert kept == sorted(kept)
    # A state of (3, 4): mean square 12.5.
    np.testing.assert_allclose(
        rms_norm(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), 0.0),
        [[3 / np.sqrt(12.5), 8 / np.sqrt(12.5)]],
    )


# ---- AdaptPrune -------------------------------------------------------------------------------


def test_adaptprunes_prior_weighs_the_middle() -> None:
    # A row of three at -12, 0, 12; it is the middle one of its image.
    prior = adaptprune_prior((1, 3))
    np.testing.assert_allclose(prior, [np.exp([-0.5, 0, -0.5])])
    prior = adaptprune_prior((24, 24))
    np.testing.assert_allclose(prior.max(), np.exp(-((12 / 23) ** 2) / 144))
    np.testing.assert_allclose(prior[0, 0], np.exp(-1))
    # Equal attention, keys at right angles: nothing is lowered (exp(-200)), the four in the middle
    # go first.
    row, keys = np.full((2, 16), 1 / 16), np.eye(16)
    got = adaptprune(row, keys, range(16), 4, grid=(4, 4), layers=3)
    assert got.kept == [[5, 6, 9, 10]]
    assert got.counts == [16, 16, 4]


def test_adaptprune_lowers_neighbours_that_look_alike() -> None:
    # A flat prior. Cells 0 1 2 in a row, keys of 0 and 1 equal, that of 2 at a right angle.
    # 0 is picked; 1 keeps 1 - exp(-1 / 4.5) = 0.199 of its 0.35: 0.070 < 0.10. So 2 comes next.
    keys = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    row = np.array([[0.40, 0.35, 0.10]])
    flat = {"grid": (1, 3), "prior_sigma": 1e6}
    assert adaptprune(row, keys, range(3), 2, **flat).kept == [[0, 2]]
    # 1 at a cosine of 0.9 of 0: exp(-0.01 / 0.005) = exp(-2), it keeps 1 - 0.80 * 0.135 = 0.89 of
    # 0.35, which is 0.312.
    keys[1] = [0.9, np.sqrt(1 - 0.81)]
    for rival, kept in {0.31: [0, 1], 0.32: [0, 2]}.items():
        row = np.array([[0.40, 0.35, rival]])
        assert adaptprune(row, keys, range(3), 2, **flat).kept == [kept]
    row = np.array([[0.40, 0.35, 0.10]])
    # A radius below one cell lowers nothing; one of exactly one cell does.
    keys[1] = [1.0, 0.0]
    assert adaptprune(row, keys, range(3), 2, radius=0.9, **flat).kept == [[0, 1]]
    assert adaptprune(row, keys, range(3), 2, radius=1.0, **flat).kept == [[0, 2]]
    # A step that counts eight cells is out of reach of a radius of five.
    steps = adaptprune_steps((24, 3))
    assert steps == (1, 8)
    assert adaptprune(row, keys, range(3), 2, steps=steps, **flat).kept == [[0, 1]]
    # Text in front: the places say where the image lies; and each cell is picked once.
    row = np.array([[0.9, 0.0, 0.0, 0.0]])
    assert adaptprune(row, keys, [1, 2, 3], 3, **flat).kept == [[0, 1, 2]]
    row = np.array([[0.9, 0.1, 0.2, 0.3]])
    assert adaptprune(row, keys, [1, 2, 3], 1, **flat).kept == [[2]]


def test_adaptprune_measures_from_the_pick() -> None:
    # Cell 3 is picked; 2, one cell off with the same key, keeps 0.199 of 0.35, less than 0.15.
    keys = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    row = np.array([[0.15, 0.0, 0.35, 0.40]])
    for grid in ((1, 4), (4, 1)):
        assert adaptprune(row, keys, range(4), 2, grid=grid, prior_sigma=1e6).kept == [[0, 3]]
    # On the diagonal of 2 x 2: 1 - exp(-2 / 4.5) = 0.359 of 0.35 is 0.126.
    row = np.array([[0.35, 0.15, 0.0, 0.40]])
    keys = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert adaptprune(row, keys, range(4), 2, grid=(2, 2), prior_sigma=1e6).kept == [[1, 3]]
    # The prior multiplies: .52 exp(-1) = .191 against .3 exp(-1/2) = .182; .48 exp(-1) = .177.
    for first, kept in {0.52: 0, 0.48: 1}.items():
        row = np.array([[first, 0.3, 0.1]])
        assert adaptprune(row, np.eye(3), range(3), 1, grid=(1, 3)).kept == [[kept]]


# ---- PyramidDrop ------------------------------------------------------------------------------


def test_pdrops_scores_are_a_softmax_over_all_keys() -> None:
    # Head size 4, so logits are halved. Two query heads share one key head.
    # Head 0 sees logits (0, ln 2, 0) -> 1/4 1/2 1/4; head 1 (ln 4, 0, 0) -> 4/6 1/6 1/6.
    keys = np.zeros((1, 3, 4))
    keys[0, 0, 1], keys[0, 1, 0] = 1, 1
    query = np.zeros((2, 4))
    query[0, 0], query[1, 1] = 2 * np.log(2), 2 * np.log(4)
    got = pdrop_scores(query, keys, [0, 1])
    np.testing.assert_allclose(got, [(1 / 4 + 4 / 6) / 2, (1 / 2 + 1 / 6) / 2])
    assert pdrop_stage(query, keys, [0, 1], 1) == [0]
    # Head 0 alone would keep the other.
    assert pdrop_stage(query[:1], keys, [0, 1], 1) == [1]
    # Four query heads, two key heads: heads 0 and 1 use the first, 2 and 3 the second.
    two = np.concatenate([keys, np.zeros((1, 3, 4))])
    four = np.concatenate([query, query])
    expected = (np.array([1 / 4 + 4 / 6, 1 / 2 + 1 / 6]) + 2 / 3) / 4
    np.testing.assert_allclose(pdrop_scores(four, two, [0, 1]), expected)


def test_pdrop_counts_from_the_first_number_of_tokens() -> None:
    assert pdrop_counts(576) == [288, 144, 72]
    assert pdrop_counts(9, (0.5, 0.25, 0.125)) == [4, 2, 1]
    # Keys in a line: the query likes the largest. Text, 4 visual, text; then 2, then 1 visual.
    query = np.array([[1.0]])
    first = np.array([[[9.0], [0.1], [0.4], [0.2], [0.3], [9.0]]])  # keeps 1 and 3
    second = np.array([[[9.0], [0.3], [0.6], [9.0]]])  # of these the second: 3
    stages = [(query, first), (query, second)]
    got = pdrop(stages, 4, start=1, at=(1, 3), fractions=(0.5, 0.25), layers=4)
    assert got.kept == [[1, 3], [3]]
    assert got.counts == [4, 2, 2, 1]


# ---- SparseVLM --------------------------------------------------------------------------------


def test_raters_are_above_the_mean() -> None:
    # Logits of the one visual token: ln 4, ln 3, 0 -> 4/8 3/8 1/8, mean 1/3.
    text = np.log([[4.0], [3.0], [1.0]])
    assert sparsevlm_raters(np.array([[1.0]]), text) == [0, 1]
    # A second visual token of -1: 3/19 4/19 12/19. Means .33 .29 .38: only the last is above.
    assert sparsevlm_raters(np.array([[1.0], [-1.0]]), text) == [2]
    # Exactly at the mean is not above it: 1/2 1/4 1/4 0.
    even = np.array([[np.log(2)], [0.0], [0.0], [-2000.0]])
    assert sparsevlm_raters(np.array([[1.0]]), even) == [0]
    # Nothing is above the mean of one.
    assert sparsevlm_raters(np.array([[1.0]]), text[:1]) == [0]


def test_density_peaks() -> None:
    # Points on a line: 0, 1, 1.5 and 10, 11; two clusters, so the two nearest, itself among them.
    # Mean squares: 1/2, .25/2, .25/2, 1/2, 1/2 -> densities .607 .882 .882 .607 .607.
    # Deltas: 0 -> 1 (to 1), 1 and 1.5 -> 11 (none denser), 10 -> 8.5, 11 -> 9.5.
    # Weights: .61, 9.7, 9.7, 5.2, 5.8: centres 1 and 1.5, though close: equally dense, no noise.
    line = np.array([[0.0], [1.0], [1.5], [10.0], [11.0]])
    assert dpc_knn(line, 2) == ([1, 2], [0, 0, 1, 1, 1])
    # Noise that puts 1.5 above 1 sends its delta to 0.5: centres 1.5, then 11.
    noise = np.array([0, 0, 1e-6, 0, 0])
    assert dpc_knn(line, 2, noise) == ([2, 4], [0, 0, 0, 1, 1])
    # sqrt(C): the same points in four equal columns have the same distances.
    assert dpc_knn(np.repeat(line, 4, axis=1), 2, noise) == ([2, 4], [0, 0, 0, 1, 1])
    # Far pairs with a gap of 2 and near ones with a gap of 0.2, the two nearest: densities exp(-2)
    # and exp(-.02), deltas 12 and 3.1, weights 1.62 and 3.04. The noise sends the 0 to 0.1.
    line = np.array([[0.0], [0.1], [3.0], [3.2], [-10.0], [-12.0]])
    noise = np.array([0, 1e-6, 0, 0, 0, 0])
    assert dpc_knn(line, 2, noise) == ([1, 3], [0, 0, 1, 1, 0, 0])
    # At half the size exp(-.5) and exp(-.005), 6 and 1.55: 3.64 and 1.54.
    half = ([1, 5], [0, 0, 0, 0, 1, 1])
    assert dpc_knn(line / 2, 2, noise) == half
    assert dpc_knn(np.repeat(line / 2, 4, axis=1), 2, noise) == half
    # Two equal points that are both centres keep a cluster each.
    assert dpc_knn(np.array([[0.0], [0.0], [5.0]]), 2) == ([0, 1], [0, 1, 0])
    # One cluster: density exp(-0) for all, so the first of equal ones; everyone belongs to it.
    assert dpc_knn(line, 1) == ([0], [0] * 6)


def test_sparsevlm_merges_the_best_of_the_rest() -> None:
    # Scores of 8 rows, mean of two heads and one rater: .1 .8 .2 .7 .3 .6 .4 .5; two stay (1, 3).
    # 6 go, 1.8 -> 1 + 1 of them are clustered: 5 and 7; 2 // 10 + 1 = 1 cluster: their mean.
    scores = np.array([0.1, 0.8, 0.2, 0.7, 0.3, 0.6, 0.4, 0.5])
    rows = np.zeros((2, 1, 10))
    rows[0, 0, 1:9], rows[1, 0, 1:9] = 2 * scores, 0
    rows[0, 0, [0, 9]] = 5
    hidden = np.arange(16.0).reshape(8, 2)
    got = sparsevlm_stage(rows, range(1, 9), hidden, 2)
    assert got.indices == [1, 3, -1]
    np.testing.assert_array_equal(got.merged, [[2, 3], [6, 7], [12, 13]])
    # A second rater that likes 0 and 2 more than anyone likes anything.
    more = np.concatenate([rows, np.zeros((2, 1, 10))], axis=1)
    more[:, 1, [1, 3]] = 9
    assert sparsevlm_stage(more, range(1, 9), hidden, 2).indices == [0, 2, -1]
    # Never all: 8 asked, 7 stay and the worst is its own cluster.
    got = sparsevlm_stage(rows, range(1, 9), hidden, 8)
    assert got.indices == [1, 2, 3, 4, 5, 6, 7, -1]
    np.testing.assert_array_equal(got.merged[-1], [0, 1])


def test_sparsevlms_clusters_are_rows_of_the_next_drop() -> None:
    first = np.array([[[0.1, 0.8, 0.2, 0.7]]])  # keeps 1 and 3; of 0 and 2 the better one: 2
    second = np.array([[[0.1, 0.3, 0.9]]])  # keeps the cluster of 2 alone; 3 is its own cluster
    stages = [(first, np.eye(4)), (second, np.eye(3))]
    got = sparsevlm(stages, 4, start=0, keeps=(2, 1), at=(0, 2), layers=5)
    assert got.kept == [[1, 3, -1], [-1, -1]]
    assert got.counts == [4, 3, 3, 2, 2]
    np.testing.assert_array_equal(got.merged[0], [[0, 0, 1, 0]])
    np.testing.assert_array_equal(got.merged[1], [[0, 1, 0]])


@pytest.mark.parametrize("budget", LISTS)
def test_sparsevlms_counts(budget: int) -> None:
    rng = np.random.default_rng(budget)
    sizes = [576, *accounting.sparsevlm_outputs(576, LISTS[budget])]
    stages = [(rng.random((1, 1, n)), rng.normal(size=(n, 2))) for n in sizes[:3]]
    got = sparsevlm(stages, 576, start=0, keeps=LISTS[budget])
    assert [len(kept) for kept in got.kept] == sizes[1:]
    assert sum(got.counts) / 32 == accounting.sparsevlm_average(576, LISTS[budget], processed=True)


def test_gravity_is_the_attention_of_ones() -> None:
    # Size 2: one pair at angle p. Ones at p and q: 2 cos(p - q), over sqrt(2).
    np.testing.assert_allclose(np.sum(rotated_ones(5, 2) * rotated_ones(3, 2)), 2 * np.cos(2))
    logits = gravity([2], [0, 1, 2, 3], 2, kind="logits")
    np.testing.assert_allclose(logits, [np.sqrt(2) * np.cos([2, 1, 0, 1])])
    rows = gravity([2], [0, 1, 2, 3], 2)
    seen = np.exp(np.sqrt(2) * np.cos([2, 1, 0]))
    np.testing.assert_allclose(rows, [[*(seen / seen.sum()), 0]])
    # Size 4: angles p and p / 100.
    far = np.sum(rotated_ones(7, 4) * rotated_ones(4, 4))
    np.testing.assert_allclose(far, 2 * np.cos(3) + 2 * np.cos(0.03))


def test_sparsevlm_plus_chooses_heads_and_mends_distance() -> None:
    # Three visual tokens at 0, 1, 2 and a rater at 3, head size 2. Head 0 has mass .9, head 1 .3.
    rows = np.array([[[0.32, 0.28, 0.30, 0.1]], [[0.0, 0.3, 0.0, 0.7]]])
    rest = {"visual": [0, 1, 2], "queries": [3], "positions": [0, 1, 2, 3], "size": 2}
    # The best head alone prefers 0; both together 1.
    assert sparsevlm_plus_stage(rows, keep=1, heads=1, correct=False, **rest) == [0]
    assert sparsevlm_plus_stage(rows, keep=1, heads=2, correct=False, **rest) == [1]
    assert sparsevlm_plus_stage(rows, keep=2, heads=1, correct=False, **rest) == [0, 2]
    # cos 3, cos 2, cos 1: -.99 -.42 .54. RoPE alone would see 2 most, 0 least: exp(sqrt 2 cos)
    # .247 .555 2.147. Equal attention divided by that leaves 0 in front, and 2 last.
    even = np.full((1, 1, 4), 0.25)
    assert sparsevlm_plus_stage(even, keep=1, **rest) == [0]
    assert sparsevlm_plus_stage(even, keep=2, **rest) == [0, 1]
    # Never all of them.
    assert sparsevlm_plus_stage(even, keep=3, **rest) == [0, 1]


def test_sparsevlm_plus_keeps_positions() -> None:
    rng = np.random.default_rng(1)
    stages = [rng.random((20, 2, size)) for size in (2 + 12 + 3, 2 + 7 + 3, 2 + 4 + 3)]
    got = sparsevlm_plus(
        stages, [0, 2], 12, start=2, text=3, size=4, keeps=(7, 4, 2), at=(1, 2, 4), layers=6
    )
    assert [len(kept) for kept in got.kept] == [7, 4, 2]
    assert set(got.kept[2]) < set(got.kept[1]) < set(got.kept[0])
    assert got.counts == [12, 12, 7, 4, 4, 2]
    # The second drop by hand, at the places that the first one left.
    left = got.kept[0]
    stay = sparsevlm_plus_stage(
        stages[1], range(2, 9), [14, 16], [0, 1, *(2 + i for i in left), 14, 15, 16], 4, size=4
    )
    assert got.kept[1] == [left[i] for i in stay]
