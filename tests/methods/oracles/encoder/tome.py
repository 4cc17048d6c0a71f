"""ToMe: bipartite soft matching and merging inside every block of the tower."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tests.methods.oracles.encoder.ranking import cosine, descending
from tests.methods.oracles.result import Kept


@dataclass(frozen=True)
class Match:
    """Places in the current sequence: the order of the next one, and what goes where."""

    unmerged: list[int]  # even places that stay, in output order
    odd: list[int]  # the destinations, which follow them
    into: dict[int, int]  # source (even) -> destination (odd)


def match(*, keys: np.ndarray, r: int, class_token: bool = True) -> Match:
    """The r most similar even places, each with its best odd place.

    facebookresearch/ToMe @ af95e4b. Metric: keys averaged over heads, then normalised, CLS at
    place 0. CLS is never a source. r is cut to (t - protected) // 2. Unmerged even places: in
    ascending order where there is a class token, else in the order of their scores, descending.
    Ties: the lower place, of sources and of destinations.

    Args:
        keys: (t, H, h) of the block whose attention has just run.
        r: tokens to remove.
    """
    places = len(keys)
    metric = [np.mean(np.asarray(key, np.float64), axis=0) for key in keys]
    even, odd = list(range(0, places, 2)), list(range(1, places, 2))
    r = max(0, min(r, (places - int(class_token)) // 2))
    if r == 0:
        return Match(even, odd, {})  # the caller leaves the sequence as it is
    best, score = {}, {}
    for a in even:
        best[a], score[a] = odd[0], -math.inf
        if class_token and a == 0:
            continue
        for b in odd:
            similarity = cosine(metric[a], metric[b])
            if similarity > score[a]:
                best[a], score[a] = b, similarity
    ranked = [even[place] for place in descending([score[a] for a in even])]
    unmerged = sorted(ranked[r:]) if class_token else ranked[r:]
    return Match(unmerged, odd, {a: best[a] for a in ranked[:r]})


def merge(
    tokens: np.ndarray, sizes: Sequence[float], found: Match
) -> tuple[np.ndarray, list[float]]:
    """Size-weighted means of the groups, in the order [unmerged even places, odd places]."""
    if not found.into:  # r <= 0 is the identity: no reordering either
        return np.asarray(tokens, np.float64), list(sizes)
    rows, counts = [], []
    for place in [*found.unmerged, *found.odd]:
        total, size = float(sizes[place]) * np.asarray(tokens[place], np.float64), sizes[place]
        for source, destination in found.into.items():
            if destination == place:
                total = total + float(sizes[source]) * np.asarray(tokens[source], np.float64)
                size = size + sizes[source]
        rows.append(total / size)
        counts.append(float(size))
    return np.stack(rows), counts


def bias(sizes: Sequence[float], proportional: bool = True) -> list[float]:
    """What is added to the attention logits of each key, in all heads and queries: log size."""
    return [math.log(size) if proportional else 0.0 for size in sizes]


def tome(
    *,
    tokens: np.ndarray,
    counts: Sequence[int],
    attention: Callable[[int, np.ndarray, list[float]], tuple[np.ndarray, np.ndarray]],
    mlp: Callable[[int, np.ndarray], np.ndarray],
    class_token: bool = True,
    proportional: bool = True,
) -> Kept:
    """The tower with merging between the attention residual and the MLP of every block.

    Args:
        tokens: (t, v) entering block 0, CLS first where there is one.
        counts: r of each block (missing ones at the end are 0 as released: give them).
        attention: (layer, tokens (t, v), bias (t,)) -> (what is added to tokens, keys (t, H, h)).
        mlp: (layer, tokens) -> what is added to tokens.

    Returns:
        The rows without CLS, in ToMe's own order; a row bears the index of the token that it began
        as (its destination), counted without CLS.
    """
    x = np.asarray(tokens, np.float64)
    sizes = [1.0] * len(x)
    names = [place - int(class_token) for place in range(len(x))]
    for layer, r in enumerate(counts):
        added, keys = attention(layer, x, bias(sizes, proportional))
        x = x + added
        found = match(keys=keys, r=r, class_token=class_token)
        if found.into:
            names = [names[place] for place in [*found.unmerged, *found.odd]]
        x, sizes = merge(x, sizes, found)
        x = x + mlp(layer, x)
    start = int(class_token)
    return Kept(names[start:], x[start:])
