"""SparseVLM v1.5: drops at several layers by the question's raters, with merging (2410.04417)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts, merged_rows
from tests.methods.oracles.decoder.dpc_knn import dpc_knn
from tests.methods.oracles.decoder.drops import Drops, best
from tests.methods.oracles.result import Kept

LISTS = {
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}
"""Tokens kept after layers 2, 6 and 15, by budget, as released."""


def sparsevlm_raters(visual: np.ndarray, text: np.ndarray) -> list[int]:
    """Text tokens that the image points to more than to the mean one, from input embeddings.

    Softmax over the text tokens of the plain inner products, then the mean over visual tokens.
    Left open, and assumed here: where no token is strictly above the mean (a single text token,
    equal ones), all of them are raters.

    Args:
        visual: (N, d) visual tokens as they enter the decoder.
        text: (M, d) embeddings of every token after the image, template included.
    """
    visual, text = np.asarray(visual, np.float64), np.asarray(text, np.float64)
    weights = np.zeros(len(text))
    for token in visual:
        logits = np.array([np.sum(token * word) for word in text])
        exponentials = np.exp(logits - logits.max())
        weights += exponentials / exponentials.sum() / len(visual)
    raters = [m for m in range(len(text)) if weights[m] > weights.mean()]
    return raters or list(range(len(text)))


def sparsevlm_scores(rows: np.ndarray, visual: Sequence[int]) -> list[float]:
    """Attention of the raters to each current visual token, mean over heads and raters.

    Args:
        rows: (H, R, S) attention after the softmax, the raters' rows.
        visual: the places of the current visual rows, merged ones included.
    """
    rows = np.asarray(rows, np.float64)
    heads, raters, _ = rows.shape
    scores = []
    for place in visual:
        total = 0.0
        for head in range(heads):
            for rater in range(raters):
                total += rows[head, rater, place]
        scores.append(total / (heads * raters))
    return scores


def sparsevlm_stage(
    rows: np.ndarray,
    visual: Sequence[int],
    hidden: np.ndarray,
    keep: int,
    *,
    noise: np.ndarray | None = None,
) -> Kept:
    """One drop from the output of a layer: who stays, and the clusters of the best that go.

    Of the dropped ones the best floor(0.3 dropped) + 1 by score, n, are clustered into
    floor(n / 10) + 1 groups, and each group becomes its plain mean.

    Args:
        rows: (H, R, S) attention of that layer, the raters' rows.
        visual: the places of the current visual rows in the sequence.
        hidden: (n, d) output of that layer for these rows.
        keep: how many stay; at most one fewer than there are.
        noise: added to the densities, in the order of score of the clustered rows; released: 1e-6 x
            uniform.

    Returns:
        `indices` number the current visual rows, -1 for a cluster; `merged` holds all rows that the
        next layer works on: the kept ones in order, then the clusters as their centres rank.
    """
    hidden = np.asarray(hidden, np.float64)
    scores = sparsevlm_scores(rows, visual)
    ranked = best(scores, len(scores))
    keep = min(keep, len(scores) - 1)
    kept, dropped = sorted(ranked[:keep]), ranked[keep:]
    clustered, clusters = merged_rows(len(dropped))
    chosen = dropped[:clustered]
    _, groups = dpc_knn(hidden[chosen], clusters, noise)
    output = [hidden[i] for i in kept]
    for cluster in range(clusters):
        members = [hidden[i] for i, group in zip(chosen, groups, strict=True) if group == cluster]
        output.append(sum(members) / len(members))
    return Kept(indices=kept + [-1] * clusters, merged=np.stack(output))


def sparsevlm(
    stages: Sequence[tuple[np.ndarray, np.ndarray]],
    tokens: int,
    *,
    start: int,
    keeps: Sequence[int] = LISTS[192],
    at: Sequence[int] = (2, 6, 15),
    layers: int = 32,
    noises: Sequence[np.ndarray | None] | None = None,
) -> Drops:
    """The whole schedule, given what each dropping layer makes of the sequence.

    Gumpest/SparseVLMs @ branch v1.5, 734d900. A layer of `at` (0-based) runs on all current rows
    and drops from its *output*. Merged rows follow the kept tokens and are rows like any other in
    later drops. Position ids are renumbered from 0 after each drop. Ties: lowest index first.

    Args:
        stages: for each drop (rows, hidden) as in `sparsevlm_stage`.
        tokens: N, visual tokens at the start.
        start: text tokens in front of the image.
        keeps: kept tokens of each drop, clusters not counted.
    """
    numbers, kept, merged = list(range(tokens)), [], []
    for i, (rows, hidden) in enumerate(stages):
        visual = range(start, start + len(numbers))
        noise = None if noises is None else noises[i]
        stage = sparsevlm_stage(rows, visual, hidden, keeps[i], noise=noise)
        numbers = [-1 if j < 0 else numbers[j] for j in stage.indices]
        kept.append(numbers)
        assert stage.merged is not None
        merged.append(stage.merged[sum(j >= 0 for j in stage.indices) :])
    drops = [(layer + 1, len(left)) for layer, left in zip(at, kept, strict=True)]
    counts = [int(n) for n in layer_counts(tokens, drops, layers)]
    return Drops(kept=kept, counts=counts, merged=merged)
