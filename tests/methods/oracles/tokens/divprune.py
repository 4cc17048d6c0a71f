"""DivPrune: greedy max-min of cosine distances, an oracle."""

import numpy as np

from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.geometry import cosine


def count(keep: int | float, n: int) -> int:
    """A share between 0 and 1 means round(share * n), Python's round (half to even); never over n.

    A share that rounds to nothing keeps one token (assumed).
    """
    wanted = round(keep * n) if isinstance(keep, float) else keep
    return max(1, min(wanted, n))


def divprune(
    *, embeddings: np.ndarray, keep: int | float, sort: bool = True, mask: bool = True
) -> Kept:
    """vbdi/divprune @ 799e2d9, section DivPrune: the most distant token, again and again.

    The distance is one minus the cosine of two tokens as they enter the LLM. First the token whose
    nearest other token is farthest away, then always the one that is farthest from its nearest
    chosen token. Ties: lowest index.

    Args:
        embeddings: projected tokens (N, d); newline tokens of LLaVA-NeXT are tokens like any other.
        keep: a count, or a share of N that is rounded.
        sort: image order, as released; False is the order of choice, as the paper's numbers.
        mask: chosen tokens cannot be chosen again. False is the released code, which trusts that a
            chosen token's distance to itself is 0: then a repeat is possible once nothing is
            farther than 0 from the chosen ones. (The distance to itself is exactly 0 here.)

    Open in the specification: nothing but rows of zeros (cosine 0, so distance 1 to all others).
    """
    n = len(embeddings)
    distance = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                distance[i, j] = 1 - cosine(embeddings[i], embeddings[j])
    chosen: list[int] = []
    while len(chosen) < count(keep, n):
        best, farthest = -1, -np.inf
        for i in range(n):
            if mask and i in chosen:
                continue
            others = chosen if chosen else [j for j in range(n) if j != i]
            nearest = min((distance[i, j] for j in others), default=0.0)
            if nearest > farthest:
                best, farthest = i, nearest
        chosen.append(best)
    return Kept(sorted(chosen) if sort else chosen)
