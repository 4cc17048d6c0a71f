"""How many tokens ToMe removes in each block."""


def linear_schedule(r: int, layers: int, inflect: float = 0.0) -> list[int]:
    """The released schedule: r (1 - inflect) to r (1 + inflect) in even steps, cut to integers.

    facebookresearch/ToMe @ af95e4b. inflect = 0 is the constant r. Left open: whether the first
    value is cut before the steps are taken (here it is not).
    """
    first, last = r * (1 - inflect), r * (1 + inflect)
    return [int(first + (last - first) * i / max(layers - 1, 1)) for i in range(layers)]


def schedule(*, tokens: int, keep: int, layers: int, class_token: bool = True) -> list[int]:
    """r of each layer, so that exactly T tokens (CLS not counted) are left after the last.

    No repository states one for LLaVA. Constant r = floor((N - T) / layers), the last layer takes
    the remainder. Left open: a layer can remove at most half of its tokens; where the last one
    cannot take the remainder, the smallest larger constant (cut in each layer to what it can
    remove, and to what is left to remove) with which it can; none: an error.

    Args:
        tokens: N without CLS. layers: blocks that run before the features are taken (23 of 24).
    """
    if not 1 <= keep <= tokens:
        raise ValueError(f"{keep} of {tokens} tokens")
    # With CLS protected t = n + 1 and (t - 1) // 2 = n // 2; without one t = n: the same.
    for constant in range((tokens - keep) // layers, tokens + 1):
        left, counts = tokens, []
        for _ in range(layers - 1):
            counts.append(min(constant, left // 2, left - keep))
            left -= counts[-1]
        if left - keep <= left // 2:
            return [*counts, left - keep]
    raise ValueError(f"{layers} layers cannot take {tokens} tokens down to {keep}")
