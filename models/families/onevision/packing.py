"""How LLaVA-OneVision packs tiles: a weighted index table for each picture, made on the host.

A picture that is alone in its prompt gives a base tile and a plane of tiles, as LLaVA-NeXT's does.
Where the part of the plane that it covers has more patches than `max_tiles` tiles, it is resized
bilinearly to about as many. One of several pictures in a prompt gives its base tile alone, a
newline token behind it; a video gives each frame, resized to half its sides, and one newline at the
end. All are the same to the model: a visual token is a weighted sum of up to four projected
patches, and one gather serves every mix of them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.methods.base import NEWLINE, PATCH
from resprune_jax.models.families.llava_next.anyres import (
    Size,
    base_coords,
    best_pinpoint,
    kept_patches,
    num_tiles,
)
from resprune_jax.models.families.onevision.config import OneVisionConfig
from resprune_jax.models.prompts import buckets

TAPS = 4
"""Patches that a visual token is made of, at most."""

# A plane is resized where its sides would shrink by more than this.
_SHRINK = 1.1

# Buckets: 50 pictures with sides of 200 to 1600 pixels fill 8 or 9 shapes; tiles are padded by 27 %
# on average, visual tokens by 25 %. The published planes have 2 to 37 tiles.
_TILES = (2, 4, 7, 12, 21, 37)
_TILE_STEP = 16
_TOKEN_RATIO = 1.6
_TOKEN_STEP = 16


@dataclass(frozen=True)
class Packed:
    """How one picture or video is packed; n visual tokens. The arrays are read-only.

    Attributes:
        tiles: T, how many the vision tower sees.
        grid: rows and columns of the tokens of the plane, or of a frame of a video; (0, 0) for a
            picture without a plane.
        index: (n, 4) int32, tile * patches_per_tile + patch.
        weight: (n, 4) float32, what each of them counts, 1 in all; 0 for newlines.
        kind: (n,) int8, `PATCH` or `NEWLINE`.
        coords: (n, 2) float32, (row, column) in patches of the tiles, as LLaVA-NeXT's.
    """

    tiles: int
    grid: tuple[int, int]
    index: np.ndarray
    weight: np.ndarray
    kind: np.ndarray
    coords: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackingTables:
    """Weighted index tables of a batch; B rows of T tiles and N visual tokens, padded to buckets.

    Attributes:
        tile_valid: (B, T) bool, False for padding.
        index: (B, N, 4) int32 into the row's T * patches_per_tile patches.
        weight: (B, N, 4) float32; 0 for newlines and padding.
        valid: (B, N) bool, False for padding.
        kind: (B, N) int8, `PATCH` or `NEWLINE`.
        coords: (B, N, 2) float32, as `Packed.coords`.
    """

    tile_valid: np.ndarray | jax.Array
    index: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    valid: np.ndarray | jax.Array
    kind: np.ndarray | jax.Array
    coords: np.ndarray | jax.Array


@lru_cache(maxsize=256)
def picture(height: int, width: int, config: OneVisionConfig) -> Packed:
    """A picture of this size that is alone in its prompt.

    Equals `pack_image_features` of transformers' LLaVA-OneVision.

    Raises:
        CallError: a picture without pixels.
    """
    pin = best_pinpoint(height, width, config)
    rows, columns, top, left = kept_patches(height, width, pin, config)
    grid, patches = config.vision.grid, config.patches_per_tile
    across = pin[1] // config.vision.image_size
    made_rows, made_columns = _limited(rows, columns, config)
    down, right = _axis(rows, made_rows), _axis(columns, made_columns)

    def patch(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        tile_row, in_row = np.divmod(row + top, grid)
        tile_column, in_column = np.divmod(column + left, grid)
        tile = 1 + tile_row * across + tile_column
        return tile * patches + in_row * grid + in_column

    plane = _plane(down, right, patch)
    line = _lines(made_rows, down.source, columns)
    base = _whole_tile(config)
    at = base_coords(height, width, pin, (top, left), config)
    joined = _behind_each_row(plane, line, made_rows)
    parts = [Packed(1, (0, 0), base.index, base.weight, base.kind, at.astype(np.float32)), joined]
    tiles = num_tiles(height, width, config)
    return _join(tiles, (made_rows, made_columns), parts)


@lru_cache(maxsize=8)
def one_of_several(config: OneVisionConfig) -> Packed:
    """One of several pictures of a prompt: its only tile, and a newline."""
    return _join(1, (0, 0), [_whole_tile(config), _end(config)])


@lru_cache(maxsize=64)
def video(frames: int, config: OneVisionConfig) -> Packed:
    """A video: its frames at half their sides, and a newline.

    Equals `apply_pooling` of transformers' LLaVA-OneVision.
    """
    grid, patches = config.vision.grid, config.patches_per_tile
    axis = _axis(grid, config.pooled)
    one = _plane(axis, axis, lambda row, column: row * grid + column)
    shift = patches * np.repeat(np.arange(frames), len(one.index))[:, None]
    index = np.tile(one.index, (frames, 1)) + shift
    kind, weight = np.tile(one.kind, frames), np.tile(one.weight, (frames, 1))
    whole = Packed(frames, one.grid, index, weight, kind, np.tile(one.coords, (frames, 1)))
    return _join(frames, one.grid, [whole, _end(config)])


def make_tables(
    rows: Sequence[Sequence[Packed]], config: OneVisionConfig, *, batch: int | None = None
) -> PackingTables:
    """Lay out a batch.

    Args:
        rows: each row's pictures and videos, in order.
        config: for the sizes.
        batch: the static B; default `len(rows)`. Rows beyond repeat row 0.

    Returns:
        The tables, NumPy arrays; T and N are the buckets of the longest row's.

    Raises:
        CallError: no row, or a row without a picture.
    """
    if not rows or not all(len(row) for row in rows):
        raise CallError("no image was given: every row of a batch holds at least one")
    tiles = tile_bucket(max(sum(own.tiles for own in row) for row in rows))
    tokens = token_bucket(max(sum(len(own.index) for own in row) for row in rows))
    batch = len(rows) if batch is None else batch
    shape = (batch, tokens)
    tables = PackingTables(
        tile_valid=np.zeros((batch, tiles), bool),
        index=np.zeros((*shape, TAPS), np.int32),
        weight=np.zeros((*shape, TAPS), np.float32),
        valid=np.zeros(shape, bool),
        kind=np.full(shape, PATCH, np.int8),
        coords=np.zeros((*shape, 2), np.float32),
    )
    for at in range(batch):
        tile = token = 0
        for own in rows[at if at < len(rows) else 0]:
            here = slice(token, token + len(own.index))
            tables.index[at, here] = own.index + tile * config.patches_per_tile
            tables.weight[at, here] = own.weight
            tables.valid[at, here] = True
            tables.kind[at, here] = own.kind
            tables.coords[at, here] = own.coords
            tile, token = tile + own.tiles, token + len(own.index)
        tables.tile_valid[at, :tile] = True
    return tables


def tile_bucket(tiles: int) -> int:
    """Tiles and frames a row, T: those of `_TILES`, multiples of 16 beyond."""
    found = next((size for size in _TILES if size >= tiles), None)
    return buckets.multiple(tiles, _TILE_STEP) if found is None else found


def token_bucket(tokens: int) -> int:
    """Visual tokens a row, N: multiples of 16, each 1.6 times the one before."""
    size = _TOKEN_STEP
    while size < tokens:
        size = buckets.multiple(math.ceil(size * _TOKEN_RATIO), _TOKEN_STEP)
    return size


@dataclass(frozen=True)
class _Axis:
    """Bilinear resizing along one axis, n places to m; `align_corners=False`, no antialiasing."""

    low: np.ndarray  # [m] int
    high: np.ndarray  # [m] int
    share: np.ndarray  # [m] float32, of `high`
    source: np.ndarray  # [m] float32, the place that is read


def _axis(n: int, m: int) -> _Axis:
    """The taps of torch's `interpolate`; float32, as there."""
    if n == m:
        same = np.arange(n)
        return _Axis(same, same, np.zeros(n, np.float32), same.astype(np.float32))
    scale = np.float32(n) / np.float32(m)
    place = (np.arange(m, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.maximum(place, 0)
    low = np.minimum(place.astype(np.int64), n - 1)
    high = np.minimum(low + 1, n - 1)
    return _Axis(low, high, (place - low).astype(np.float32), place)


def _plane(
    down: _Axis, right: _Axis, patch: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Packed:
    """Tokens of a plane in raster order; `patch` gives a patch's number from its row and column."""
    taps, weights = [], []
    one = np.float32(1)
    for row, of_row in ((down.low, one - down.share), (down.high, down.share)):
        for column, of_column in ((right.low, one - right.share), (right.high, right.share)):
            taps.append(patch(row[:, None], column[None, :]).reshape(-1))
            weights.append((of_row[:, None] * of_column[None, :]).reshape(-1))
    coords = np.stack(np.meshgrid(down.source, right.source, indexing="ij"), axis=-1)
    index = np.stack(taps, axis=-1).astype(np.int32)
    kind = np.full(len(index), PATCH, np.int8)
    grid = (len(down.low), len(right.low))
    return Packed(0, grid, index, np.stack(weights, axis=-1), kind, coords.reshape(-1, 2))


def _whole_tile(config: OneVisionConfig) -> Packed:
    """A tile's patches as they are."""
    grid = config.vision.grid
    axis = _axis(grid, grid)
    return _plane(axis, axis, lambda row, column: row * grid + column)


def _end(config: OneVisionConfig) -> Packed:
    """The newline behind a single tile or a video, right of its last row."""
    grid = config.vision.grid
    return _lines(1, np.array([grid - 1], np.float32), grid)


def _lines(count: int, rows: np.ndarray, column: int) -> Packed:
    """So many newline tokens, each in its row, in one column."""
    coords = np.stack([rows, np.full(count, column, np.float32)], axis=-1)
    index = np.zeros((count, TAPS), np.int32)
    kind = np.full(count, NEWLINE, np.int8)
    return Packed(0, (0, 0), index, np.zeros((count, TAPS), np.float32), kind, coords)


def _behind_each_row(plane: Packed, line: Packed, rows: int) -> Packed:
    """A plane's tokens with a newline behind each row."""

    def both(tokens: np.ndarray, newlines: np.ndarray) -> np.ndarray:
        rest = tokens.shape[1:]
        shaped = tokens.reshape(rows, plane.grid[1], *rest)
        return np.concatenate([shaped, newlines[:, None]], axis=1).reshape(-1, *rest)

    names = ("index", "weight", "kind", "coords")
    index, weight, kind, coords = (both(getattr(plane, n), getattr(line, n)) for n in names)
    return Packed(0, plane.grid, index, weight, kind, coords)


def _join(tiles: int, grid: tuple[int, int], parts: Sequence[Packed]) -> Packed:
    """Parts one behind the other, their arrays read-only."""
    arrays = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("index", "weight", "kind", "coords")
    ]
    for array in arrays:
        array.setflags(write=False)
    return Packed(tiles, grid, *arrays)


def _limited(rows: int, columns: int, config: OneVisionConfig) -> Size:
    """The size that so many rows and columns of patches are resized to."""
    ratio = math.sqrt(rows * columns / (config.max_tiles * config.patches_per_tile))
    if ratio <= _SHRINK:
        return rows, columns
    made = int(rows // ratio), int(columns // ratio)
    if min(made) < 1:
        raise CallError(
            f"an image of {rows} x {columns} patches cannot be resized to those of "
            f"{config.max_tiles} tiles: crop it"
        )
    return made
