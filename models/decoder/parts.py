"""Attention whose scores are too many to be held at once: in a few large parts, on a GPU.

Blocks of 512 with an online softmax, as other backends have them, are thousands of launches there
and a question to the host for each. Here a part is some rows and some of their queries with all the
keys that these see, as many as `gpu.HELD` bytes of scores allow: a plain softmax, three kernels.
Few parts are written out one after the other, and of a causal attention the later keys are left
out; more are the trips of a loop whose number is known, so that the host is asked nothing.

Shapes: B rows, S queries, T keys, H query heads, KV key/value heads, G = H / KV, hd head width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from resprune_jax.models.decoder import gpu
from resprune_jax.models.decoder.masks import Slots, mask_of
from resprune_jax.models.decoder.softmax import softmax

WHOLE = 64
"""Parts have a multiple of so many queries, as the tiles of a product do."""

WRITTEN_OUT = 8
"""Parts of queries that are written out; more are a loop."""


class Division(NamedTuple):
    """How an attention is cut.

    Attributes:
        rows: that are done together; divides B.
        parts: of the queries.
        size: queries of a part; the last may have fewer.
    """

    rows: int
    parts: int
    size: int


def divide(batch: int, queries: int, keys: int, heads: int) -> Division:
    """As many rows as few enough parts allow, and as few parts as `gpu.HELD` allows.

    Args:
        batch: B.
        queries: S.
        keys: T.
        heads: of one row, H.
    """
    for rows in (rows for rows in range(batch, 0, -1) if batch % rows == 0):
        most = max(1, gpu.HELD // (4 * rows * keys * heads))  # queries at a time
        if most > WHOLE:
            most -= most % WHOLE
        parts = -(-queries // most)
        if parts <= WRITTEN_OUT:
            even = -(-queries // parts)
            return Division(rows, parts, min(most, -(-even // WHOLE) * WHOLE, queries))
        if rows == 1:  # a loop, of parts that nothing has to fill if there are such
            whole = [n for n in range(parts, 2 * parts + 1) if queries % n == 0]
            parts = min(whole, default=parts)
            return Division(rows, parts, -(-queries // parts))
    raise AssertionError("a batch has at least one row")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_slots: Slots,
    key_slots: Slots,
    causal: bool,
    window: int | None,
    from_start: bool = False,
) -> jax.Array:
    """`gpu.attend_by_heads` in parts.

    Args:
        q: (B, S, KV, G, hd).
        k: (B, T, KV, hd).
        v: the same.
        query_slots: where the queries sit.
        key_slots: where the keys do.
        causal: see `attention.attend`.
        window: likewise.
        from_start: queries stand where the keys stand, slot by slot.

    Returns:
        (B, S, KV, G, hd) in q's dtype.
    """

    def part(
        q: jax.Array, k: jax.Array, v: jax.Array, query_slots: Slots, key_slots: Slots
    ) -> jax.Array:
        return gpu.attend_by_heads(q, k, v, mask_of(query_slots, key_slots, causal, window))

    def rows(
        q: jax.Array, k: jax.Array, v: jax.Array, query_slots: Slots, key_slots: Slots
    ) -> jax.Array:
        size = q.shape[1]
        if plan.parts <= WRITTEN_OUT:
            made = []
            for start in range(0, size, plan.size):
                stop = min(start + plan.size, size)
                # Keys behind the last query are not read.
                seen = stop if causal and from_start else k.shape[1]
                made.append(
                    part(
                        q[:, start:stop], k[:, :seen], v[:, :seen],
                        _cut(query_slots, start, stop), _cut(key_slots, 0, seen),
                    )
                )  # fmt: skip
            return jnp.concatenate(made, axis=1)
        looped = _looped(lambda q, slots: part(q, k, v, slots, key_slots), q, query_slots, plan)
        return jnp.moveaxis(looped, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :size]

    plan = divide(q.shape[0], q.shape[1], k.shape[1], q.shape[2] * q.shape[3])
    return _by_rows(rows, plan.rows, q, k, v, query_slots, key_slots)


def columns(q: jax.Array, k: jax.Array, query_slots: Slots, key_slots: Slots) -> jax.Array:
    """What each token receives, (B, S) float32, summed over heads and queries, in parts.

    Args:
        q: (B, S, KV, G, hd).
        k: (B, S, KV, hd).
        query_slots: where the queries sit.
        key_slots: where the keys do.
    """

    def part(q: jax.Array, k: jax.Array, query_slots: Slots, key_slots: Slots) -> jax.Array:
        scores = jnp.einsum("bskgh,btkh->bkgst", q, k, preferred_element_type=jnp.float32)
        mask = mask_of(query_slots, key_slots, False, None)
        shares = softmax(scores * q.shape[-1] ** -0.5, mask)
        there = query_slots.slot < key_slots.slot.shape[0]  # none that only fill the last part
        return jnp.sum(jnp.where(there[:, None], shares, 0.0), axis=(1, 2, 3))

    def rows(
        q: jax.Array, k: jax.Array, _: jax.Array, query_slots: Slots, key_slots: Slots
    ) -> jax.Array:
        if plan.parts <= WRITTEN_OUT:
            return sum(
                (
                    part(q[:, start:stop], k, _cut(query_slots, start, stop), key_slots)
                    for start in range(0, q.shape[1], plan.size)
                    for stop in (min(start + plan.size, q.shape[1]),)
                ),
                start=jnp.zeros(k.shape[:2], jnp.float32),
            )
        made = _looped(lambda q, slots: part(q, k, slots, key_slots), q, query_slots, plan)
        return jnp.sum(made, axis=0)

    plan = divide(q.shape[0], q.shape[1], k.shape[1], q.shape[2] * q.shape[3])
    return _by_rows(rows, plan.rows, q, k, k, query_slots, key_slots)


def _by_rows(
    do: Callable[..., jax.Array],
    rows: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_slots: Slots,
    key_slots: Slots,
) -> jax.Array:
    """`do` of so many rows at a time."""
    batch = q.shape[0]
    if rows == batch:
        return do(q, k, v, query_slots, key_slots)
    # What all rows share stays outside of the loop.
    parts = [(slots.rank, slots.valid, slots.segment) for slots in (query_slots, key_slots)]
    own = [tuple(None if _shared(x, batch) else x for x in some) for some in parts]

    def some(xs: tuple) -> jax.Array:
        q, k, v, *fields = xs
        slots = []
        for whole, shared, field in zip((query_slots, key_slots), parts, fields, strict=True):
            rank, valid, segment = (
                a if b is None else b for a, b in zip(shared, field, strict=True)
            )
            slots.append(Slots(whole.slot, rank, valid, segment))
        return do(q, k, v, *slots)

    cut = jax.tree.map(lambda x: x.reshape(batch // rows, rows, *x.shape[1:]), (q, k, v, *own))
    made = jax.lax.map(some, cut)
    return made.reshape(batch, *made.shape[2:])


def _shared(x: jax.Array | None, batch: int) -> bool:
    return x is None or x.shape[0] != batch


def _looped(
    do: Callable[[jax.Array, Slots], jax.Array], q: jax.Array, slots: Slots, plan: Division
) -> jax.Array:
    """`do` of each part of the queries, (parts, ...); what fills the last part is no query."""
    filled = plan.parts * plan.size
    q = _filled(q, filled, 1)
    slots = Slots(
        slots.slot[0] + jnp.arange(filled, dtype=jnp.int32),
        *(
            None if x is None else _filled(x, filled, 1)
            for x in (slots.rank, slots.valid, slots.segment)
        ),
    )

    def part(at: jax.Array) -> jax.Array:
        start = at * plan.size
        own = jax.lax.dynamic_slice_in_dim(q, start, plan.size, 1)
        return do(own, _cut_at(slots, start, plan.size))

    return jax.lax.map(part, jnp.arange(plan.parts, dtype=jnp.int32))


def _filled(x: jax.Array, size: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def _cut(slots: Slots, start: int, stop: int) -> Slots:
    """Some of the slots, whose places are known."""
    return replace(
        slots,
        slot=slots.slot[start:stop],
        rank=None if slots.rank is None else slots.rank[:, start:stop],
        valid=None if slots.valid is None else slots.valid[:, start:stop],
        segment=None if slots.segment is None else slots.segment[:, start:stop],
    )


def _cut_at(slots: Slots, start: jax.Array, size: int) -> Slots:
    """Some of the slots, whose places are not."""

    def cut(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, x.ndim - 1)

    slot = jax.lax.dynamic_slice_in_dim(slots.slot, start, size, 0)
    return Slots(slot, cut(slots.rank), cut(slots.valid), cut(slots.segment))
