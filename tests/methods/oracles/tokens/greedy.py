"""The greedy loop under any rule, an oracle (rules for it: `rules`)."""

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
