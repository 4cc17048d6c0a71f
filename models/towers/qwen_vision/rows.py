"""Rows of patches that attend to one another: windows, and for a GPU whole frames.

Blocks that attend to whole frames go through the packed sequence in small blocks on other backends,
and leave out those of other frames. A GPU wants few large products in place of that: frames lie in
rows, as windows do, and a row is attended to as a whole. The tables are made on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.models.decoder.attention import Engine

ROOM = 4
"""Slots for a patch of the bucket, at most, where every frame has a row of its own."""


Table = np.ndarray | jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Where P patches lie in R rows of L slots.

    Attributes:
        index: (R, L) int32, the patch in each slot; P where it is empty. `None`: the packed
            sequence is the only row, and L is P.
        slot: (P,) int32, the slot (row * L + column) of each patch; R * L for one that is in no
            row. `None` likewise.
        segments: (R, L) int32, see `attend`; -1 where a slot is empty.
        lengths: (R,) int32, likewise: rows that hold one frame each, from the first slot on.
        engine: likewise.
    """

    index: Table | None = None
    slot: Table | None = None
    segments: Table | None = None
    lengths: Table | None = None
    engine: Engine = field(default="auto", metadata={"static": True})

    def gather(self, values: jax.Array) -> jax.Array:
        """(P, ...) to (R, L, ...), 0 in empty slots."""
        if self.index is None:
            return values[None]
        return jnp.take(values, self.index, axis=0, mode="fill", fill_value=0)

    def back(self, values: jax.Array) -> jax.Array:
        """(R, L, ...) to (P, ...), 0 for what is in no row."""
        flat = values.reshape(-1, *values.shape[2:])
        if self.slot is None:
            return flat
        return jnp.take(flat, self.slot, axis=0, mode="fill", fill_value=0)

    def options(self) -> dict[str, Any]:
        """What `attend` and `attention_columns` are told."""
        segments = None if self.segments is None else jnp.asarray(self.segments)
        lengths = None if self.lengths is None else jnp.asarray(self.lengths)
        return {"segments": segments, "lengths": lengths, "engine": self.engine}


def frame_rows(frames: Sequence[int], patches: int, length: int) -> Rows:
    """Lay out the frames.

    A row each where `ROOM` allows it, since cuDNN knows lengths and no segments; else frames share
    rows, so that a large picture among many small ones does not make every row as long as itself.

    Args:
        frames: patches of each frame, in packed order.
        patches: the static P.
        length: slots of a row, at least the longest frame's.
    """
    sizes = np.asarray(frames)
    if len(sizes) == 1:
        return Rows(lengths=sizes.astype(np.int32))
    rows, lengths = _row_bucket(len(sizes)), None
    if rows * length <= ROOM * patches:
        place = np.arange(len(sizes)) * length
        lengths = np.zeros(rows, np.int32)
        lengths[: len(sizes)] = sizes
    else:
        place, used = pack(sizes, length)
        rows = _row_bucket(used)
    frame = np.repeat(np.arange(len(sizes)), sizes)  # [real]
    real = len(frame)
    slot = np.full(patches, rows * length, np.int32)
    slot[:real] = place[frame] + np.arange(real) - (np.cumsum(sizes) - sizes)[frame]
    index = np.full(rows * length, patches, np.int32)
    index[slot[:real]] = np.arange(real)
    own: np.ndarray | None = None
    if lengths is None:
        own = np.full(rows * length, -1, np.int32)
        own[slot[:real]] = frame
        own = own.reshape(rows, length)
    return Rows(index.reshape(rows, length), slot, own, lengths)


def pack(sizes: np.ndarray, slots: int) -> tuple[np.ndarray, int]:
    """Put pieces into rows of `slots`, first-fit decreasing.

    Whole ones fill a row each; smaller ones share rows, which is what keeps the number of rows of
    windows near patches / slots for long, thin images too.

    Returns:
        (the first slot of each piece, counted through the rows; rows used).
    """
    place = np.empty(len(sizes), np.int64)
    full = np.flatnonzero(sizes == slots)
    place[full] = np.arange(len(full)) * slots
    rows = len(full)
    waiting = {
        int(size): list(np.flatnonzero(sizes == size)[::-1])
        for size in np.unique(sizes)[::-1]
        if size != slots
    }
    while any(waiting.values()):
        free = slots
        for size, own in waiting.items():  # largest first
            while own and size <= free:
                place[own.pop()] = (rows + 1) * slots - free
                free -= size
        rows += 1
    return place, rows


def _row_bucket(rows: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, ...: few counts of rows, so that few programs are compiled."""
    bucket = 1
    while bucket < rows:
        half = bucket * 3 // 2
        if bucket > 1 and half >= rows:
            return half
        bucket *= 2
    return bucket
