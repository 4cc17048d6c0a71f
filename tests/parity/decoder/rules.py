"""Decoder-stage methods in torch, for prompts with several images and M-RoPE positions.

Needs torch. They know no loop of `tests/methods/oracles/decoder`, which are for one image and one
axis of positions, and nothing of the port: what each decides is computed from the torch model's
own tensors in float64. Each function gives the list of drops that `prefill` takes; K = `before`.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from tests.parity.decoder.reference import Choice, Drop, View, project, rotary, turn


def ranked(scores: torch.Tensor) -> list[int]:
    """Places of the largest scores first, of equal ones the lower place."""
    return torch.sort(scores.double(), descending=True, stable=True).indices.tolist()


def largest(scores: torch.Tensor, count: int) -> Choice:
    """The `count` largest in the order of the prompt."""
    return Choice(sorted(ranked(scores)[:count]))


def fastv(keep: int, before: int) -> list[Drop]:
    """The last row of layer K - 1's attention, mean over heads."""

    def choose(view: View) -> Choice:
        assert view.probabilities is not None
        return largest(view.probabilities[:, -1, view.visual].mean(dim=0), keep)

    return [Drop(before, choose)]


def dart(keep: int, before: int, *, image_pivots: int, text_pivots: int) -> list[Drop]:
    """Pivots by the L1 norm of layer K - 1's keys; each takes what is least like it.

    Image pivots go first, then text pivots, both by falling norm.
    """

    def choose(view: View) -> Choice:
        assert view.cached is not None
        visual, text = torch.tensor(view.visual), torch.tensor(view.text_after)
        norms = view.cached.keys.double().abs().sum(dim=(0, 2))  # [S]
        states = normalize(view.language.norm(view.rows.hidden).double(), dim=-1)
        own = ranked(norms[visual])[:image_pivots]
        pivots = [*visual[own], *text[ranked(norms[text])[:text_pivots]]]
        free = torch.ones(len(visual), dtype=torch.bool)
        free[own] = False
        quota = keep // (image_pivots + text_pivots)
        for pivot in pivots:
            unlike = (-(states[visual] @ states[pivot])).masked_fill(~free, -torch.inf)
            free[ranked(unlike)[: min(quota, int(free.sum()))]] = False
        return Choice((~free).nonzero()[:, 0].tolist())

    return [Drop(before, choose)]


def pdrop(tokens: int, at: Sequence[int], fractions: Sequence[float]) -> list[Drop]:
    """What the last token's query of the layer behind each stage would give; positions stay."""

    def stage(before: int, count: int) -> Drop:
        def choose(view: View) -> Choice:
            rows = view.rows
            queries, keys, _ = project(view.language, before, rows.hidden, rows.positions)
            keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
            scores = torch.einsum("hd,hsd->hs", queries[:, -1].double(), keys.double())
            weights = torch.softmax(scores / queries.shape[-1] ** 0.5, dim=-1)
            return largest(weights[:, rows.visual].mean(dim=0), count)

        return Drop(before, choose)

    counts = [int(fraction * tokens) for fraction in fractions]
    return [stage(before, count) for before, count in zip(at, counts, strict=True)]


def adaptprune(
    keep: int, before: int, grids: Sequence[tuple[int, int]], *,
    half: float = 12, prior: float = 12, radius: float = 5, space: float = 1.5, key: float = 0.05,
) -> list[Drop]:  # fmt: skip
    """Peaks of the last row times a prior over each image; neighbours are of the same image.

    Args:
        keep: tokens behind the drop.
        before: K.
        grids: (rows, columns) of each image's tokens.
        half: what the prior's axes reach at an image's borders; 0 is its middle.
        prior: sigma of the prior.
        radius: the farthest neighbours.
        space: sigma of the distance.
        key: sigma of 1 - cos.
    """

    def axis(size: int) -> torch.Tensor:
        return torch.linspace(-half, half, size) if size > 1 else torch.zeros(1)

    cell = torch.cat([torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in grids])
    place = torch.cat([torch.cartesian_prod(axis(h), axis(w)) for h, w in grids]).double()
    image = torch.repeat_interleave(torch.tensor([h * w for h, w in grids]))

    def choose(view: View) -> Choice:
        assert view.probabilities is not None
        attention = view.probabilities[:, -1, view.visual].double().mean(dim=0)
        score = attention * torch.exp(-(place**2).sum(dim=1) / (2 * prior**2))
        projection = view.language.layers[before].self_attn.k_proj
        keys = normalize(projection(view.rows.hidden[view.visual]).double(), dim=-1)
        kept: list[int] = []
        for _ in range(keep):
            kept.append(int(score.argmax()))
            squared = ((cell - cell[kept[-1]]) ** 2).sum(dim=1).double()
            like = torch.exp(-((1 - keys @ keys[kept[-1]]) ** 2) / (2 * key**2))
            lower = 1 - torch.exp(-squared / (2 * space**2)) * like
            near = (squared <= radius**2) & (image == image[kept[-1]])
            score = torch.where(near, score * lower, score)
            score[kept] = -torch.inf
        return Choice(sorted(kept))

    return [Drop(before, choose)]


def raters(view: View) -> list[int]:
    """Text tokens behind the prompt's images that these point to more than to the mean one."""
    whole = view.embeddings.double()
    text = whole[max(view.first) + 1 :]
    weights = torch.softmax(whole[list(view.first)] @ text.T, dim=1).mean(dim=0)
    above = (weights > weights.mean()).nonzero()[:, 0].tolist()
    return above or list(range(len(text)))


def sparsevlm_plus(at: Sequence[int], keeps: Sequence[int], heads: int) -> list[Drop]:
    """The raters' rows of layer l over what rotation alone would give, in the best heads.

    Raters are found once, in front of layer 0. Tokens leave the output of the layers of `at`.
    """

    def stage(layer: int, keep: int) -> Drop:
        def choose(view: View) -> Choice:
            assert view.probabilities is not None
            own = [view.text_after[m] for m in raters(view)]
            hidden, size = view.rows.hidden, view.language.layers[layer].self_attn.head_dim
            cos, sin = rotary(view.language, hidden, view.rows.positions)
            ones = turn(torch.ones(1, len(hidden), size), cos, sin)[0].double()
            logits = ones @ ones.T / size**0.5
            later = torch.ones_like(logits, dtype=torch.bool).triu(1)
            alone = torch.softmax(logits.masked_fill(later, -torch.inf), dim=-1)
            rows = (view.probabilities.double() / alone)[:, own][:, :, view.visual]  # [H, R, N]
            best = ranked(rows.sum(dim=(1, 2)))[:heads]
            return largest(rows[best].mean(dim=(0, 1)), min(keep, len(view.visual) - 1))

        return Drop(layer + 1, choose)

    return [stage(layer, keep) for layer, keep in zip(at, keeps, strict=True)]


def counted_anew(drops: Sequence[Drop]) -> list[Drop]:
    """The same drops, wrongly: position ids become 0, 1, ... behind each, on every axis."""
    return [Drop(drop.before, drop.choose, renumber=True) for drop in drops]


def one_off(drops: Sequence[Drop]) -> list[Drop]:
    """The same drops, wrongly: the last kept token makes way for the last one that goes."""

    def wrong(drop: Drop) -> Drop:
        def choose(view: View) -> Choice:
            kept = set(drop.choose(view).kept)
            gone = max(set(range(len(view.visual))) - kept)
            return Choice(sorted(kept - {max(kept)} | {gone}))

        return Drop(drop.before, choose, drop.renumber)

    return [wrong(drop) for drop in drops]


def a_layer_late(drops: Sequence[Drop]) -> list[Drop]:
    """The same drops, wrongly: each a layer later."""
    return [Drop(drop.before + 1, drop.choose, drop.renumber) for drop in drops]
