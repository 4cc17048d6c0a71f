"""What a schedule of drops inside the language model costs, by simple formulas.

A drop is (layer, count): the layers from number `layer` on (0-based) work on `count` visual tokens.
A method that drops from the *output* of layer l is therefore a drop at l + 1 when one counts what
layers work on, and a drop at l when one counts what layers put out.
"""

from collections.abc import Callable, Sequence

Schedule = Sequence[tuple[int, float]]


def layer_counts(tokens: float, drops: Schedule, layers: int = 32) -> list[float]:
    """Visual tokens of each layer."""
    counts = []
    for layer in range(layers):
        count = tokens
        for at, left in drops:
            if layer >= at:
                count = left
        counts.append(count)
    return counts


def average(tokens: float, drops: Schedule, layers: int = 32) -> float:
    """Tokens a layer, averaged over the layers: what papers call the budget."""
    return sum(layer_counts(tokens, drops, layers)) / layers


def keep_for_average(target: float, tokens: int, layer: int = 2, layers: int = 32) -> int:
    """What one drop before `layer` keeps so that the average is nearest to `target`.

    Raises:
        ValueError: the layers before the drop already cost more than the average, or nothing needs
            to be dropped.
    """
    exact = (target * layers - layer * tokens) / (layers - layer)
    if not 0 < exact <= tokens:
        raise ValueError(f"no drop before layer {layer} has the average {target}: keep {exact}")
    return max(1, round(exact))


def geometric(tokens: float, ratio: float, stages: Sequence[int]) -> list[tuple[int, float]]:
    """The stages of PyramidDrop with ratio, ratio^2, ... of the tokens; counts are not whole."""
    return [(at, tokens * ratio ** (i + 1)) for i, at in enumerate(stages)]


def ratio_for_average(
    target: float,
    tokens: int,
    stages: Sequence[int] = (2, 8, 16),
    layers: int = 32,
    schedule: Callable[..., Schedule] = geometric,
) -> float:
    """The ratio of a geometric schedule whose average is `target`, by halving [0, 1]."""
    low, high = 0.0, 1.0
    if not average(tokens, schedule(tokens, low, stages), layers) < target <= tokens:
        raise ValueError(f"no ratio of the stages {list(stages)} has the average {target}")
    for _ in range(200):
        middle = (low + high) / 2
        if average(tokens, schedule(tokens, middle, stages), layers) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def merged_rows(dropped: int) -> tuple[int, int]:
    """SparseVLM v1.x: (tokens that are clustered, clusters) of what a drop leaves out."""
    clustered = int(0.3 * dropped) + 1
    return clustered, clustered // 10 + 1


def sparsevlm_outputs(
    tokens: int, keeps: Sequence[int] = (300, 200, 110), *, merge: bool = True
) -> list[int]:
    """Visual tokens after each drop of SparseVLM: the kept ones and the clusters of the rest."""
    outputs, current = [], tokens
    for keep in keeps:
        kept = min(keep, current - 1)
        current = kept + (merged_rows(current - kept)[1] if merge else 0)
        outputs.append(current)
    return outputs


def sparsevlm_average(
    tokens: int,
    keeps: Sequence[int],
    at: Sequence[int] = (2, 6, 15),
    layers: int = 32,
    *,
    processed: bool,
    merge: bool = True,
) -> float:
    """The average of SparseVLM's lists, on tokens processed or (as its authors do) on outputs."""
    outputs = sparsevlm_outputs(tokens, keeps, merge=merge)
    later = 1 if processed else 0
    return average(tokens, [(a + later, n) for a, n in zip(at, outputs, strict=True)], layers)


def dart_count(keep: int, image_pivots: int = 4, text_pivots: int = 4) -> int:
    """What DART keeps when asked for `keep`: the pivots of the image and a quota for each pivot."""
    return image_pivots + (image_pivots + text_pivots) * (keep // (image_pivots + text_pivots))


def flops(counts: Sequence[float], hidden: int, intermediate: int) -> float:
    """Prefill FLOPs of the layers, 2 a multiply-add, visual tokens alone, no grouped heads.

    A layer with n tokens: queries, keys, values, output 4 n d^2; scores and mixture over the whole
    square 2 n^2 d; the three matrices of the gated MLP 3 n d m.
    """
    total = 0.0
    for n in counts:
        total += 2 * (4 * n * hidden**2 + 2 * n**2 * hidden + 3 * n * hidden * intermediate)
    return total


def kv_bytes(counts: Sequence[float], kv_heads: int, head_dim: int, size: int = 2) -> float:
    """Bytes of keys and values: what each layer worked on, `size` bytes a number."""
    return sum(2 * n * kv_heads * head_dim * size for n in counts)


def scaled_layer(layer: int, depth: int, original: int = 32) -> int:
    """A layer number stated for `original` layers on a decoder of `depth`: rounded, at least 1.

    K = 2 stays 2. Halves: to the even number (Python's `round`); the rule does not say.
    """
    return 2 if layer == 2 else max(1, round(layer * depth / original))


def scaled_layers(layers: Sequence[int], depth: int, original: int = 32) -> list[int]:
    """The same for the stages of a schedule, each scaled alone (2 is scaled like any other).

    Stages of a shallow decoder may fall together; what then happens is for the method to say.
    """
    return [max(1, round(layer * depth / original)) for layer in layers]
