"""DART: one drop before layer K, of what repeats a pivot (arXiv 2502.11494)."""

from collections.abc import Sequence

import numpy as np

from tests.methods.oracles.decoder.accounting import layer_counts
from tests.methods.oracles.decoder.drops import Drops, best


def rms_norm(hidden: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """The decoder's last norm, over (S, d) states."""
    hidden = np.asarray(hidden, np.float64)
    rows = [row / np.sqrt(np.mean(row * row) + epsilon) * weight for row in hidden]
    return np.stack(rows)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine; 0 where one of the two is zero."""
    lengths = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
    return float(np.sum(a * b) / lengths) if lengths > 0 else 0.0


def dart_pivots(keys: np.ndarray, places: Sequence[int], count: int) -> list[int]:
    """The places with the largest L1 norm of their keys, all heads together, largest first."""
    norms = []
    for place in places:
        total = 0.0
        for head in range(keys.shape[0]):
            total += float(np.sum(np.abs(keys[head, place])))
        norms.append(total)
    return [places[i] for i in best(norms, count)]


def dart(
    keys: np.ndarray,
    hidden: np.ndarray,
    visual: Sequence[int],
    text: Sequence[int],
    keep: int,
    *,
    image_pivots: int = 4,
    text_pivots: int = 4,
    quota: int | None = None,
    layer: int = 2,
    layers: int = 32,
) -> Drops:
    """The image's pivots, and for each pivot the tokens that are least like it.

    xqy1111111/DART @ d6a5af6 (a fork of ZichenWen1/DART, which could not be read). The release goes
    through the pivots in the order of a Python set; here the order is fixed: image pivots by
    falling norm, then text pivots by falling norm. What a pivot took is gone for the later ones;
    image pivots are never taken; text pivots are anchors only. 4 + 8 (keep // 8) tokens remain, as
    released: 196 for 192. Image order, original position ids. Ties: lowest index first.

    Left open, and assumed here: with fewer text tokens than pivots, all of them are pivots and the
    quota stays keep // (image_pivots + text_pivots); a pool that runs dry gives what it has.

    Args:
        keys: (G, S, h) key states of layer `layer` - 1 with RoPE, G key/value heads.
        hidden: (S, d) output of layer `layer` - 1 after the decoder's *last* norm.
        visual: the places of the N visual tokens in the sequence, ascending.
        text: the places of every token after the image, template included.
        keep: the budget that the quota comes from.
        quota: tokens a pivot, instead of keep // 8 (Qwen: int(N (1 - ratio) / 8)).
    """
    keys = np.asarray(keys, np.float64)
    hidden = np.asarray(hidden, np.float64)
    of_image = dart_pivots(keys, list(visual), image_pivots)
    of_text = dart_pivots(keys, list(text), text_pivots)
    if quota is None:
        quota = keep // (image_pivots + text_pivots)
    pool = [place for place in visual if place not in of_image]
    kept = list(of_image)
    for pivot in of_image + of_text:
        least_like = best([-cosine(hidden[place], hidden[pivot]) for place in pool], quota)
        taken = [pool[i] for i in least_like]
        kept += taken
        pool = [place for place in pool if place not in taken]
    numbers = sorted(list(visual).index(place) for place in kept)
    counts = layer_counts(len(visual), [(layer, len(numbers))], layers)
    return Drops(kept=[numbers], counts=[int(n) for n in counts])
