"""PyramidDrop: drops at several layers by the next layer's attention (arXiv 2410.17247)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts
from tests.methods.oracles.decoder.drops import Drops, best


def pdrop_counts(tokens: int, fractions: Sequence[float] = (0.5, 0.25, 0.125)) -> list[int]:
    """Visual tokens after each stage: fractions of the *first* count, cut to whole numbers."""
    return [int(fraction * tokens) for fraction in fractions]


def pdrop_scores(query: np.ndarray, keys: np.ndarray, visual: Sequence[int]) -> list[float]:
    """What the last prompt token's query of the next layer gives the visual tokens, mean of heads.

    Args:
        query: (H, h) of the last prompt token, with RoPE.
        keys: (G, S, h) of the sequence so far, with RoPE; head i of H uses key head i // (H / G).
        visual: the places of the current visual tokens in that sequence.
    """
    query, keys = np.asarray(query, np.float64), np.asarray(keys, np.float64)
    heads, size = query.shape
    means = [0.0] * len(visual)
    for head in range(heads):
        own = keys[head // (heads // keys.shape[0])]
        logits = [float(np.sum(query[head] * key)) / np.sqrt(size) for key in own]
        highest = max(logits)
        weights = [np.exp(logit - highest) for logit in logits]
        for i, place in enumerate(visual):
            means[i] += weights[place] / sum(weights) / heads
    return means


def pdrop_stage(
    query: np.ndarray, keys: np.ndarray, visual: Sequence[int], count: int
) -> list[int]:
    """Which of the current visual tokens stay, by their number among them, in image order."""
    return sorted(best(pdrop_scores(query, keys, visual), count))


def pdrop(
    stages: Sequence[tuple[np.ndarray, np.ndarray]],
    tokens: int,
    *,
    start: int,
    at: Sequence[int] = (8, 16, 24),
    fractions: Sequence[float] = (0.5, 0.25, 0.125),
    layers: int = 32,
) -> Drops:
    """The whole schedule, given what the next layer makes of the sequence at each stage.

    Cooperx521/PyramidDrop @ 6444f30. A stage at l drops before layer l, after l layers have run:
    query and keys are layer l's own, of its input norm of the current states. Position ids are
    renumbered from 0 after each stage; each layer's cache keeps the numbering it was made with and
    decoding goes on from that. Ties: lowest index first.

    Args:
        stages: for each stage (query, keys) as in `pdrop_scores`, over the sequence as the earlier
            stages left it.
        tokens: N, visual tokens at the start.
        start: text tokens in front of the image.
        at: layers that have run before each stage.
        fractions: of N, kept by each stage.
    """
    left, kept = list(range(tokens)), []
    for (query, keys), count in zip(stages, pdrop_counts(tokens, fractions), strict=True):
        visual = range(start, start + len(left))
        left = [left[i] for i in pdrop_stage(query, keys, visual, count)]
        kept.append(left)
    drops = [(layer, len(numbers)) for layer, numbers in zip(at, kept, strict=True)]
    return Drops(kept=kept, counts=[int(n) for n in layer_counts(tokens, drops, layers)])
