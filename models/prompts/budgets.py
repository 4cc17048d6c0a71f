"""Token budgets: what a user may say for `keep`, and how many tokens that is for an image."""

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, say_once, shown

Keep = int | float | None
"""A count of visual tokens, a ratio in (0, 1) of the image's own number, or None for them all."""


def check(keep: Keep) -> Keep:
    """`keep` if it can be a budget.

    Raises:
        CallError: 0, a negative number, NaN, a float of 1 or above, or no number at all.
    """
    say = (
        f"keep={shown(keep)}: give a count of at least 1, a ratio in (0, 1), or None for all tokens"
    )
    if keep is None:
        return None
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise CallError(say)
    if isinstance(keep, Integral):
        if not 1 <= keep < 10**18:
            raise CallError(say)
        return int(keep)
    if math.isnan(keep) or not 0 < keep < 1:
        raise CallError(say)
    return float(keep)


def listed(keep: Any) -> Any:
    """Budgets that came as an array of NumPy, JAX or torch as plain numbers; others as they are."""
    if not (hasattr(keep, "tolist") and hasattr(keep, "dtype")) or isinstance(keep, Real):
        return keep
    try:
        return keep.tolist()
    except Exception:  # a traced one has no value; `check` says what is wrong with it
        return keep


def parse(keep: Keep | Sequence[Keep], rows: int, *, pruning: bool) -> list[Keep]:
    """One budget for each of `rows` prompts.

    Args:
        keep: one budget for all of them, or a sequence with one each.
        rows: the number of prompts.
        pruning: whether a pruning method runs at all.

    Raises:
        CallError: an impossible budget, a sequence of another length, or a budget without a method.
    """
    keep = listed(keep)
    if isinstance(keep, list | tuple):
        each = [check(k) for k in keep]
        if len(each) != rows:
            raise CallError(f"keep has {len(each)} budgets for {rows} prompts: give one each")
    else:
        each = [check(keep)] * rows  # type: ignore[arg-type]
    if not pruning and any(k is not None for k in each):
        raise CallError("keep was given with method 'none', which keeps every token: drop one")
    return each


def ceiling(keep: Keep, total: int) -> int:
    """How many of at most `total` visual tokens a budget keeps, nothing said."""
    if keep is None:
        return total
    if isinstance(keep, float):
        return max(1, round(keep * total))
    return min(keep, total)


def count(keep: Keep, total: int) -> int:
    """How many of `total` visual tokens a budget keeps: round(keep * N), at least 1, at most N."""
    if isinstance(keep, int) and keep > total:
        say_once(
            f"keep {keep} of {total}",
            f"keep={keep} is more than the image's {total} visual tokens: all {total} are kept",
        )
    return ceiling(keep, total)


def resolve(budget: Sequence[Keep], totals: Sequence[int] | np.ndarray) -> np.ndarray:
    """`count` for every row, (B,) int32."""
    pairs = zip(budget, totals, strict=True)
    return np.asarray([count(keep, int(total)) for keep, total in pairs], np.int32)
