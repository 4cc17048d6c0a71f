"""Where each patch of a packed batch sits: the vision tower's static shapes, made on the host.

Images and videos of any size go into one sequence of patches, one behind the other, padded to a
bucket. All that depends on their sizes is in index tables, so that one compiled tower serves every
mix of sizes in a bucket. The sequence keeps the processor's order: frame by frame, merged cell by
merged cell in raster order, the patches of a cell together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.models.decoder import gpu
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.rows import Rows, frame_rows, pack

PATCH_BUCKETS = (
    *(64, 128, 192, 320, 512, 1024, 2048, 3328, 5376, 8704),
    *(13312, 20480, 30720, 43008, 65536),
)
"""Patches of a packed batch: four times 16, 32, 48, ... visual tokens. Steps of about 1.6 where
pictures mostly are: random sizes with sides of 320 to 1280 pixels use five of them and are padded
by 30 % on average, those of 448 to 1280 pixels four. Larger batches take multiples of
`_LARGE_STEP`."""

_LARGE_STEP = 16384

# Rows of windows for each patch bucket, over those that whole windows would fill. Images of 224 to
# 4000 pixels a side fill 1.03 on average; a mix that needs more goes into the next bucket.
_WINDOW_ROOM = 1.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionTables:
    """Index tables of a packed batch; P patches, W rows of L window slots, B rows of N tokens.

    Attributes:
        coords: (P, 2) int32, (row, column) of each patch in its frame; 0 for padding.
        segments: (P,) int32, the frame of each patch, ascending; padding is a segment of its own.
        windows: (W, L) int32, the patch in each window slot; P where the slot is empty. Windows cut
            by an edge share rows.
        window_segments: (W, L) int32, the window of each slot; -1 where it is empty.
        window_slot: (P,) int32, the slot (row * L + column) of each patch; W * L for padding.
        tokens: (B, N) int32, which merged cell is each visual token; P / merge_unit for padding.
        token_coords: (B, N, 2) float32, (row, column) of each token in its frame, in merged cells.
        frames: the frames as rows, for a GPU; `None` for other backends, which read `segments`.
    """

    coords: np.ndarray | jax.Array
    segments: np.ndarray | jax.Array
    windows: np.ndarray | jax.Array
    window_segments: np.ndarray | jax.Array
    window_slot: np.ndarray | jax.Array
    tokens: np.ndarray | jax.Array
    token_coords: np.ndarray | jax.Array
    frames: Rows | None = None

    def rows(self, *, windowed: bool) -> Rows:
        """What patches attend inside of: windows, or whole frames."""
        if windowed:  # small enough for all scores of a head, on every backend
            return Rows(self.windows, self.window_slot, self.window_segments, engine="xla")
        if self.frames is not None:
            return self.frames
        return Rows(segments=self.segments[None])  # [1, P]


@dataclass(frozen=True)
class _Frame:
    """One frame of a grid: what repeats for every frame of a video."""

    coords: np.ndarray  # [h * w, 2]
    window: np.ndarray  # [h * w], window of each patch, raster order of windows
    sizes: np.ndarray  # patches of each window


def make_tables(
    grids: Sequence[Sequence[int]] | np.ndarray,
    config: QwenVisionConfig,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    patches: int | None = None,
    tokens: int | None = None,
    batch: int | None = None,
) -> VisionTables:
    """Lay out a packed batch.

    Args:
        grids: (n, 3) frames, rows and columns of patches of each image or video, in packed order.
        config: the vision tower.
        rows: which of them each of B rows holds, in order; default: one row each.
        patches: the static P, at least what `patch_bucket` gives; default that.
        tokens: the static N, at least the longest row's tokens; default the bucket of them.
        batch: the static B; default `len(rows)`. Rows beyond repeat row 0.

    Returns:
        The tables, NumPy arrays.

    Raises:
        CallError: no grid, a grid that is not whole merged cells, a row of an unknown grid, or a
            static size that is too small.
    """
    checked = _check_grids(grids, config)
    frames = [_frame(h, w, config) for t, h, w in checked for _ in range(t)]
    sizes = np.concatenate([frame.sizes for frame in frames])
    place, used = pack(sizes, config.window_patches)
    real = sum(len(frame.coords) for frame in frames)
    least = patch_bucket(real, used, config)
    size = least if patches is None else patches
    slots = config.window_patches
    if size % config.merge_unit or size < real or window_rows(size, config) < used:
        raise CallError(
            f"{size} patches are too few for images of {real} patches in {used} rows of windows: "
            f"the smallest bucket is {least}"
        )
    count = window_rows(size, config)

    # Windows are numbered through the batch; patches of one window keep their order.
    first = np.cumsum([0, *(len(frame.sizes) for frame in frames[:-1])])
    window = np.concatenate(
        [frame.window + base for frame, base in zip(frames, first, strict=True)]
    )
    order = np.argsort(window, kind="stable")
    begins = np.cumsum(sizes) - sizes
    slot = np.full(size, count * slots, np.int32)
    slot[order] = place[window[order]] + np.arange(real) - begins[window[order]]
    windows = np.full(count * slots, size, np.int32)
    windows[slot[:real]] = np.arange(real)
    window_segments = np.full(count * slots, -1, np.int32)
    window_segments[slot[:real]] = window

    coords = np.zeros((size, 2), np.int32)
    coords[:real] = np.concatenate([frame.coords for frame in frames])
    segments = np.full(size, len(frames), np.int32)
    segments[:real] = np.repeat(np.arange(len(frames)), [len(frame.coords) for frame in frames])
    index, token_coords = _token_rows(checked, config, rows, size, tokens, batch)
    framed = None
    if gpu.in_use():
        counts = [len(frame.coords) for frame in frames]
        framed = frame_rows(counts, size, patch_bucket(max(counts), 1, config))
    return VisionTables(
        coords=coords,
        segments=segments,
        windows=windows.reshape(count, slots),
        window_segments=window_segments.reshape(count, slots),
        window_slot=slot,
        tokens=index,
        token_coords=token_coords,
        frames=framed,
    )


def patch_bucket(patches: int, rows: int, config: QwenVisionConfig) -> int:
    """The bucket of a packed batch.

    Args:
        patches: real patches.
        rows: rows of windows that they need, at least 1.
        config: the vision tower.

    Returns:
        The smallest bucket with room for both.

    Raises:
        CallError: no patch.
    """
    if patches < 1 or rows < 1:
        raise CallError(f"a packed batch has at least one patch, got {patches} in {rows} rows")
    for size in PATCH_BUCKETS:
        if size >= patches and window_rows(size, config) >= rows:
            return size
    room = int(np.ceil(rows * config.window_patches / _WINDOW_ROOM))
    return _LARGE_STEP * -(-max(patches, room) // _LARGE_STEP)


def token_bucket(tokens: int, config: QwenVisionConfig) -> int:
    """The bucket of visual tokens a row: a patch bucket's worth of merged cells.

    A single image thus has as many slots for tokens as the tower gives merged cells.

    Args:
        tokens: of the longest row, at least 1.
        config: the vision tower.

    Returns:
        The smallest bucket that holds them.
    """
    return patch_bucket(tokens * config.merge_unit, 1, config) // config.merge_unit


def window_rows(patches: int, config: QwenVisionConfig) -> int:
    """Rows of window slots, W, of a patch bucket."""
    return int(np.ceil(patches / config.window_patches * _WINDOW_ROOM))


def num_tokens(grid: Sequence[int] | np.ndarray, config: QwenVisionConfig) -> int:
    """Visual tokens of an image or a video with this grid (frames, rows, columns of patches)."""
    frames, rows, columns = (int(n) for n in grid)
    return frames * rows * columns // config.merge_unit


def _check_grids(
    grids: Sequence[Sequence[int]] | np.ndarray, config: QwenVisionConfig
) -> list[tuple[int, int, int]]:
    """The grids as whole numbers, if each holds whole merged cells."""
    checked = [tuple(int(n) for n in grid) for grid in grids]
    if not checked:
        raise CallError("no image was given to the vision tower")
    side = config.spatial_merge_size
    for grid in checked:
        if len(grid) != 3 or min(grid) < 1 or grid[1] % side or grid[2] % side:
            raise CallError(
                f"a grid is (frames, rows, columns) in patches with rows and columns in multiples "
                f"of {side}, got {grid}"
            )
    return checked  # type: ignore[return-value]


@lru_cache(maxsize=256)
def _frame(height: int, width: int, config: QwenVisionConfig) -> _Frame:
    """Coordinates and windows of the patches of one frame of `height` x `width` patches."""
    side, cells = config.spatial_merge_size, config.window_cells
    rows, columns = np.divmod(np.arange(height * width), width)
    coords = np.stack([rows, columns], axis=-1)  # [h * w, 2], raster order of patches
    blocks = (height // side, side, width // side, side, 2)
    coords = coords.reshape(blocks).swapaxes(1, 2).reshape(-1, 2).astype(np.int32)
    across = -(-(width // side) // cells)  # windows in a row of windows
    in_rows, in_columns = (coords // (side * cells)).T
    window = in_rows * across + in_columns
    return _Frame(coords, window, np.bincount(window))


def _token_rows(
    grids: list[tuple[int, int, int]],
    config: QwenVisionConfig,
    rows: Sequence[Sequence[int]] | None,
    patches: int,
    tokens: int | None,
    batch: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`VisionTables.tokens` and `token_coords`: the merged cells of each row's images, in order."""
    rows = [[index] for index in range(len(grids))] if rows is None else rows
    counts = np.asarray([num_tokens(grid, config) for grid in grids])
    for row in rows:
        if not len(row) or min(row) < 0 or max(row) >= len(grids):
            raise CallError(f"a row names images by their number below {len(grids)}, got {row}")
    longest = max(int(counts[list(row)].sum()) for row in rows)
    width = token_bucket(longest, config) if tokens is None else tokens
    height = len(rows) if batch is None else batch
    if width < longest or height < len(rows):
        raise CallError(
            f"{height} rows of {width} visual tokens are too few for {len(rows)} rows of up to "
            f"{longest}"
        )
    begins = np.cumsum(counts) - counts
    index = np.full((height, width), patches // config.merge_unit, np.int32)
    coords = np.zeros((height, width, 2), np.float32)
    for at in range(height):
        row = rows[at if at < len(rows) else 0]
        cells = np.concatenate([begins[i] + np.arange(counts[i]) for i in row])
        places = np.concatenate([_cell_coords(grids[i], config) for i in row])
        index[at, : len(cells)], coords[at, : len(cells)] = cells, places
    return index, coords


def _cell_coords(grid: tuple[int, int, int], config: QwenVisionConfig) -> np.ndarray:
    """(row, column) of each merged cell of a grid in its frame."""
    frames, height, width = grid
    side = config.spatial_merge_size
    rows, columns = np.divmod(np.arange(height * width // side**2), width // side)
    return np.tile(np.stack([rows, columns], axis=-1), (frames, 1))
