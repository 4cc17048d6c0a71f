"""Random tokens: no rule at all, the mandatory baseline."""

from collections.abc import Sequence

from tests.methods.oracles.result import Kept


def random(*, permutation: Sequence[int], keep: int) -> Kept:
    """The first `keep` entries of a permutation, in image order.

    How the permutation is drawn is not the oracle's affair: the caller gives it. Left open by the
    specification: the order in which the tokens enter the LLM; assumed is image order, as in every
    method that cuts a mask.

    Args:
        permutation: (N,) the tokens 0..N-1, each once.
        keep: T.
    """
    if sorted(permutation) != list(range(len(permutation))):
        raise ValueError("not a permutation of 0..N-1")
    if not 1 <= keep <= len(permutation):
        raise ValueError(f"{keep} of {len(permutation)} tokens")
    chosen = []
    for token in permutation:
        if len(chosen) < keep:
            chosen.append(int(token))
    return Kept(sorted(chosen))
