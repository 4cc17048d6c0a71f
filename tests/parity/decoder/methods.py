"""The decoder-stage methods as drops of the torch reference: their oracles decide, the model shows.

Needs torch. Each function gives the list of drops that `prefill` takes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.methods.oracles.decoder.adaptprune import adaptprune
from tests.methods.oracles.decoder.dart import dart
from tests.methods.oracles.decoder.fastv import fastv
from tests.methods.oracles.decoder.pdrop import pdrop_counts, pdrop_stage
from tests.methods.oracles.decoder.sparsevlm import sparsevlm_raters, sparsevlm_stage
from tests.methods.oracles.decoder.sparsevlm_plus import sparsevlm_plus_stage
from tests.parity.decoder.reference import Choice, Drop, View


def fixed(before: int, kept: Sequence[int], *, renumber: bool = False) -> list[Drop]:
    """A keep list that is known beforehand."""
    return [Drop(before, lambda view: Choice(kept), renumber)]


def fastv_drops(keep: int, layer: int = 2) -> list[Drop]:
    """FastV: the last row of layer K - 1."""

    def choose(view: View) -> Choice:
        return Choice(fastv(view.attention()[:, -1], view.visual, keep).kept[0])

    return [Drop(layer, choose)]


def dart_drops(keep: int, layer: int = 2, **options: Any) -> list[Drop]:
    """DART: keys of layer K - 1, its output behind the last norm."""

    def choose(view: View) -> Choice:
        signals = view.keys(), view.final_norm()
        return Choice(dart(*signals, view.visual, view.text_after, keep, **options).kept[0])

    return [Drop(layer, choose)]


def adaptprune_drops(
    keep: int, grid: tuple[int, int], layer: int = 2, **options: Any
) -> list[Drop]:
    """AdaptPrune: the last row of layer K - 1, bare keys of layer K."""

    def choose(view: View) -> Choice:
        row, keys = view.attention()[:, -1], view.bare_keys()[view.visual]
        return Choice(adaptprune(row, keys, view.visual, keep, grid=grid, **options).kept[0])

    return [Drop(layer, choose)]


def pdrop_drops(tokens: int, at: Sequence[int], fractions: Sequence[float]) -> list[Drop]:
    """PyramidDrop: the next layer's query of the last token, at every stage."""

    def stage(before: int, count: int) -> Drop:
        def choose(view: View) -> Choice:
            return Choice(pdrop_stage(view.next_query(), view.next_keys(), view.visual, count))

        return Drop(before, choose, renumber=True)

    counts = pdrop_counts(tokens, fractions)
    return [stage(before, count) for before, count in zip(at, counts, strict=True)]


def raters(view: View) -> list[int]:
    """Numbers of SparseVLM's raters among the text tokens after the image, from the input."""
    whole = view.embeddings.double().numpy()
    return sparsevlm_raters(whole[list(view.first)], whole[max(view.first) + 1 :])


def sparsevlm_drops(at: Sequence[int], keeps: Sequence[int]) -> list[Drop]:
    """SparseVLM v1.5: rows of the raters in layer l, from whose output tokens go."""

    def stage(layer: int, keep: int) -> Drop:
        def choose(view: View) -> Choice:
            rows = view.attention()[:, [view.text_after[m] for m in raters(view)]]
            kept = sparsevlm_stage(rows, view.visual, view.hidden()[view.visual], keep)
            stay = [i for i in kept.indices if i >= 0]
            return Choice(stay, np.asarray(kept.merged)[len(stay) :])

        return Drop(layer + 1, choose, renumber=True)

    return [stage(layer, keep) for layer, keep in zip(at, keeps, strict=True)]


def sparsevlm_plus_drops(at: Sequence[int], keeps: Sequence[int], **options: Any) -> list[Drop]:
    """SparseVLM v2.0: the same rows, corrected; no merging, original position ids."""

    def stage(layer: int, keep: int) -> Drop:
        def choose(view: View) -> Choice:
            own = [view.text_after[m] for m in raters(view)]
            kept = sparsevlm_plus_stage(
                view.attention()[:, own],
                view.visual,
                [view.positions[row] for row in own],
                view.positions,
                keep,
                **options,
            )
            return Choice(kept)

        return Drop(layer + 1, choose)

    return [stage(layer, keep) for layer, keep in zip(at, keeps, strict=True)]
