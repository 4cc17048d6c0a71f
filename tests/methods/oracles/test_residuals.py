"""The oracles that choose by what is left of a token, held by problems done by hand."""

import numpy as np
import pytest

from tests.methods.oracles.tokens.apet import apet, farthest_points, reconstruction_error
from tests.methods.oracles.tokens.greedy import greedy
from tests.methods.oracles.tokens.lrcp import background_rank, lrcp
from tests.methods.oracles.tokens.relevance import relevance
from tests.methods.oracles.tokens.resprune import resprune, seed
from tests.methods.oracles.tokens.rules import (
    covered_rule,
    distance_rule,
    falling_rule,
    paper_rule,
)
from tests.methods.oracles.tokens.spare import spare
from tests.methods.oracles.tokens.svdprune import leverage, numerical_rank, svdprune

E1, E2, E3 = np.eye(3)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestResPrune:
    tokens = np.array([[3.0, 0], [2, 1], [0, 2], [1, 0]])

    @pytest.mark.parametrize(
        ("weights", "alpha", "order"),
        [
            # After 0: energies 1, 4, and nothing of 3. After two picks nothing is left of any.
            (None, 0.75, [0, 2, 1, 3]),
            ([1, 1, 0.1, 1], 1.0, [0, 1, 3, 2]),  # 1 against .4; the exhausted by gate
            ([1, 1, 0.1, 1], 0.5, [0, 2, 1, 3]),  # 1 against 1.26
            ([0, 1e-4, 0, 1], 1.0, [0, 1, 3, 2]),  # a gate of 0 comes after any other
            ([0, 0, 0, 1], 1.0, [0, 2, 3, 1]),  # gates of 0 by energy: 1 against 4
            ([0, 1, 0, 1], 0.0, [0, 2, 1, 3]),  # 0 ** 0 is 1
        ],
    )
    def test_plane(self, weights, alpha, order):
        weights = None if weights is None else np.array(weights, float)
        given = {"embeddings": self.tokens, "relevance": weights, "alpha": alpha}
        assert resprune(**given, keep=4, sort=False).indices == order
        assert resprune(**given, keep=2).indices == sorted(order[:2])
        assert resprune(**given, keep=9).indices == [0, 1, 2, 3]

    def test_a_gate_of_zero_comes_before_what_is_exhausted(self):
        tokens, weights = np.array([[3.0, 0], [1, 0], [0, 0.5]]), np.array([0, 1.0, 0])
        made = resprune(embeddings=tokens, relevance=weights, keep=3, sort=False)
        assert made.indices == [0, 2, 1]

    def test_a_given_seed(self):
        # From (0, 2) on: 9, 4, 1.
        made = resprune(embeddings=self.tokens, keep=2, first=2, sort=False)
        assert made.indices == [2, 0]

    def test_relevance(self):
        # Cosines with e1, -e1 and e2: (1, -1, 0), (-1, 1, 0), (-.6, .6, -.8).
        tokens, nouns = (
            np.array([[2.0, 0], [-1, 0], [-3, -4]]),
            np.array([[1.0, 0], [-1, 0], [0, 1]]),
        )
        find = {
            how: relevance(embeddings=tokens, text=nouns, how=how)
            for how in ("clip", "shift", "minmax")
        }
        assert find["clip"] == pytest.approx([1, 1, 0.6])
        assert find["shift"] == pytest.approx([1, 1, 0.8])
        assert find["minmax"] == pytest.approx([1, 1, 0])
        means = relevance(embeddings=tokens, text=nouns, aggregate="mean", how="shift")
        assert means == pytest.approx([0.5, 0.5, (1 - 0.8 / 3) / 2])
        # The mean noun is (0, 1/3).
        pooled = relevance(embeddings=tokens, text=nouns, aggregate="pooled", how="shift")
        assert pooled == pytest.approx([0.5, 0.5, 0.1])
        # Below 0 nothing is left.
        assert relevance(embeddings=tokens, text=nouns[:1]) == pytest.approx([1, 0, 0])
        against = relevance(embeddings=tokens, text=nouns, how="shift", relevance_sign=-1)
        assert against == pytest.approx([0, 0, 0.2])
        assert list(relevance(embeddings=tokens, text=nouns[:0])) == [1, 1, 1]

    def test_seeds(self):
        tokens = np.array([[1.0, 0], [1, 1], [0, 3], [2, 1], [0, 1], [1, 0]])
        # Mean (.83, 1): nearest in direction is (1, 1).
        assert seed("max_norm", embeddings=tokens) == 2
        assert seed("mean_similarity", embeddings=tokens) == 1
        weights = np.array([0, 0.1, 0.7, 0.2, 0.7, 0])
        assert seed("cls_attention", embeddings=tokens, saliency=weights[::-1]) == 1
        assert seed("text", embeddings=tokens, relevance=weights) == 2
        assert seed("center", embeddings=tokens, grid=(2, 3)) == 1  # 1 and 4 alike
        assert seed("center", embeddings=np.zeros((576, 1)), grid=(24, 24)) == 11 * 24 + 11

    @pytest.mark.parametrize("start", range(5))
    def test_incremental_energies(self, start):
        """Projection anew at every step gives the picks of the incremental update."""
        tokens, weights = random(start, 12, 8), np.random.default_rng(start).uniform(0, 1, 12)
        energy, basis, picks = np.square(tokens).sum(axis=1), [], []
        pick = int(np.argmax(energy))
        for _ in range(6):
            picks.append(pick)
            left = tokens[pick] - sum(q * (q @ tokens[pick]) for q in basis)
            basis.append(left / np.linalg.norm(left))
            energy = energy - (tokens @ basis[-1]) ** 2
            score = weights**0.75 * energy
            score[picks] = -1
            pick = int(np.argmax(score))
        made = resprune(embeddings=tokens, relevance=weights, keep=6, sort=False)
        assert made.indices == picks


class TestSpare:
    def test_unlike_the_text_first(self):
        # Norms 3, 2, 1.5, 1. Text e2: weights .5, 0, .5, .5. After 0: energies 4 (weight 0),
        # 2.25, 1. Weight 0 comes last of those with something left.
        tokens = np.array([[3.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1]])
        text = np.array([[0.0, 1, 0, 0]])
        assert spare(embeddings=tokens, text=text, keep=4, sort=False).indices == [0, 2, 3, 1]
        assert spare(embeddings=tokens, text=text, keep=2).indices == [0, 2]
        assert spare(embeddings=tokens, text=text[:0], keep=4, sort=False).indices == [0, 1, 2, 3]

    def test_the_largest_cosine_counts(self):
        # Weights of tokens 1 and 2: (1 - 1) / 2 = 0 from the first word, .5. The mean over the
        # words, 0 and 0, would let the longer one win.
        text = np.stack([E2, -E2])
        made = spare(embeddings=np.stack([3 * E1, 2 * E2, E3]), text=text, keep=2, sort=False)
        assert made.indices == [0, 2]

    def test_squared_residuals(self):
        # Cosines .4 and .1: weights .3 and .45, on 4 and 2.25: 1.2 against 1.01. Norms, or the
        # weights squared (.36 against .46), say the opposite.
        tokens = np.stack([3 * E1, 2 * E2, 1.5 * E3])
        text = np.array([[np.sqrt(1 - 0.17), 0.4, 0.1]])
        assert spare(embeddings=tokens, text=text, keep=3, sort=False).indices == [0, 1, 2]
        made = spare(embeddings=tokens, text=text, keep=3, exponent=2.0, sort=False)
        assert made.indices == [0, 2, 1]

    def test_it_is_the_paper_rule_turned(self):
        tokens, text = random(3, 10, 6), random(4, 3, 6)
        weights = relevance(embeddings=tokens, text=text, how="shift", relevance_sign=-1)
        wanted = resprune(embeddings=tokens, relevance=weights, alpha=1.0, keep=5, sort=False)
        assert spare(embeddings=tokens, text=text, keep=5, sort=False) == wanted


class TestApET:
    # Basis of 2: the longest, 0, then the farthest from it, 1 (13.5, against 9.5 of token 3): the
    # plane of the first two axes. Errors: 9 of token 3, 1 of 4, none of 2 and 5.
    tokens = np.array(
        [[10.0, 0, 0], [0, 9, 0], [6, 5, 0], [1, 1, 3], [2, 2, 1], [9, 1, 0]],
    )

    def test_three_kept(self):
        made = apet(embeddings=self.tokens, keep=3, basis=2)
        assert made.indices == [0, 1, 3]
        # 2 is nearest to 0 (6.4; 7.2 and 7.1), 4 to 3 (2.4), 5 to 0.
        assert made.merged == pytest.approx(np.array([[25 / 3, 2, 0], [0, 9, 0], [1.5, 1.5, 2]]))
        turned = apet(embeddings=self.tokens, keep=3, basis=2, sort=False)
        assert turned.indices == [3, 0, 1]
        assert turned.merged == pytest.approx(made.merged[[2, 0, 1]])

    def test_budgets(self):
        # Below the basis: its first tokens. All: nothing is merged.
        assert apet(embeddings=self.tokens, keep=1, basis=2).indices == [0]
        assert apet(embeddings=self.tokens, keep=2).indices == [0, 1]
        assert apet(embeddings=self.tokens, keep=4, basis=2, sort=False).indices == [3, 4, 0, 1]
        whole = apet(embeddings=self.tokens, keep=6, basis=2)
        assert whole.indices == [0, 1, 2, 3, 4, 5] and np.array_equal(whole.merged, self.tokens)

    def test_farthest_from_the_nearest(self):
        # From (10, 0): 10, 10.05, 5.1. Then 1 and 5 from the nearer of both (sums 11 and 10.1).
        rows = np.array([[10.0, 0], [0, 0], [0, 1], [5, 1]])
        assert farthest_points(rows, 3, "euclidean") == [0, 2, 3]

    def test_nearest_by_cosine(self):
        # (1, 0, 0) is nearest to (1, 1, 3) by distance (3.2, against 9 and 9.1), by cosine to 0.
        tokens = np.concatenate([self.tokens[[0, 1, 3]], [[1.0, 0, 0]]])
        near = apet(embeddings=tokens, keep=3, basis=2)
        assert near.merged[2] == pytest.approx([1, 0.5, 1.5])
        along = apet(embeddings=tokens, keep=3, basis=2, distance="cosine")
        assert along.merged[0] == pytest.approx([5.5, 0, 0])

    def test_ridge(self):
        # c = 8 / (4 + 4) = 1, left 2. The shipped 1e-5 leaves (1e-5 / 4)^2 * 16 or so.
        row, basis = np.array([4.0]), np.array([[2.0]])
        assert reconstruction_error(row, basis, 4.0) == pytest.approx(4)
        assert reconstruction_error(row, basis, 1e-5) == pytest.approx(1e-10, rel=1e-4)


class TestLRCP:
    # The columns are orthogonal: 205 of the energy along e1, 5 along e2.
    tokens = np.array([[10.0, 0], [8, 1], [4, -2], [5, 0]])

    def test_residuals(self):
        # 205 / 210 = .976: rank 1, residuals 0, 1, 4, 0.
        assert background_rank(self.tokens) == 1 == background_rank(self.tokens, 0.97)
        assert background_rank(self.tokens, 0.98) == 2
        assert background_rank(np.eye(10)) == 9  # exactly nine tenths
        assert lrcp(embeddings=self.tokens, keep=4, sort=False).indices == [2, 1, 0, 3]
        assert lrcp(embeddings=self.tokens, keep=2).indices == [1, 2]
        assert lrcp(embeddings=self.tokens, keep=2, rank=0).indices == [0, 1]  # largest norms
        assert lrcp(embeddings=self.tokens, keep=2, energy=0.98).indices == [0, 1]  # all 0

    def test_centred_or_not(self):
        # The mean is (10, 0). Not centred the background is e1: residuals 0, 9, 4, 1. Centred it
        # is e2 and nothing is left of any.
        tokens = np.array([[10.0, 0], [10, 3], [10, -2], [10, -1]])
        assert lrcp(embeddings=tokens, keep=2).indices == [1, 2]
        assert lrcp(embeddings=tokens, keep=2, centered=True).indices == [0, 1]

    def test_equal_tokens_tie(self):
        assert lrcp(embeddings=np.tile([[0.3, 0.7, 0.1]], (5, 1)), keep=2).indices == [0, 1]
        assert lrcp(embeddings=np.zeros((3, 2)), keep=2).indices == [0, 1]


class TestSVDPrune:
    # Left singular vectors: the columns over their lengths, sqrt(205) and sqrt(5).
    tokens = np.array([[10.0, 0], [8, 1], [4, -2], [5, 0]])

    def test_leverage(self):
        assert leverage(self.tokens, 1) == pytest.approx(np.array([100, 64, 16, 25]) / 205)
        both = np.array([100, 64, 16, 25]) / 205 + np.array([0, 1, 4, 0]) / 5
        assert leverage(self.tokens, 2) == pytest.approx(both)  # .49, .51, .88, .12
        assert sum(leverage(self.tokens, 2)) == pytest.approx(2)

    def test_rank_is_the_budget(self):
        assert svdprune(embeddings=self.tokens, keep=1).indices == [0]
        assert svdprune(embeddings=self.tokens, keep=2, sort=False).indices == [2, 1]
        assert svdprune(embeddings=self.tokens, keep=2).indices == [1, 2]
        assert svdprune(embeddings=self.tokens, keep=2, rank=1).indices == [0, 1]

    def test_full_row_rank_is_a_tie(self):
        assert leverage(random(0, 5, 7), 5) == [1, 1, 1, 1, 1]
        made = svdprune(embeddings=random(0, 5, 7), keep=3, rank=5, sort=False)
        assert made.indices == [0, 1, 2]

    def test_numerical_rank_caps(self):
        # Rank 2 whatever the budget; float32 dust is no rank.
        assert leverage(self.tokens, 4) == leverage(self.tokens, 2)
        dust = np.concatenate([self.tokens, 1e-7 * random(0, 4, 2)], axis=1)
        values = np.linalg.svd(dust, compute_uv=False)
        assert numerical_rank(values, dust.shape) == 2
        assert svdprune(embeddings=dust, keep=3).indices == [0, 1, 2]
        assert svdprune(embeddings=np.zeros((3, 2)), keep=2).indices == [0, 1]


class TestGreedy:
    def test_the_paper_rule(self):
        for start in range(5):
            tokens = random(start, 10, 4)  # past the rank too
            weights = np.maximum(random(start + 50, 10), 0)
            wanted = resprune(embeddings=tokens, relevance=weights, keep=9, sort=False)
            rule, tail = paper_rule(0.75), weights**0.75
            made = greedy(tokens, rule, 9, relevance=weights, tail=tail)
            assert made == wanted

    def test_what_a_score_is_told(self):
        told = []

        def score(energy, squared_norm, weight, place, step, chosen):
            told.append((round(energy, 9), squared_norm, weight, place, step, chosen))
            return energy

        tokens = np.array([[3.0, 0], [2, 1], [0, 2]])
        assert greedy(tokens, score, 2, relevance=np.array([7, 8, 9])).indices == [0, 2]
        assert told == [(1, 5, 8, (0, 1), 1, [0]), (4, 4, 9, (0, 2), 1, [0])]

    def test_exhausted_tokens_come_last(self):
        # After 0 and 2 nothing is left of 1 and 3, and the score is asked no more.
        tokens = np.array([[3.0, 0], [2, 1], [0, 2], [1, 0]])
        made = greedy(tokens, lambda energy, *rest: energy, 4)
        assert made.indices == [0, 2, 1, 3]
        made = greedy(tokens, lambda energy, *rest: energy, 4, tail=np.array([0, 1, 0, 2]))
        assert made.indices == [0, 2, 3, 1]
        assert greedy(tokens, lambda energy, *rest: -energy, 2).indices == [0, 1]

    def test_distance(self):
        # One column and three rows from the seed, energies 4 and 3; width 1: exp(-.5) = .61 and
        # exp(-4.5) = .01. At strength .5: 4 * .70 = 2.79 against 2.98; at .3: 3.27 and 2.99.
        tokens = np.diag([3.0, 2, np.sqrt(3)])
        places = [(0.0, 0.0), (0.0, 1.0), (3.0, 0.0)]
        for strength, order in ((0.5, [0, 2, 1]), (0.3, [0, 1, 2])):
            rule = distance_rule(1.0, strength, 1.0, places)
            assert greedy(tokens, rule, 3, places=places).indices == order

    def test_the_nearest_chosen_token_counts(self):
        # 0 and then 1 (energy 9) are chosen, far apart. 2 is beside 1, energy 2; 3 is between them,
        # energy 1.5. Strength 1, width 1: 2 * (1 - .61) = .79 against 1.5.
        tokens = np.diag(np.sqrt([16, 9, 2, 1.5]))
        places = [(0.0, 0.0), (0.0, 20.0), (0.0, 21.0), (0.0, 10.0)]
        made = greedy(tokens, distance_rule(1.0, 1.0, 1.0, places), 4, places=places)
        assert made.indices == [0, 1, 3, 2]

    def test_covered_nouns(self):
        # The seed covers noun 0 to .9: token 1's .8 of it is worth .08, token 2's .3 of noun 1 all
        # of it. On 4 and 3: .32 against .9; without the decay 3.2 against .9.
        tokens = np.diag([3.0, 2, np.sqrt(3)])
        nouns = np.array([[0.9, 0.0], [0.8, 0.0], [0.1, 0.3]])
        rule = covered_rule(1.0, nouns)
        assert greedy(tokens, rule, 3, relevance=nouns).indices == [0, 2, 1]

    def test_falling_alpha(self):
        # Energies 4, 3.5, 3, weights .1, .5, 1. Step 1, alpha 1: .4, 1.75, 3: token 3. Step 2,
        # alpha .1: 4 * .79 = 3.18 against 3.5 * .93 = 3.27: token 2; at alpha .05 3.57 and 3.38.
        tokens = np.diag(np.sqrt([9, 4, 3.5, 3]))
        weights = np.array([1, 0.1, 0.5, 1])
        for decay, order in ((0.1, [0, 3, 2]), (0.05, [0, 3, 1]), (1.0, [0, 3, 2])):
            made = greedy(tokens, falling_rule(1.0, decay), 3, relevance=weights)
            assert made.indices == order
