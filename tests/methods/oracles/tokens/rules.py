"""Four rules for the greedy loop, as plain functions of one token (see `greedy`)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.tokens.greedy import Score


def paper_rule(alpha: float) -> Score:
    """relevance ** alpha * energy; gate 0 after every other gate, by energy."""

    def score(energy, squared_norm, relevance, place, step, chosen):
        gate = float(relevance) ** alpha if alpha else 1.0
        return (1, gate * energy) if gate > 0 else (0, energy)

    return score


def distance_rule(
    alpha: float, strength: float, width: float, places: Sequence[tuple[float, float]]
) -> Score:
    """relevance ** alpha * energy * (1 - strength * exp(-D^2 / (2 width^2))).

    D is the Euclidean distance in the grid to the nearest token chosen.
    """

    def score(energy, squared_norm, relevance, place, step, chosen):
        squares = [(place[0] - places[j][0]) ** 2 + (place[1] - places[j][1]) ** 2 for j in chosen]
        penalty = 1 - strength * np.exp(-min(squares) / (2 * width**2))
        return float(relevance) ** alpha * energy * penalty

    return score


def covered_rule(alpha: float, by_noun: np.ndarray) -> Score:
    """Relevance that decays where a noun is covered.

    by_noun (N, nouns) holds weights in [0, 1]. Noun j counts (1 - by_noun[c, j]) times as much
    after each chosen token c; the relevance is the largest of what is left over the nouns.
    """

    def score(energy, squared_norm, relevance, place, step, chosen):
        open_still = [1.0] * by_noun.shape[1]
        for c in chosen:
            for j in range(by_noun.shape[1]):
                open_still[j] *= 1 - float(by_noun[c, j])
        left = max(float(value) * still for value, still in zip(relevance, open_still, strict=True))
        return left**alpha * energy

    return score


def falling_rule(alpha: float, decay: float) -> Score:
    """relevance ** (alpha * decay ** (step - 1)) * energy: alpha itself at the first pick."""

    def score(energy, squared_norm, relevance, place, step, chosen):
        return float(relevance) ** (alpha * decay ** (step - 1)) * energy

    return score
