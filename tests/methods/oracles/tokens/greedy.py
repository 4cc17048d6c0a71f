"""The greedy loop under any rule, and four rules for it, an oracle."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import EXHAUSTED, residual_energy, squared_norms

Score = Callable[[float, float, Any, tuple[float, float], int, list[int]], Any]


def greedy(
    embeddings: np.ndarray,
    score: Score,
    keep: int,
    *,
    relevance: np.ndarray | None = None,
    places: Sequence[tuple[float, float]] | None = None,
    first: int | None = None,
    tail: np.ndarray | None = None,
    sort: bool = False,
) -> Kept:
    """The greedy rule of arXiv 2603.21105 with a score of one's own: the largest score is chosen.

    At every pick `score(residual_energy, squared_norm, relevance, place, step, chosen)` is called
    for every token not chosen: two numbers, this token's entry of `relevance` (a number, or a row
    where it has one value a noun), its place (row, column), how many tokens are chosen already
    (the first scored pick is step 1), and their indices in order of choice. It returns a number, or
    a tuple that is compared from the left. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d).
        relevance: (N,) or (N, nouns); None is 1 for all.
        places: (row, column) of each token; None is row 0, columns 0 to N - 1.
        first: the seed token, not scored; None is the largest norm.
        tail: ranks exhausted tokens (2e-6 of the squared norm or less left), which come after all
            others whatever their score, largest first; None is by index. The paper's rule has the
            gate here.
        sort: image order; False is the order of choice, since that is what a rule decides.

    Open in the specification: how a rule ranks exhausted tokens (`tail`).
    """
    rows = np.asarray(embeddings, np.float64)
    n = len(rows)
    norms = squared_norms(rows)
    relevance = np.ones(n) if relevance is None else relevance
    places = [(0.0, float(i)) for i in range(n)] if places is None else places
    chosen = [max(range(n), key=lambda i: norms[i]) if first is None else first]
    while len(chosen) < min(keep, n):
        best, most = -1, None
        for i in range(n):
            if i in chosen:
                continue
            energy = residual_energy(rows[i], [rows[j] for j in chosen])
            if energy <= EXHAUSTED * norms[i]:
                rank = (0, 0.0 if tail is None else float(tail[i]))
            else:
                step = len(chosen)
                value = score(energy, norms[i], relevance[i], places[i], step, list(chosen))
                rank = (1, value)
            if most is None or rank > most:
                best, most = i, rank
        chosen.append(best)
    return Kept(sorted(chosen) if sort else chosen)


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
    """relevance ** (alpha * decay ** (step - 1)) * energy: alpha itself at the first scored pick."""

    def score(energy, squared_norm, relevance, place, step, chosen):
        return float(relevance) ** (alpha * decay ** (step - 1)) * energy

    return score
