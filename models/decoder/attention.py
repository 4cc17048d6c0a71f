"""Attention: grouped query heads, slot masks, float32 softmax, and no long score arrays.

Shapes: B rows, S queries, T keys, H query heads, KV key/value heads, G = H / KV, hd head width.
Query head h reads key/value head h // G; the groups are an axis of the products, so keys and values
are never repeated in memory.

Masks speak of slots, the places in the key array: query i sits in slot `offset + i`. Padding slots
may lie anywhere in a row. A sliding window counts real tokens only, so that a row's padding does
not eat into it. Segments part a row into sequences that do not see one another: packed images,
frames of a video, windows, and the padding behind them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from resprune_jax.errors import CallError, say_once
from resprune_jax.models.decoder import gpu, parts
from resprune_jax.models.decoder.masks import Slots, disjoint, locate, mask_of
from resprune_jax.models.decoder.softmax import MASKED, exponentials, masked, softmax, weights_of

Path = Literal["xla", "blockwise", "parts", "cudnn"]
Engine = Literal["auto", Path]

_taken: ContextVar[set[Path] | None] = ContextVar("_taken", default=None)

BLOCKWISE_ABOVE = 1024 * 1024
"""Scores a head (S * T) above which `attend` stops holding them all at once."""

BLOCK = 512
"""Queries and keys of one block of the blockwise engine."""


@contextmanager
def paths_taken() -> Iterator[set[Path]]:
    """Gather the engines of all attention that is traced meanwhile."""
    paths: set[Path] = set()
    token = _taken.set(paths)
    try:
        yield paths
    finally:
        _taken.reset(token)


def path_of(engine: Engine, queries: int, keys: int, heads: int) -> Path:
    """The engine that does it: "auto" takes blocks, or a GPU's parts, where scores are many.

    Args:
        engine: what was asked for.
        queries: S.
        keys: T.
        heads: of all rows, B H.
    """
    if engine != "auto":
        return engine
    if gpu.in_use():
        return "parts" if 4 * queries * keys * heads > gpu.HELD else "xla"
    return "blockwise" if queries * keys > BLOCKWISE_ABOVE else "xla"


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    valid: jax.Array | None = None,
    causal: bool = False,
    offset: int | jax.Array = 0,
    window: int | None = None,
    segments: jax.Array | None = None,
    lengths: jax.Array | None = None,
    padded_behind: bool = False,
    engine: Engine = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(hd)) v under a mask.

    Args:
        q: (B, S, H, hd), any float dtype.
        k: (B, T, KV, hd); KV divides H.
        v: (B, T, KV, hd).
        valid: (B, T) bool, True for real keys; `None`: all are real.
        causal: a query sees no key in a later slot than its own.
        offset: scalar, the slot of the first query.
        window: a query sees the last `window` real tokens up to its own slot; implies causal.
        segments: (B, T) int32, the segment of every slot: a query sees only keys of the segment of
            its own slot. Where ids ascend along a row, the blockwise engine does not read the
            blocks that lie wholly in other segments.
        lengths: (B,) int32, in place of `valid` where tokens attend to themselves: so many of a row
            are real, the first ones. What those behind them get is finite and means nothing.
        padded_behind: the padding of each row lies behind its real tokens. Of a causal attention of
            all tokens to themselves `valid` is then not read: real queries never see padding, and
            what padding gets means nothing.
        engine: "xla" holds all S x T scores; "blockwise" goes through blocks of `BLOCK` queries and
            keys with an online softmax; "parts" holds as many scores as `gpu.HELD` bytes take;
            "cudnn" is the GPU's library, for bfloat16 and float16 where nothing but `causal`,
            `window` and `lengths` hides keys. "auto" takes on a GPU cudnn where it can, else xla
            where it holds no more than that many bytes, else parts; elsewhere blockwise when
            S * T > `BLOCKWISE_ABOVE`, else xla.

    Returns:
        (B, S, H, hd) in q's dtype; scores and softmax are float32. A query that sees no key gets
        zeros.

    Raises:
        CallError: "cudnn" was asked for and cannot do it.
    """
    causal = causal or window is not None
    from_start = isinstance(offset, int) and offset == 0
    to_themselves = from_start and k.shape[1] == q.shape[1]
    if padded_behind and causal and to_themselves:
        valid = None
    if engine == "cudnn" or (engine == "auto" and gpu.in_use()):
        hidden = valid is not None or segments is not None or not from_start
        why = gpu.refusal(q, masked=hidden)
        shapes = q.shape, k.shape, q.dtype, causal, window, lengths is not None
        lacks = "" if why else gpu.missing(*shapes)
        if not (why or lacks):
            _note("cudnn")
            return gpu.attend_by_cudnn(q, k, v, causal=causal, window=window, lengths=lengths)
        if engine == "cudnn":
            raise CallError(f"cuDNN does not do this attention: {why or lacks}")
        if lacks:
            say_once("cudnn", f"cuDNN does not attend here ({lacks}): XLA does")
    batch, queries, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    grouped = q.reshape(batch, queries, kv_heads, heads // kv_heads, width)  # [B, S, KV, G, hd]
    if lengths is not None:
        valid = _first(lengths, keys)

    query_slots, key_slots = locate(queries, keys, valid, offset, window, segments)
    path = path_of(engine, queries, keys, batch * heads)
    _note(path)
    if path == "xla":
        mask = mask_of(query_slots, key_slots, causal, window)
        if gpu.in_use():
            return gpu.attend_by_heads(grouped, k, v, mask).reshape(q.shape)
        # Dividing what is mixed costs head_dim divisions a query instead of one for every key.
        weights, total = exponentials(_scores(grouped, k), mask)
        mixed = _mix(weights, v) / jnp.transpose(total, (0, 3, 1, 2))[..., None]
    elif path == "parts":
        mixed = parts.attend(
            grouped, k, v, query_slots, key_slots, causal, window, from_start=to_themselves
        )
    else:
        mixed = _blockwise(grouped, k, v, query_slots, key_slots, causal, window)
    return mixed.reshape(q.shape).astype(q.dtype)


def _first(lengths: jax.Array, size: int) -> jax.Array:
    """The first slots of each row, as a mask: (B,) to (B, size)."""
    return jnp.arange(size, dtype=jnp.int32) < lengths[:, None]


def _note(path: Path) -> None:
    paths = _taken.get()
    if paths is not None:
        paths.add(path)


def attention_rows(q: jax.Array, k: jax.Array, *, valid: jax.Array | None = None) -> jax.Array:
    """The attention probabilities of a few queries, beside an engine that never shows them.

    Args:
        q: (B, R, H, hd), the queries whose rows are wanted.
        k: (B, T, KV, hd), all keys.
        valid: (B, T) bool, the keys these queries see, or (B, R, T) for each; `None`: all.

    Returns:
        (B, H, R, T) float32; each row sums to 1, or is zero where no key is seen.
    """
    batch, rows, heads, width = q.shape
    keys, kv_heads = k.shape[1:3]
    grouped = q.reshape(batch, rows, kv_heads, heads // kv_heads, width)
    mask = valid[:, None, :] if valid is not None and valid.ndim == 2 else valid
    return softmax(_scores(grouped, k), mask).reshape(batch, heads, rows, keys)


def attention_columns(
    q: jax.Array,
    k: jax.Array,
    *,
    segments: jax.Array | None = None,
    lengths: jax.Array | None = None,
    engine: Engine = "auto",
) -> jax.Array:
    """The attention that each token receives, beside an engine that never shows it.

    Args:
        q: (B, S, H, hd), the queries of all tokens.
        k: (B, S, KV, hd), their keys.
        segments: see `attend`.
        lengths: likewise; what tokens behind them give to real ones is left out.
        engine: likewise; "blockwise" goes through the keys twice for each block of queries, since a
            probability needs its whole row.

    Returns:
        (B, S) float32: sums over queries, means over heads, of the softmax; 1 on average over the
        tokens of a segment.
    """
    batch, size, heads, width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, size, kv_heads, heads // kv_heads, width)
    if lengths is not None:  # a segment of its own for the rest
        segments = _first(lengths, size).astype(jnp.int32)
    query_slots, key_slots = locate(size, size, None, 0, None, segments)
    path = path_of(engine, size, size, batch * heads)
    if path == "xla":
        shares = softmax(_scores(grouped, k), mask_of(query_slots, key_slots, False, None))
        return jnp.sum(shares, axis=(1, 2, 3)) / heads
    if path == "parts":
        return parts.columns(grouped, k, query_slots, key_slots) / heads
    return _blockwise_columns(grouped, k, query_slots, key_slots) / heads


def seen_by(slots: jax.Array, valid: jax.Array, window: int | None = None) -> jax.Array:
    """The keys that causal queries in these slots see, for `attention_rows`.

    Args:
        slots: (B, R) int32, each row's own; T for a query that is not there.
        valid: (B, T) bool, True for real keys.
        window: see `attend`.

    Returns:
        (B, R, T) bool; nothing for a query that is not there.
    """
    keys = jnp.arange(valid.shape[1], dtype=jnp.int32)
    there = (slots < valid.shape[1])[..., None]
    mask = there & valid[:, None] & (keys <= slots[..., None])
    if window is None:
        return mask
    rank = jnp.cumsum(valid, axis=1, dtype=jnp.int32)
    own = jnp.take_along_axis(rank, jnp.minimum(slots, valid.shape[1] - 1), axis=1)
    return mask & (rank[:, None] > own[..., None] - window)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scaled scores, float32: (B, KV, G, S, T) from (B, S, KV, G, hd) and (B, T, KV, hd)."""
    if q.shape[3] == 1:  # XLA's CPU compiler is twice as fast without the group's axis
        pair = jnp.einsum("bskh,btkh->bkst", q[:, :, :, 0], k, preferred_element_type=jnp.float32)
        scores = pair[:, :, None]
    else:
        scores = jnp.einsum("bskgh,btkh->bkgst", q, k, preferred_element_type=jnp.float32)
    return scores * q.shape[-1] ** -0.5


def _mix(probabilities: jax.Array, v: jax.Array) -> jax.Array:
    """Weighted values, float32: (B, S, KV, G, hd)."""
    probabilities = probabilities.astype(v.dtype)
    if probabilities.shape[2] == 1:
        mixed = jnp.einsum(
            "bkst,btkh->bskh", probabilities[:, :, 0], v, preferred_element_type=jnp.float32
        )
        return mixed[:, :, :, None]
    # Turned afterwards: XLA's CPU compiler has no product of bfloat16 into float32 that turns a
    # result with groups, where values lie head by head as in the cache.
    mixed = jnp.einsum("bkgst,btkh->bkgsh", probabilities, v, preferred_element_type=jnp.float32)
    return jnp.transpose(mixed, (0, 3, 1, 2, 4))


def _blockwise(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_slots: Slots,
    key_slots: Slots,
    causal: bool,
    window: int | None,
) -> jax.Array:
    """Online softmax (Milakov & Gimelshein 2018) over key blocks, one query block at a time."""
    batch, queries, kv_heads, groups, width = q.shape
    keys = k.shape[1]
    q_blocks, k_blocks = -(-queries // BLOCK), -(-keys // BLOCK)
    # Rows that fill the last block: keys among them are invalid, queries are cut off at the end.
    if k_blocks * BLOCK != keys and key_slots.valid is None:
        key_slots = replace(key_slots, valid=jnp.ones((1, keys), bool))
    query_xs = (_blocks(q, 1, q_blocks), _slot_blocks(query_slots, q_blocks))
    key_xs = (_blocks(k, 1, k_blocks), _blocks(v, 1, k_blocks), _slot_blocks(key_slots, k_blocks))

    def one_query_block(xs: tuple) -> jax.Array:
        block_q, (q_slot, q_rank, _, q_segment) = xs
        here = Slots(q_slot, q_rank, segment=q_segment)

        def see(carry: tuple, block: tuple) -> tuple:
            peak, total, mixed = carry
            block_k, block_v, parts = block
            mask = mask_of(here, Slots(*parts), causal, window)
            peak, total, weights, fade = _online(peak, total, _scores(block_q, block_k), mask)
            shrunk = mixed * jnp.transpose(fade, (0, 3, 1, 2))[..., None]
            return peak, total, shrunk + _mix(weights, block_v)

        def step(carry: tuple, block: tuple) -> tuple[tuple, None]:
            if not causal and q_segment is None:
                return see(carry, block), None
            k_slot, _, _, k_segment = block[2]
            # Key blocks wholly behind the last query, or in other segments, are not read.
            hidden = k_slot[0] > q_slot[-1] if causal else jnp.array(False)
            if q_segment is not None:
                hidden |= disjoint(q_segment, k_segment)
            return jax.lax.cond(hidden, lambda c, _: c, see, carry, block), None

        rows = (batch, kv_heads, groups, BLOCK)
        start = (
            jnp.full(rows, MASKED, jnp.float32),
            jnp.zeros(rows, jnp.float32),
            jnp.zeros((batch, BLOCK, kv_heads, groups, width), jnp.float32),
        )
        (_, total, mixed), _ = jax.lax.scan(step, start, key_xs)
        total = jnp.where(total > 0, total, 1.0)
        return mixed / jnp.transpose(total, (0, 3, 1, 2))[..., None]

    mixed = jax.lax.map(one_query_block, query_xs)  # [q_blocks, B, BLOCK, KV, G, hd]
    mixed = jnp.moveaxis(mixed, 0, 1).reshape(batch, -1, kv_heads, groups, width)
    return mixed[:, :queries]


def _online(
    peak: jax.Array, total: jax.Array, scores: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One more block of keys: (peak, total, the block's weights, what earlier ones fade by).

    Peaks and totals are (B, KV, G, S), scores and weights (B, KV, G, S, T).
    """
    scores = masked(scores, mask)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    weights = weights_of(scores, mask, new_peak[..., None])
    fade = jnp.exp(peak - new_peak)
    return new_peak, total * fade + jnp.sum(weights, axis=-1), weights, fade


def _blockwise_columns(
    q: jax.Array, k: jax.Array, query_slots: Slots, key_slots: Slots
) -> jax.Array:
    """Sums over heads and queries, (B, S): each row's peak and total first, then its shares."""
    batch, size, kv_heads, groups, _ = q.shape
    count = -(-size // BLOCK)
    if count * BLOCK != size:
        key_slots = replace(key_slots, valid=jnp.ones((1, size), bool))
    query_xs = (_blocks(q, 1, count), _slot_blocks(query_slots, count))
    key_xs = (_blocks(k, 1, count), _slot_blocks(key_slots, count))

    def add(columns: jax.Array, xs: tuple) -> tuple[jax.Array, None]:
        block_q, (q_slot, _, _, q_segment) = xs
        here = Slots(q_slot, segment=q_segment)

        def seen(block: tuple) -> tuple[jax.Array, jax.Array | None]:
            block_k, parts = block
            return _scores(block_q, block_k), mask_of(here, Slots(*parts), False, None)

        def reads(block: tuple) -> jax.Array:
            segment = block[1][3]
            return jnp.array(True) if q_segment is None else ~disjoint(q_segment, segment)

        def grown(carry: tuple, block: tuple) -> tuple[jax.Array, jax.Array]:
            peak, total, _, _ = _online(carry[0], carry[1], *seen(block))
            return peak, total

        def measure(carry: tuple, block: tuple) -> tuple[tuple, None]:
            return jax.lax.cond(reads(block), grown, lambda c, _: c, carry, block), None

        rows = (batch, kv_heads, groups, BLOCK)
        start = jnp.full(rows, MASKED, jnp.float32), jnp.zeros(rows, jnp.float32)
        (peak, total), _ = jax.lax.scan(measure, start, key_xs)
        # Queries that only fill the last block give nothing.
        share = jnp.where((q_slot < size) & (total > 0), 1 / jnp.where(total > 0, total, 1.0), 0.0)

        def column(block: tuple) -> jax.Array:
            scores, mask = seen(block)
            weights = weights_of(masked(scores, mask), mask, peak[..., None])
            return jnp.sum(weights * share[..., None], axis=(1, 2, 3))  # [B, BLOCK]

        def given(block: tuple) -> jax.Array:
            nothing = jnp.zeros((batch, BLOCK), jnp.float32)
            return jax.lax.cond(reads(block), column, lambda _: nothing, block)

        return columns + jax.lax.map(given, key_xs), None

    empty = jnp.zeros((count, batch, BLOCK), jnp.float32)
    columns, _ = jax.lax.scan(add, empty, query_xs)
    return jnp.moveaxis(columns, 0, 1).reshape(batch, -1)[:, :size]


def _blocks(x: jax.Array, axis: int, count: int, fill: str = "constant") -> jax.Array:
    """Cut `axis` into `count` blocks, zero-filled at the end, and bring the block index first."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * BLOCK - x.shape[axis])
    x = jnp.pad(x, pad, mode=fill)
    x = x.reshape(*x.shape[:axis], count, BLOCK, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _slot_blocks(slots: Slots, count: int) -> tuple:
    """(slot, rank, valid, segment) in blocks; an absent part stays `None`."""
    filled = slots.slot[0] + jnp.arange(count * BLOCK, dtype=jnp.int32)
    rank = None if slots.rank is None else _blocks(slots.rank, 1, count)
    valid = None if slots.valid is None else _blocks(slots.valid, 1, count)
    # The last id again, so that filling does not widen a block's range of segments.
    segment = None if slots.segment is None else _blocks(slots.segment, 1, count, "edge")
    return _blocks(filled, 0, count), rank, valid, segment
