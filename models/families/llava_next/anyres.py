"""Anyres: how LLaVA-NeXT cuts a picture into tiles and packs their patches, made on the host.

A picture gives one base tile (all of it, squeezed into a square) and the tiles of the pinpoint that
holds most of it. Packed are the base tile's patches in raster order, then the rows of the tile
plane that the picture covers, a newline token behind each. All of this depends on the picture's
size alone, so it is one index table for each size: the compiled model gathers with it, once, and
one program serves every size in a bucket.

Sizes are (height, width) in pixels throughout, as Hugging Face's `image_sizes`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.methods.base import NEWLINE, PATCH
from resprune_jax.models.families.llava_next.config import DEFAULT_PINPOINTS, Pinpoint

NO_PATCH = -1
"""What an index table holds where no patch is gathered: newlines and padding."""

Size = tuple[int, int]


class Tiled(Protocol):
    """What an architecture says of its tiles; `LlavaNextConfig` for one."""

    @property
    def vision(self) -> Any: ...

    @property
    def image_grid_pinpoints(self) -> tuple[Pinpoint, ...]: ...

    @property
    def patches_per_tile(self) -> int: ...

    def __hash__(self) -> int: ...


# Visual tokens a row for the published pinpoints and 576 patches a tile, by tiles: six shapes of
# four lengths, since the decoder compiles for each length. Over pictures with sides of 50 to 4000
# pixels they pad by 33 % on average, over photographs by 16 %; 2340 and 2352 tokens, those of 4:3
# photographs, fit 2432.
_PUBLISHED = {3: (1216, 1792), 4: (1216, 2432), 5: (2432, 2944)}
_PUBLISHED_GRID = 24

_TOKEN_STEP = 16  # buckets of visual tokens are multiples of it
_LARGE_STEP = 256  # of those for rows of several pictures

# A bucket of tiles is kept only if it is this much smaller than the next.
_TILE_RATIO = 1.2


@dataclass(frozen=True)
class Packing:
    """How one picture's tiles are packed; n visual tokens. The arrays are read-only.

    Attributes:
        size: (height, width) of the picture, in pixels.
        pinpoint: (height, width) of the tile plane, in pixels.
        tiles: T, the base tile counted; tile 0 is the base, the others follow in raster order.
        rows: rows of patches of the tile plane that the picture covers, 0 for extreme shapes.
        columns: the same for columns.
        index: (n,) int32, tile * patches_per_tile + patch; `NO_PATCH` for newlines.
        kind: (n,) int8, `PATCH` or `NEWLINE`.
        coords: (n, 2) float32, (row, column) in the picture's plane, in patches of the tiles: (0,
            0) is the first packed patch of the tiles, a newline is one column behind its row, and a
            patch of the base tile is where its middle lies, between them.
    """

    size: Size
    pinpoint: Pinpoint
    tiles: int
    rows: int
    columns: int
    index: np.ndarray
    kind: np.ndarray
    coords: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnyresTables:
    """Index tables of a batch; B rows of T tiles and N visual tokens, both padded to buckets.

    Attributes:
        tile_valid: (B, T) bool, False for padding.
        index: (B, N) int32 into the row's T * patches_per_tile patches; `NO_PATCH` for newlines and
            padding.
        valid: (B, N) bool, False for padding.
        kind: (B, N) int8, `PATCH` or `NEWLINE`.
        coords: (B, N, 2) float32, as `Packing.coords`, each picture in its own plane.
        tile: (B, N, 3) int32, see `VisualTokens.tile`.
    """

    tile_valid: np.ndarray | jax.Array
    index: np.ndarray | jax.Array
    valid: np.ndarray | jax.Array
    kind: np.ndarray | jax.Array
    coords: np.ndarray | jax.Array
    tile: np.ndarray | jax.Array


def best_pinpoint(height: int, width: int, config: Tiled) -> Pinpoint:
    """The pinpoint that keeps most pixels of a picture and, among those, wastes fewest of its own.

    Args:
        height: of the picture, in pixels.
        width: the same.
        config: for the pinpoints; the first wins where two are equally good.

    Returns:
        (height, width) of the tile plane, in pixels.

    Raises:
        CallError: a picture without pixels.
    """
    _check_size(height, width)

    def merit(pin: Pinpoint) -> tuple[int, int]:
        scale = min(pin[1] / width, pin[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - pin[0] * pin[1]

    return max(config.image_grid_pinpoints, key=merit)


def num_tiles(height: int, width: int, config: Tiled) -> int:
    """Tiles of a picture of this size, the base tile counted; see `best_pinpoint`."""
    return _plane_tiles(best_pinpoint(height, width, config), config)


def num_tokens(height: int, width: int, config: Tiled) -> int:
    """Visual tokens of a picture of this size, newlines counted; see `best_pinpoint`."""
    rows, columns, _, _ = kept_patches(height, width, best_pinpoint(height, width, config), config)
    return config.patches_per_tile + rows * (columns + 1)


@lru_cache(maxsize=256)
def packing(height: int, width: int, config: Tiled) -> Packing:
    """How the tiles of a picture of this size are packed.

    Equals `pack_image_features` of transformers' LLaVA-NeXT with `spatial_unpad`.

    Args:
        height: of the picture, in pixels.
        width: the same.
        config: for pinpoints and patches.

    Returns:
        The packing, cached by size.

    Raises:
        CallError: a picture without pixels.
    """
    pin = best_pinpoint(height, width, config)
    rows, columns, top, left = kept_patches(height, width, pin, config)
    grid, patches = config.vision.grid, config.patches_per_tile
    across = pin[1] // config.vision.image_size  # tiles in a row of tiles

    tile_row, in_row = np.divmod(np.arange(top, top + rows), grid)
    tile_column, in_column = np.divmod(np.arange(left, left + columns), grid)
    tile = 1 + tile_row[:, None] * across + tile_column  # [rows, columns]
    plane = np.full((rows, columns + 1), NO_PATCH)
    plane[:, :columns] = tile * patches + in_row[:, None] * grid + in_column
    places = np.moveaxis(np.indices(plane.shape), 0, -1)  # [rows, columns + 1, 2]

    index = np.concatenate([np.arange(patches), plane.ravel()]).astype(np.int32)
    base = base_coords(height, width, pin, (top, left), config)
    coords = np.concatenate([base, places.reshape(-1, 2)]).astype(np.float32)
    kind = np.where(index == NO_PATCH, NEWLINE, PATCH).astype(np.int8)
    for array in (index, kind, coords):
        array.setflags(write=False)
    tiles = _plane_tiles(pin, config)
    return Packing((height, width), pin, tiles, rows, columns, index, kind, coords)


def make_tables(
    rows: Sequence[Sequence[Size]],
    config: Tiled,
    *,
    tiles: int | None = None,
    tokens: int | None = None,
    batch: int | None = None,
) -> AnyresTables:
    """Lay out a batch.

    Args:
        rows: the sizes of each row's pictures, in order; most rows have one.
        config: for pinpoints and patches.
        tiles: the static T, at least the longest row's tiles; default the bucket of them.
        tokens: the static N, at least the longest row's tokens; default the bucket of them.
        batch: the static B; default `len(rows)`. Rows beyond repeat row 0.

    Returns:
        The tables, NumPy arrays.

    Raises:
        CallError: no row, a row without a picture, a picture without pixels, or a static size that
            is too small.
    """
    if not rows or not all(len(row) for row in rows):
        raise CallError("no image was given: every row of a batch holds at least one")
    packed = [[packing(int(h), int(w), config) for h, w in row] for row in rows]
    most_tiles = max(sum(own.tiles for own in row) for row in packed)
    most_tokens = max(sum(len(own.index) for own in row) for row in packed)
    tiles = tile_bucket(most_tiles, config) if tiles is None else tiles
    tokens = token_bucket(most_tokens, tiles, config) if tokens is None else tokens
    batch = len(rows) if batch is None else batch
    for what, given, least in (
        ("tiles", tiles, most_tiles),
        ("visual tokens", tokens, most_tokens),
        ("rows", batch, len(rows)),
    ):
        if given < least:
            raise CallError(f"{given} {what} are too few for this batch, which has {least}")

    shape = (batch, tokens)
    tables = AnyresTables(
        tile_valid=np.zeros((batch, tiles), bool),
        index=np.full(shape, NO_PATCH, np.int32),
        valid=np.zeros(shape, bool),
        kind=np.full(shape, PATCH, np.int8),
        coords=np.zeros((*shape, 2), np.float32),
        tile=np.zeros((*shape, 3), np.int32),
    )
    side = config.vision.image_size
    for at in range(batch):
        tile = token = 0
        for own in packed[at if at < len(packed) else 0]:
            here = slice(token, token + len(own.index))
            shift = np.where(own.index == NO_PATCH, 0, tile * config.patches_per_tile)
            tables.index[at, here] = own.index + shift
            tables.valid[at, here] = True
            tables.kind[at, here] = own.kind
            tables.coords[at, here] = own.coords
            # A newline's `NO_PATCH` is rounded down, to -1.
            tables.tile[at, here, 0] = own.index // config.patches_per_tile
            tables.tile[at, here, 1:] = np.array(own.pinpoint) // side
            tile, token = tile + own.tiles, token + len(own.index)
        tables.tile_valid[at, :tile] = True
    return tables


def tile_bucket(tiles: int, config: Tiled) -> int:
    """Tiles a row, T: those that single pictures have, even numbers beyond.

    Args:
        tiles: of the row with most, at least 1.
        config: for the pinpoints; of their tile counts, those that lie close together share one.

    Returns:
        The smallest bucket that holds them.

    Raises:
        CallError: no tile.
    """
    if tiles < 1:
        raise CallError(f"a row has at least one tile, got {tiles}")
    own = tile_buckets(config)
    return next((size for size in own if size >= tiles), 2 * -(-tiles // 2))


def token_bucket(tokens: int, tiles: int, config: Tiled) -> int:
    """Visual tokens a row, N: two sizes for each number of tiles of single pictures.

    The second is the most that pictures of so many tiles can have; rows of several pictures take
    multiples of 256.

    Args:
        tokens: of the row with most, at least 1.
        tiles: T, from `tile_bucket`.
        config: for pinpoints and patches.

    Returns:
        The smallest bucket that holds them.

    Raises:
        CallError: no token.
    """
    if tokens < 1:
        raise CallError(f"a row has at least one visual token, got {tokens}")
    own = _token_buckets(tiles, config)
    return next((size for size in own if size >= tokens), _LARGE_STEP * -(-tokens // _LARGE_STEP))


def image_buckets(config: Tiled) -> tuple[tuple[int, int], ...]:
    """Every (T, N) that a batch of one picture a row can have: what a warm-up compiles."""
    return tuple(
        (tiles, tokens) for tiles in tile_buckets(config)
        for tokens in _token_buckets(tiles, config)
    )  # fmt: skip


def _plane_tiles(pin: Pinpoint, config: Tiled) -> int:
    """Tiles of a pinpoint, the base tile counted."""
    side = config.vision.image_size
    return 1 + (pin[0] // side) * (pin[1] // side)


@lru_cache(maxsize=64)
def tile_buckets(config: Tiled) -> tuple[int, ...]:
    """Ascending; the published pinpoints give 3, 4 and 5."""
    counts = sorted({_plane_tiles(pin, config) for pin in config.image_grid_pinpoints})
    kept = [counts.pop()]
    while counts:
        size = counts.pop()
        if kept[-1] >= _TILE_RATIO * size:
            kept.append(size)
    return tuple(reversed(kept))


@lru_cache(maxsize=256)
def _token_buckets(tiles: int, config: Tiled) -> tuple[int, ...]:
    """The buckets of rows of so many tiles, ascending; none where no single picture has as many."""
    if tiles not in tile_buckets(config):
        return ()
    if config.vision.grid == _PUBLISHED_GRID and tiles in _PUBLISHED and _published_planes(config):
        return _PUBLISHED[tiles]
    grid, side = config.vision.grid, config.vision.image_size
    most = max(
        config.patches_per_tile + (h // side * grid) * (w // side * grid + 1)
        for h, w in config.image_grid_pinpoints
        if _plane_tiles((h, w), config) <= tiles
    )
    middle = (config.patches_per_tile + most) // 2
    return tuple(sorted({_TOKEN_STEP * -(-size // _TOKEN_STEP) for size in (middle, most)}))


def _published_planes(config: Tiled) -> bool:
    """Whether the pinpoints are the published ones, in tiles and in any order."""
    side, published = config.vision.image_size, DEFAULT_PINPOINTS[0][0]
    own = {(h // side, w // side) for h, w in config.image_grid_pinpoints}
    return own == {(h // published, w // published) for h, w in DEFAULT_PINPOINTS}


def kept_patches(
    height: int, width: int, pin: Pinpoint, config: Tiled
) -> tuple[int, int, int, int]:
    """(rows, columns, first row, first column) of the plane's patches that the picture covers.

    Padding lies above and below, or left and right, as many on either side: where their number is
    odd, one row or column of padding stays. A side that shrinks below one patch leaves none.
    """
    grid, side = config.vision.grid, config.vision.image_size
    rows, columns = pin[0] // side * grid, pin[1] // side * grid
    # Rounded as in the reference: for 55 x 88 pixels the exact 15 patches come out a little below.
    if width / height > columns / rows:
        shrunk = int(round(height * (columns / width), 7))
        top = (rows - shrunk) // 2
        return rows - 2 * top, columns, top, 0
    shrunk = int(round(width * (rows / height), 7))
    left = (columns - shrunk) // 2
    return rows, columns - 2 * left, 0, left


def base_coords(
    height: int, width: int, pin: Pinpoint, first: tuple[int, int], config: Tiled
) -> np.ndarray:
    """Where the middle of each patch of the base tile lies in the plane of the tiles (P, 2)."""
    grid = config.vision.grid
    steps = (np.arange(grid) + 0.5) / grid  # parts of the picture's side
    axes = []
    for whole, resized, begin in zip(pin, _resized(height, width, pin), first, strict=True):
        pixel = (whole - resized) // 2 + steps * resized  # the picture lies in the plane's middle
        axes.append(pixel * grid / config.vision.image_size - 0.5 - begin)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _resized(height: int, width: int, pin: Pinpoint) -> Size:
    """The size at which a picture lies in the plane of its tiles, its aspect ratio kept."""
    by_height, by_width = pin[0] / height, pin[1] / width
    if by_width < by_height:
        return min(math.ceil(height * by_width), pin[0]), pin[1]
    return pin[0], min(math.ceil(width * by_height), pin[1])


def _check_size(height: int, width: int) -> None:
    """Refuse a picture without pixels."""
    if height < 1 or width < 1:
        raise CallError(f"a picture of {width} x {height} pixels has none to tile")
