"""Drops inside the decoder, laid out on the host: counts of every row, static shapes of all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.methods.decoder.base import DecoderMethod, Drop
from resprune_jax.models.decoder.drops import Stop
from resprune_jax.models.families.base import pad_rows
from resprune_jax.models.prompts import buckets, budgets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.running.plan import Plan


@dataclass(frozen=True)
class Schedule:
    """The drops of a batch.

    Attributes:
        method: decides, without what only the host reads.
        stops: static shapes of the D drops.
        full: (B,) bool, rows that keep all.
        limits: (D, B) int32, what each drop leaves of each row.
        number: (B, P) int32, which visual token stands where, -1 for text.
        room: slots for text.
    """

    method: DecoderMethod
    stops: tuple[Stop, ...]
    full: np.ndarray
    limits: np.ndarray
    number: np.ndarray
    room: int


def drops_of(
    method: DecoderMethod, totals: Sequence[int], keep: Sequence[Keep], layers: int
) -> list[tuple[Drop, ...] | None]:
    """The drops of each prompt; None where every token stays.

    Args:
        method: drops.
        totals: visual tokens of each prompt.
        keep: a budget for each; None keeps all, unless the method's settings are the budget.
        layers: of the decoder.

    Raises:
        CallError: a budget that the method cannot meet.
    """
    made: list[tuple[Drop, ...] | None] = []
    for total, own in zip(totals, keep, strict=True):
        if not total or (own is None and not method.budgeted):
            made.append(None)
        else:
            made.append(method.drops(total, budgets.count(own, total), layers))
    return made


def make_schedule(
    method: DecoderMethod, plan: Plan, keep: Sequence[Keep], *, slots: int, layers: int
) -> Schedule | None:
    """The drops of a batch that is laid out with every visual token; None where nothing is dropped.

    Args:
        method: drops.
        plan: the batch.
        keep: a budget for each of its real rows.
        slots: N, the bucket of a row's visual tokens.
        layers: of the decoder.

    Raises:
        CallError: a budget that the method cannot meet.
    """
    totals = plan.totals[: plan.size].tolist()
    rows = drops_of(method, totals, keep, layers)
    pruned = [row for row in rows if row is not None]
    if not pruned:
        return None
    # Where images of one bucket differ in size, the counts of the largest bound the others'.
    for own in {own for own, row in zip(keep, rows, strict=True) if row is not None}:
        try:
            pruned.append(method.drops(slots, budgets.ceiling(own, slots), layers))
        except CallError:
            continue  # no image of this call is so large
    most = max([total for total, row in zip(totals, rows, strict=True) if row is None], default=0)
    stops, present = [], slots
    limits = np.zeros((len(pruned[0]), len(rows)), np.int32)
    for at, drop in enumerate(pruned[0]):
        kept = max(most, *(row[at].kept for row in pruned))
        new = max(row[at].merged for row in pruned)
        picks = min(present, buckets.step(kept))
        entering = min(present, buckets.multiple(new, MERGED)) if new else 0
        stops.append(Stop(drop.before, picks, entering))
        present = picks + entering
        limits[at] = [
            total if row is None else row[at].kept for total, row in zip(totals, rows, strict=True)
        ]
    size = len(plan.rows)
    number = np.full((size, plan.length), -1, np.int32)
    width = min(plan.length, plan.visual_index.shape[1])
    number[:, :width] = plan.visual_index[:, :width]
    full = np.asarray([row is None for row in rows])
    return Schedule(
        method=method.rule(),
        stops=tuple(stops),
        full=pad_rows(full, size),
        limits=pad_rows(limits.T, size).T,
        number=number,
        room=plan.length - buckets.step(slots),
    )


MERGED = 16
"""Slots for merged tokens come in multiples of this."""
