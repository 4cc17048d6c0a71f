"""FastV: one drop before layer K, by the attention of the last prompt token (arXiv 2403.06764)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts
from tests.methods.oracles.decoder.drops import Drops, best


def fastv(
    attention_row: np.ndarray,
    visual: Sequence[int],
    keep: int,
    *,
    layer: int = 2,
    layers: int = 32,
) -> Drops:
    """The visual tokens that the last prompt token looks at most, mean over heads.

    pkunlp-icler/FastV @ d165972, the variants that really drop. The score is the *last query row*
    only; the softmax ran over the whole sequence, text included, before the mean. Kept tokens stay
    in image order and keep their position ids. Ties: lowest index first.

    Args:
        attention_row: (H, S) attention after the softmax of layer `layer` - 1, last prompt token.
        visual: the places of the N visual tokens in the sequence, ascending.
        keep: tokens after the drop.
        layer: K, the first layer that works on the kept tokens only.
        layers: layers of the decoder.
    """
    row = np.asarray(attention_row, np.float64)
    scores = []
    for place in visual:
        total = 0.0
        for head in range(row.shape[0]):
            total += row[head, place]
        scores.append(total / row.shape[0])
    kept = sorted(best(scores, keep))
    counts = layer_counts(len(visual), [(layer, len(kept))], layers)
    return Drops(kept=[kept], counts=[int(n) for n in counts])
