"""The oracles of the methods that choose among projected tokens, held by problems done by hand."""

import numpy as np
import pytest

from tests.methods.oracles.tokens.agilepruner import agilepruner, effective_rank
from tests.methods.oracles.tokens.apet import apet
from tests.methods.oracles.tokens.cdpruner import (
    bounds,
    cdpruner,
    cdpruner_openvino,
    exponential,
    greedy_map,
    raw_relevance,
    scaled,
)
from tests.methods.oracles.tokens.divprune import count, divprune
from tests.methods.oracles.tokens.geometry import cosine, residual_energy
from tests.methods.oracles.tokens.greedy import greedy
from tests.methods.oracles.tokens.lrcp import lrcp
from tests.methods.oracles.tokens.resprune import resprune
from tests.methods.oracles.tokens.rules import (
    paper_rule,
)
from tests.methods.oracles.tokens.scope import per_tile, scope
from tests.methods.oracles.tokens.spare import spare
from tests.methods.oracles.tokens.svdprune import svdprune

E1, E2, E3 = np.eye(3)


def angles(*degrees: float) -> np.ndarray:
    """Unit vectors of the plane."""
    turn = np.deg2rad(degrees)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


class TestGeometry:
    def test_cosine_of_zeros_is_zero(self):
        assert cosine(np.zeros(2), np.array([1, 0])) == 0 == cosine(np.zeros(2), np.zeros(2))
        assert cosine(np.array([3, 4]), np.array([6, 8])) == pytest.approx(1)

    def test_residuals_by_hand(self):
        # (1, 2, 2) off the plane of e1 and e1 + e2: its third part, 2 squared. A dependent row and
        # a row of zeros add nothing to the plane.
        row, basis = np.array([1.0, 2, 2]), [E1, E1 + E2]
        assert residual_energy(row, []) == 9
        assert residual_energy(row, [E1]) == pytest.approx(8)
        assert residual_energy(row, basis) == pytest.approx(4)
        assert residual_energy(row, [*basis, 1e-3 * E2, 0 * E1]) == pytest.approx(4)


class TestDivPrune:
    def test_shares_are_rounded(self):
        assert [count(share, 576) for share in (0.098, 1 / 3, 2 / 9, 1 / 9)] == [56, 192, 128, 64]
        assert (
            count(0.56, 5) == 3 and count(0.5, 5) == 2 and count(7, 5) == 5 and count(0.01, 5) == 1
        )

    def test_plane(self):
        # Nearest other: 12, 12, 10, 10, 100 degrees: token 4 first. From it: 160, 172, 110, 100:
        # token 1. From the nearer of both: 12, -, 78, 88: token 3. Then 12 against 10: token 0.
        tokens = angles(0, 12, 90, 100, 200) * [[1], [9], [2], [5], [3]]  # lengths are no matter
        assert divprune(embeddings=tokens, keep=4, sort=False).indices == [4, 1, 3, 0]
        assert divprune(embeddings=tokens, keep=4).indices == [0, 1, 3, 4]
        assert divprune(embeddings=tokens, keep=0.6, sort=False).indices == [4, 1, 3]
        assert divprune(embeddings=tokens[:1], keep=3).indices == [0]

    def test_without_the_mask_a_token_comes_twice(self):
        # The lone direction first, then one of the twins; nothing is farther than 0 after that.
        tokens = np.stack([E1, E1, E2])
        assert divprune(embeddings=tokens, keep=3, sort=False).indices == [2, 0, 1]
        assert divprune(embeddings=tokens, keep=3, sort=False, mask=False).indices == [2, 0, 0]


class TestScope:
    tokens = np.stack([E1, E1, E2, E3])
    saliency = np.array([[0.05, 0.1, 0.2, 0.2], [0.05, 0.1, 0.3, 0.1]])  # sums .1, .2, .5, .3

    @pytest.mark.parametrize(
        ("alpha", "combined", "order"),
        [
            # Gains 2, 2, 1, 1 at first; a twin of a chosen one gains 0.
            (1.0, "multiply", [2, 1, 3]),  # .2 .4 .5 .3, then .2 .4 - .3, then 0 - - .3
            (2.0, "multiply", [2, 3, 1]),  # .02 .08 .25 .09
            (0.0, "multiply", [0, 2, 3]),  # 2 2 1 1, then - 0 1 1
            (1.0, "add", [1, 2, 3]),  # 2.1 2.2 1.5 1.3, then .1 - 1.5 1.3
        ],
    )
    def test_orthogonal(self, alpha, combined, order):
        made = scope(
            features=self.tokens,
            heads_saliency=self.saliency,
            keep=3,
            alpha=alpha,
            combined=combined,
            sort=False,
        )
        assert made.indices == order

    def test_the_heads_are_summed(self):
        # Added to gains of 2 and 1: .2 and 1.3 as sums put token 2 first, as means token 1.
        heads = np.array([[0.1, 0.1, 0.5, 0.1], [0.0, 0.1, 0.8, 0.1]])
        made = scope(features=self.tokens, heads_saliency=heads, keep=1, combined="add", sort=False)
        assert made.indices == [2]

    def test_half_covered(self):
        # Cosines .5 (0, 60), .87 (60, 90), 0 (0, 90). Gains 1.5, 2.37, 1.87: token 1, after which
        # 0 still adds .5 and 2 only .13. A token opposite to another loses nothing by it.
        flat = np.ones((1, 3))
        made = scope(features=angles(0, 60, 90), heads_saliency=flat, keep=2, sort=False)
        assert made.indices == [1, 0]
        made = scope(features=angles(0, 180, 89), heads_saliency=flat, keep=3, sort=False)
        assert made.indices == [0, 1, 2]  # gains 1.02, 1, 1.02: 0 first, then 1 against .98

    def test_budget_of_a_tile(self):
        assert [per_tile(640, 3), per_tile(640, 5), per_tile(320, 3)] == [213, 128, 106]


class TestAgilePruner:
    tokens = angles(0, 5, 20, 90, 8)
    saliency = np.array([5.0, 4, 3, 2, 1])

    def order(self, **options):
        rank = effective_rank(self.tokens)
        given = {"erank_avg": rank, "tau_max": 2.0, "keep": 5, "sort": False, **options}
        return agilepruner(features=self.tokens, saliency=self.saliency, **given).indices

    def test_effective_rank(self):
        assert effective_rank(np.eye(4)) == pytest.approx(4)
        assert effective_rank(np.ones((4, 3))) == pytest.approx(1)
        # Shares 3/4 and 1/4: entropy .5623.
        assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(1.7548, abs=1e-4)
        assert effective_rank(np.zeros((3, 2))) == 0

    def test_thresholds_grow(self):
        # 1 - cos is .0038 at 5 degrees, .0097 at 8, .0219 at 12, .034 at 15. tau .01, .02, ...: 0
        # takes 5 and 8 degrees away, 2 and 3 follow; then the removed by attention: 1, 4.
        assert self.order() == [0, 2, 3, 1, 4]
        assert self.order(keep=4) == [0, 2, 3, 1]
        # From 0: nothing goes at first, then 1 takes 8 degrees (3 off, .0014 < .01) away.
        assert self.order(order_start=0, keep=4) == [0, 1, 2, 3]
        assert self.order(order_start=0) == [0, 1, 2, 3, 4]

    def test_the_second_threshold_is_wider(self):
        # 30 and 41 degrees are .018 apart: less than .02, more than .01.
        tokens = angles(0, 30, 41, 90)
        made = agilepruner(
            features=tokens,
            saliency=self.saliency[:4],
            keep=4,
            erank_avg=effective_rank(tokens),
            tau_max=2.0,
            sort=False,
        )
        assert made.indices == [0, 1, 3, 2]

    def test_cap_and_average(self):
        # tau .005 throughout: only 1 goes. Half the ratio: .005, .01, ...: the same.
        assert self.order(tau_max=0.005) == [0, 2, 3, 4, 1]
        assert self.order(erank_avg=2 * effective_rank(self.tokens)) == [0, 2, 3, 4, 1]
        assert self.order(tau_max=0.0) == [0, 1, 2, 3, 4]

    def test_a_distance_equal_to_the_threshold_survives(self):
        # tau 1, cosine 0: not below. Opposite to nothing, the twin goes.
        tokens = np.stack([E1, E1, E2])
        made = agilepruner(
            features=tokens,
            saliency=np.array([3.0, 2, 1]),
            keep=3,
            erank_avg=1e-9,
            tau_max=1.0,
            sort=False,
        )
        assert made.indices == [0, 2, 1]


class TestCDPruner:
    def test_relevance(self):
        # Cosines with the two segments: (1, 0), (0, 1), (-1, 0); negated, the mean over segments.
        patches, text = np.stack([E1, 2 * E2, -E1]), np.stack([5 * E1, E2])
        assert raw_relevance(patches, text) == pytest.approx([-0.5, -0.5, 0.5])
        assert scaled([-1.0, 0.0, 1.0]) == pytest.approx([5e-7, 0.5000005, 1.0000005], abs=1e-12)
        assert scaled([0.0, 1.0], (-1, 3)) == pytest.approx([0.25, 0.5], abs=1e-6)
        assert scaled([2.0, 2.0]) == [1, 1]
        assert bounds([patches[:1], patches[2:]], text) == pytest.approx((-0.5, 0.5))
        assert exponential([0, 1], 0.5) == pytest.approx([1, np.exp(0.5)])

    def test_relevance_counts_squared(self):
        # After 0 half of token 1 (45 degrees) is left: .65^2 / 2 = .211 against .45^2 = .2025. Were
        # it not squared, .325 against .45.
        assert greedy_map(angles(0, 45, 90), [1, 0.65, 0.45], 3)[:2] == [0, 1]
        assert greedy_map(angles(0, 45, 90), [1, 0.6, 0.45], 3)[:2] == [0, 2]  # .18

    def test_past_the_rank(self):
        # Two dimensions: after 0 and 2 nothing is left of 1, 3, 4: by relevance, then index.
        tokens = 7 * angles(0, 30, 90, 120, 60)
        assert greedy_map(tokens, [1, 0.2, 0.9, 0.3, 0.3], 5) == [0, 2, 3, 4, 1]

    @pytest.mark.parametrize("seed", range(5))
    def test_determinants_and_recursion(self, seed):
        """The picks are those of determinants, and of the published Cholesky recursion."""
        tokens, weight = random(seed, 9, 12), np.random.default_rng(seed).uniform(0.3, 1, 9)
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        kernel = weight[:, None] * (unit @ unit.T) * weight
        picks: list[int] = []
        left, factors, recursion = np.diag(kernel).copy(), [], []
        for _ in range(6):
            rest = [i for i in range(9) if i not in picks]
            picks.append(max(rest, key=lambda i: np.linalg.det(kernel[np.ix_(*[[*picks, i]] * 2)])))
            j = int(np.argmax(left))
            row = kernel[j] - sum(c[j] * c for c in factors)
            factors.append(row / np.sqrt(left[j]))
            left = left - factors[-1] ** 2
            left[[*recursion, j]] = -np.inf
            recursion.append(j)
        assert greedy_map(tokens, weight, 6) == picks == recursion

    def test_whole(self):
        # Relevances scale to 1, 5e-7, .5: the order is 0, 2, 1, and theta leaves it.
        patches, text = np.stack([-E1, E1, E2]), np.stack([E1])
        given = {"embeddings": np.eye(3), "clip_patch": patches, "clip_text": text}
        for options in ({}, {"theta": 0.5}):
            assert cdpruner(**given, keep=3, sort=False, **options).indices == [0, 2, 1]
        assert cdpruner(**given, keep=2).indices == [0, 2]

    def test_the_scope_of_min_and_max_decides(self):
        # Between this tile's own .1 and 1 the relevances are 1, .33 and 1e-6: half of .11 is left
        # of token 1, next to nothing of 2. Between -9 and 1 they are 1, .94, .91: .44 and .83.
        along = np.array([-1.0, -0.4, -0.1])  # cosines with the text: the negated relevances
        given = {
            "embeddings": angles(0, 45, 90),
            "clip_patch": np.stack([along, np.sqrt(1 - along**2)], axis=1),
            "clip_text": np.array([[1.0, 0]]),
            "keep": 3,
            "sort": False,
        }
        assert cdpruner(**given).indices == [0, 1, 2]
        assert cdpruner(**given, between=(-9.0, 1.0)).indices == [0, 2, 1]

    def test_openvino_halves(self):
        # Relevance exp(.5 r), r = 1, .74, .41, 0 (negated cosines .62, .51, .37, .20, scaled): on
        # the kernel's diagonal 2.7, 2.1, 1.5, 1. Whole: 0, then 1 (1.9 left, 1.4 of 2). In halves
        # the best of 0, 1 and the best of 2, 3; of a budget of three, one and two.
        tokens = np.concatenate([np.eye(4), [[-0.8], [-0.6], [-0.4], [-0.2]]], axis=1)
        text = np.array([[0.0, 0, 0, 0, 1]])
        given = {"embeddings": tokens, "text": text, "sort": False}
        assert cdpruner_openvino(**given, keep=2, split=False).indices == [0, 1]
        assert cdpruner_openvino(**given, keep=2).indices == [0, 2]
        assert cdpruner_openvino(**given, keep=3).indices == [0, 2, 3]
        assert cdpruner_openvino(**given, keep=2, sign=1).indices == [1, 3]
        # Without relevance the first pick is a tie, then 3 is least like 0 (cosine .12).
        given["relevance_weight"] = 0.0
        assert cdpruner_openvino(**given, keep=2, split=False).indices == [0, 3]

    def test_openvino_scales_before_the_split(self):
        # Raw relevance -1 three times, then about .29, .12, .03. Over the whole image that is 1,
        # .87, .80 for the second half; alpha 2: from its first, at 45 degrees exp(4 * .07) / 2 =
        # .66 of what is left at 90. Scaled in the half, 1, .35, 0, it would be 2.0 times that.
        turned = np.concatenate([angles(0, 45, 90), [[-0.3], [-0.12], [-0.03]]], axis=1)
        made = cdpruner_openvino(
            embeddings=np.concatenate([[E3, E3, E3], turned]),
            text=E3[None],
            keep=4,
            relevance_weight=0.8,
            sort=False,
        )
        assert made.indices == [0, 1, 3, 5]


def every_method(tokens: np.ndarray, keep: int) -> dict[str, list[int]]:
    n = len(tokens)
    even, text = np.ones(n), np.ones((2, tokens.shape[1]))
    same = {"embeddings": tokens, "keep": keep}
    constants = {"erank_avg": 1.0, "tau_max": 0.5}
    return {
        "divprune": divprune(**same).indices,
        "scope": scope(features=tokens, heads_saliency=even[None], keep=keep).indices,
        "agilepruner": agilepruner(features=tokens, saliency=even, keep=keep, **constants).indices,
        "cdpruner": cdpruner(**same, clip_patch=tokens, clip_text=text).indices,
        "openvino": cdpruner_openvino(**same, text=text).indices,
        "resprune": resprune(**same).indices,
        "spare": spare(**same, text=text).indices,
        "apet": apet(**same).indices,
        "lrcp": lrcp(**same).indices,
        "svdprune": svdprune(**same).indices,
        "greedy": greedy(tokens, paper_rule(0.75), keep, sort=True).indices,
    }


@pytest.mark.parametrize("keep", [1, 3, 6, 9])
@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((6, 4)),
        np.ones((6, 4)),
        np.repeat(random(0, 3, 4), 2, axis=0),
        random(1, 6, 2),
        random(2, 6, 8),
        np.concatenate([np.zeros((2, 4)), 1e-3 * random(3, 4, 4)]),
    ],
    ids=["zeros", "constant", "twins", "low rank", "generic", "small"],
)
def test_as_many_different_tokens_as_the_budget_says(tokens: np.ndarray, keep: int):
    for name, kept in every_method(tokens, keep).items():
        assert len(kept) == min(keep, len(tokens)), name
        assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < len(tokens), name
        if not np.ptp(tokens, axis=0).any() and name != "openvino":
            assert kept == list(range(len(kept))), f"{name}: ties go to the lowest index"
