"""Which key a query sees: slots, padding, sliding windows and segments.

Shapes: B rows, S queries, T keys. `attention` says what the words mean.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Slots:
    """Where queries or keys sit: what the mask needs to know of them.

    Attributes:
        slot: (n,) int32, slots.
        rank: (B or 1, n) int32, how many real tokens come before; `None` without a window.
        valid: (B, n) bool, for keys; `None`: all real.
        segment: (B, n) int32; `None`: all are one sequence.
    """

    slot: jax.Array
    rank: jax.Array | None = None
    valid: jax.Array | None = None
    segment: jax.Array | None = None


def locate(
    queries: int,
    keys: int,
    valid: jax.Array | None,
    offset: int | jax.Array,
    window: int | None,
    segments: jax.Array | None,
) -> tuple[Slots, Slots]:
    """Slots of queries and keys; ranks only where a window counts them."""
    query_slot = jnp.arange(queries, dtype=jnp.int32) + offset
    key_slot = jnp.arange(keys, dtype=jnp.int32)
    q, k = Slots(query_slot), Slots(key_slot, valid=valid)
    if window is not None:
        rank = key_slot[None] if valid is None else jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        q, k = replace(q, rank=rank[:, query_slot]), replace(k, rank=rank)
    if segments is not None:
        q, k = replace(q, segment=segments[:, query_slot]), replace(k, segment=segments)
    return q, k


def mask_of(q: Slots, k: Slots, causal: bool, window: int | None) -> jax.Array | None:
    """Which key each query sees: (B or 1, S, T) bool, `None` when all see all."""
    mask = None if k.valid is None else k.valid[:, None, :]
    if causal:
        before = (k.slot[None, :] <= q.slot[:, None])[None]
        mask = before if mask is None else mask & before
    if window is not None and q.rank is not None and k.rank is not None:
        near = k.rank[:, None, :] > q.rank[:, :, None] - window
        mask = near if mask is None else mask & near
    if q.segment is not None and k.segment is not None:
        same = q.segment[:, :, None] == k.segment[:, None, :]
        mask = same if mask is None else mask & same
    return mask


def disjoint(q: jax.Array, k: jax.Array) -> jax.Array:
    """Whether no query and key of a row can share a segment, by the ranges of their ids (B, n)."""
    return jnp.all((k.min(axis=1) > q.max(axis=1)) | (k.max(axis=1) < q.min(axis=1)))
