"""What visual tokens cost: prefill FLOPs and KV-cache bytes, as the paper counts them.

The paper's Table VIII counts visual tokens only, 2 FLOPs a multiply-add, attention over the whole
square, and prints KV-cache sizes in MiB. `decoder_flops` and `kv_bytes` reproduce it; the rest
adds what the table leaves out (vision tower, projector) and schedules that drop tokens at layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .errors import CallError

MIB = 2**20

#: Drops of a pruning schedule: (layer, tokens left from that layer on), layers ascending.
Drops = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a language model that the accounting needs.

    Attributes:
        layers: number of decoder layers, L.
        hidden: hidden size, d.
        intermediate: inner size of the gated MLP, m.
        kv_heads: key/value heads.
        head_dim: size of a head.
        bytes: bytes of a cached number (2 for 16 bit).
    """

    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    bytes: int = 2


#: The language model of LLaVA-1.5-7B and of Table VIII's LLaVA-NeXT-7B.
VICUNA_7B = DecoderShape(layers=32, hidden=4096, intermediate=11008, kv_heads=32, head_dim=128)


@dataclass(frozen=True)
class BudgetRow:
    """One line of a table of budgets.

    Attributes:
        tokens: visual tokens that enter the language model.
        kept: visual tokens after the last drop.
        average: visual tokens a layer sees, averaged over layers.
        flops: prefill FLOPs of the language model for visual tokens.
        kv_bytes: KV-cache bytes of visual tokens.
        flops_ratio: flops over those of the full model.
        kv_ratio: kv_bytes over those of the full model.
    """

    tokens: float
    kept: float
    average: float
    flops: float
    kv_bytes: float
    flops_ratio: float
    kv_ratio: float


def layer_flops(tokens: float, *, hidden: int, intermediate: int) -> float:
    """Prefill FLOPs of one decoder layer: 2 (4 n d^2 + 2 n^2 d + 3 n d m), Eq. 18.

    Args:
        tokens: n, tokens in the layer; an average over images need not be whole.
        hidden: d.
        intermediate: m, of a gated MLP (three matrices).

    Returns:
        FLOPs. Four square projections are counted also where heads share keys and values, and
        attention over the whole n x n square also where it is causal, as the paper does.
    """
    n, d, m = tokens, hidden, intermediate
    return 2.0 * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)


def layer_counts(tokens: float, layers: int, drops: Drops = ()) -> list[float]:
    """Tokens in each layer under a schedule of drops.

    Args:
        tokens: tokens that enter layer 0.
        layers: number of layers.
        drops: (layer, tokens left) pairs: from that layer on, so many tokens are left.

    Returns:
        One count a layer.

    Raises:
        CallError: counts that are negative or rise, or layers that are out of range or not
            ascending.
    """
    if tokens < 0:
        raise CallError(f"{tokens} visual tokens; expected 0 or more")
    counts = [float(tokens)] * layers
    before = -1
    for layer, left in drops:
        if not before < layer < layers:
            raise CallError(
                f"a drop at layer {layer}; expected ascending layers from 0 to {layers - 1}"
            )
        if not 0 <= left <= counts[layer]:
            raise CallError(
                f"{left} tokens left from layer {layer}; expected 0 to {counts[layer]:g}"
            )
        counts[layer:] = [float(left)] * (layers - layer)
        before = layer
    return counts


def average_count(tokens: float, layers: int, drops: Drops = ()) -> float:
    """Tokens a layer sees, averaged over layers: how methods that drop inside state a budget.

    FastV that drops from layer 2 of 32 on must keep 166, 98 and 30 of 576 tokens to average 192,
    128 and 64. For the arguments see `layer_counts`.
    """
    return sum(layer_counts(tokens, layers, drops)) / layers


def decoder_flops(tokens: float, decoder: DecoderShape, drops: Drops = ()) -> float:
    """Prefill FLOPs of the language model, Eq. 18 and 19: the layers' FLOPs, summed.

    Args:
        tokens: tokens that enter layer 0. The paper counts visual tokens alone.
        decoder: its sizes.
        drops: the schedule of drops inside, see `layer_counts`.

    Returns:
        FLOPs, 2 a multiply-add.
    """
    return sum(
        layer_flops(n, hidden=decoder.hidden, intermediate=decoder.intermediate)
        for n in layer_counts(tokens, decoder.layers, drops)
    )


def kv_bytes(tokens: float, decoder: DecoderShape, drops: Drops = ()) -> float:
    """Bytes of the KV cache: 2 n kv_heads head_dim bytes a layer (Table VIII prints MiB).

    Args:
        tokens: tokens that enter layer 0. The paper counts visual tokens alone.
        decoder: its sizes.
        drops: the schedule of drops inside, see `layer_counts`.

    Returns:
        Bytes of keys and values of all layers.
    """
    row = 2 * decoder.kv_heads * decoder.head_dim * decoder.bytes
    return row * sum(layer_counts(tokens, decoder.layers, drops))


def vision_tower_flops(
    patches: int,
    *,
    layers: int,
    hidden: int,
    intermediate: int,
    patch_values: int,
    cls_token: bool = True,
) -> float:
    """FLOPs of a vision tower for one image. Not part of the paper's figures.

    Args:
        patches: patches of the image.
        layers: blocks that run (LLaVA-1.5 runs 23 of the 24 of CLIP-L).
        hidden: hidden size.
        intermediate: inner size of the MLP (two matrices).
        patch_values: numbers in a patch, 3 x height x width.
        cls_token: whether a CLS token runs along.

    Returns:
        FLOPs, 2 a multiply-add: the patch embedding and the blocks.
    """
    n, d = patches + int(cls_token), hidden
    block = 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * intermediate
    return 2.0 * (patches * patch_values * d + layers * block)


def projector_flops(tokens: float, *, vision_hidden: int, hidden: int) -> float:
    """FLOPs of LLaVA's two-layer projector. Not part of the paper's figures.

    Args:
        tokens: visual tokens projected: all of them, pruning comes after.
        vision_hidden: width of the vision tower's features.
        hidden: width of the language model's embeddings.

    Returns:
        FLOPs, 2 a multiply-add.
    """
    return 2.0 * tokens * (vision_hidden * hidden + hidden * hidden)


def selection_flops(tokens: float, keep: float, hidden: int) -> float:
    """FLOPs of choosing `keep` tokens by residual energy: one inner-product pass a pick.

    The paper's O(N K d) with its constant: 2 N d for each pick, by Algorithm 1 as it reads.
    """
    return 2.0 * tokens * keep * hidden


def budget_table(tokens: float, budgets: Sequence[float], decoder: DecoderShape) -> list[BudgetRow]:
    """What the full model and each budget cost the language model, visual tokens only.

    Args:
        tokens: visual tokens of the full model.
        budgets: tokens kept before the language model; those above `tokens` are capped.
        decoder: its sizes.

    Returns:
        The row of the full model, then one a budget in the order given.

    Raises:
        CallError: no visual token, or a budget below 1.
    """
    if tokens <= 0:
        raise CallError(f"{tokens} visual tokens; expected more than 0")
    for budget in budgets:
        if not budget >= 1:
            raise CallError(f"a budget of {budget} tokens; expected at least 1")
    kept = [tokens, *(min(budget, tokens) for budget in budgets)]
    return [schedule_row(tokens, [(0, budget)], decoder) for budget in kept]


def schedule_row(tokens: float, drops: Drops, decoder: DecoderShape) -> BudgetRow:
    """What a pruning schedule costs the language model, visual tokens only.

    Args:
        tokens: visual tokens of the full model.
        drops: where tokens are dropped, see `layer_counts`; a drop at layer 0 is one before the
            language model.
        decoder: its sizes.

    Returns:
        Its row, with both counts in-LLM methods must report: after the last drop and the average
        over layers.
    """
    counts = layer_counts(tokens, decoder.layers, drops)
    flops, cache = decoder_flops(tokens, decoder, drops), kv_bytes(tokens, decoder, drops)
    return BudgetRow(
        tokens=counts[0],
        kept=counts[-1],
        average=sum(counts) / decoder.layers,
        flops=flops,
        kv_bytes=cache,
        flops_ratio=flops / decoder_flops(tokens, decoder),
        kv_ratio=cache / kv_bytes(tokens, decoder),
    )


def ratio_for_average(target: float, tokens: int, at: Sequence[int], layers: int) -> float:
    """The ratio of a geometric schedule that averages `target` tokens a layer.

    In front of the i-th layer of `at`, ratio^i of the tokens stay. PyramidDrop at [2, 8, 16] of 32
    layers: 0.560, 0.420 and 0.192 for 192, 128 and 64 of 576.

    Args:
        target: visual tokens a layer, averaged over layers.
        tokens: at first.
        at: layers in front of which tokens go, ascending.
        layers: of the decoder.

    Returns:
        The ratio in (0, 1]; counts are not rounded.

    Raises:
        CallError: an average that no ratio has.
    """
    spans = [after - before for before, after in pairwise([*at, layers])]

    def average(ratio: float) -> float:
        powers = (ratio ** (i + 1) * span for i, span in enumerate(spans))
        return tokens * (at[0] + sum(powers)) / layers

    if not average(0) < target <= tokens:
        raise CallError(
            f"drops in front of the layers {', '.join(map(str, at))} cannot average {target:g} of"
            f" {tokens} visual tokens: the first {at[0]} of {layers} layers see them all, which is"
            f" {average(0):g} on average; drop earlier, such as in front of layers 2, 8, 16"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if average(middle) < target else (low, middle)
    return high
