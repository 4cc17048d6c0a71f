"""What the vision tower made of pictures, kept in the host's memory for further questions."""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from resprune_jax.methods import VisualTokens
from resprune_jax.models.families.base import ImageLayout, Layouts
from resprune_jax.models.prompts import buckets
from resprune_jax.models.running.encoded import Encoded

ARRAYS = tuple(each.name for each in fields(VisualTokens) if each.name not in ("blocks", "layer"))


@dataclass(frozen=True)
class Row:
    """The visual tokens of a prompt's pictures.

    Attributes:
        visual: arrays of NumPy, (1, N, ...) each.
        layout: what the host knows of the pictures.
    """

    visual: VisualTokens
    layout: tuple[ImageLayout, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (getattr(self.visual, name) for name in ARRAYS)
        return sum(each.nbytes for each in arrays if each is not None)


def split(encoded: Encoded) -> list[Row]:
    """The rows of what `LVLM.encode` gave, on the host; every row has pictures."""
    host = jax.device_get(encoded.visual)
    return [
        Row(jax.tree.map(lambda x, at=at: np.array(x[at : at + 1]), host), layout)
        for at, layout in enumerate(encoded.layouts)
    ]


def join(rows: Sequence[Row]) -> Encoded:
    """Rows as one batch in its bucket, as `LVLM.encode` would have given it.

    Shorter rows are padded to the longest, rows beyond the last repeat the first.
    """
    most = max(row.visual.valid.shape[1] for row in rows)
    size = buckets.batch_bucket(len(rows))
    filled = [*rows, *[rows[0]] * (size - len(rows))]

    def together(name: str) -> Any:
        parts = [getattr(row.visual, name) for row in filled]
        if any(part is None for part in parts):
            return None
        made = np.zeros((size, most, *parts[0].shape[2:]), parts[0].dtype)
        for at, part in enumerate(parts):
            made[at, : part.shape[1]] = part[0]
        return made

    joined = replace(rows[0].visual, **{name: together(name) for name in ARRAYS})
    layouts: Layouts = tuple(row.layout for row in rows)
    return Encoded(jax.device_put(joined), layouts)


class ImageCache:
    """The rows that were used last, within a limit of bytes.

    Args:
        most: bytes; 0 keeps nothing.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._rows: OrderedDict[Hashable, Row] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: Hashable) -> Row | None:
        """The row of these pictures, if it is still there."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += 1
                return None
            self.hits += 1
            self._rows.move_to_end(key)
            return row

    def put(self, key: Hashable, row: Row) -> None:
        """Keep a row, and let go of those that were used longest ago."""
        size = row.size
        with self._lock:
            if size > self.most or key in self._rows:
                return
            self._rows[key] = row
            self.bytes += size
            while self.bytes > self.most:
                _, old = self._rows.popitem(last=False)
                self.bytes -= old.size
