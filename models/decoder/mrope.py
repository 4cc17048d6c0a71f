"""M-RoPE positions of Qwen2.5-VL and Qwen2-VL: time, row and column of every token, and what
pruning does to them.

Text counts up on all three axes at once. An image's tokens stand at (start, start + row, start +
column); a video's at (start + time, start + row, start + column), where time runs with the clock.
The text behind goes on at start + max(rows, columns). All of it equals `get_rope_index` of
transformers 5.23, which leaves a video's duration out of that last step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.errors import CallError

TEXT, IMAGE, VIDEO = 0, 1, 2
"""Kinds of tokens, numbered as transformers' `mm_token_type_ids`."""

MropePositions = Literal["original", "compact"]
"""Positions after pruning: those of the unpruned prompt, or closed up behind each image so that
text goes on after the outermost token that was kept."""


@dataclass(frozen=True)
class Grid:
    """An image or a video as the language model sees it.

    Attributes:
        frames: T, groups of frames; 1 for an image.
        rows: of merged cells.
        columns: of merged cells.
        seconds: time from one group of frames to the next; `None` for an image, whose frames (of
            which there is one) count single steps.
    """

    frames: int
    rows: int
    columns: int
    seconds: float | None = None

    @property
    def num_tokens(self) -> int:
        """Visual tokens."""
        return self.frames * self.rows * self.columns

    @property
    def extent(self) -> int:
        """Positions from its start to the text behind it."""
        return max(self.rows, self.columns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RopeIndex:
    """Positions of a batch of unpruned prompts; S tokens, at most R images and videos a row.

    Attributes:
        positions: (B, S, 3) int32, (time, row, column); 0 for padding.
        following: (B,) int32, the position of the first generated token, on all axes.
        run: (B, S) int32, which of the row's images or videos a token belongs to; -1 for text and
            padding.
        starts: (B, R) int32, the position each begins at; 0 where there is none.
        extents: (B, R) int32, how far the text behind is moved on by each; 0 where there is none.
    """

    positions: np.ndarray | jax.Array
    following: np.ndarray | jax.Array
    run: np.ndarray | jax.Array
    starts: np.ndarray | jax.Array
    extents: np.ndarray | jax.Array

    def deltas(self, valid: np.ndarray) -> np.ndarray | jax.Array:
        """(B,) transformers' `rope_deltas`: `following` less the row's number of valid tokens."""
        return self.following - valid.sum(axis=1)


def token_kinds(ids: np.ndarray, image_token_id: int, video_token_id: int) -> np.ndarray:
    """The kind of every token (B, S), from its id, as the processor's `mm_token_type_ids`."""
    return np.where(ids == image_token_id, IMAGE, np.where(ids == video_token_id, VIDEO, TEXT))


def rope_index(
    kinds: np.ndarray,
    valid: np.ndarray,
    grids: Sequence[Sequence[Grid]],
    tokens_per_second: float | None,
    *,
    runs: int | None = None,
) -> RopeIndex:
    """Positions of a batch of prompts whose placeholders are expanded.

    Args:
        kinds: (B, S), `token_kinds`.
        valid: (B, S) bool, False for padding on either side.
        grids: for each row, its images and videos in the order of their tokens.
        tokens_per_second: steps of the time axis in a second of video; `None`: one step from each
            group of frames to the next.
        runs: the static R; default the most images of a row, at least 1.

    Returns:
        The positions, NumPy arrays.

    Raises:
        CallError: another number of visual tokens than the grids give, or more images than `runs`.
    """
    batch, length = kinds.shape
    most = max((len(row) for row in grids), default=0)
    width = max(1, most) if runs is None else runs
    if most > width:
        raise CallError(f"a prompt has {most} images and videos, but there is room for {width}")
    positions = np.zeros((batch, length, 3), np.int32)
    run = np.full((batch, length), -1, np.int32)
    following = np.zeros(batch, np.int32)
    starts, extents = np.zeros((2, batch, width), np.int32)
    for row in range(batch):
        real = np.flatnonzero(valid[row])
        own, owner = _row_positions(kinds[row, real], grids[row], tokens_per_second, row)
        positions[row, real] = own
        run[row, real] = owner
        following[row] = own.max(initial=-1) + 1
        for index, grid in enumerate(grids[row]):
            starts[row, index] = own[owner == index][0, 1]
            extents[row, index] = grid.extent
    return RopeIndex(positions, following, run, starts, extents)


def _row_positions(
    kinds: np.ndarray, grids: Sequence[Grid], tokens_per_second: float | None, row: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions (n, 3), run (n,)) of one prompt without padding."""
    positions = np.zeros((len(kinds), 3), np.int64)
    run = np.full(len(kinds), -1, np.int32)
    at = start = 0
    for index, grid in enumerate(grids):
        visual = np.flatnonzero(kinds[at:] != TEXT)
        words = int(visual[0]) if len(visual) else len(kinds) - at
        positions[at : at + words] = (start + np.arange(words))[:, None]
        at, start = at + words, start + words
        kind = IMAGE if grid.seconds is None else VIDEO
        span = kinds[at : at + grid.num_tokens]
        if len(span) != grid.num_tokens or (span != kind).any():
            raise CallError(
                f"prompt {row} has {_leading(kinds[at:], kind)} placeholders in a row where "
                f"{'image' if kind == IMAGE else 'video'} {index} has {grid.num_tokens} visual "
                "tokens: expand each placeholder to the number of its tokens"
            )
        positions[at : at + len(span)] = start + _grid_positions(grid, tokens_per_second)
        run[at : at + len(span)] = index
        at, start = at + len(span), start + grid.extent
    if (kinds[at:] != TEXT).any():
        raise CallError(
            f"prompt {row} has {int((kinds != TEXT).sum())} visual tokens, but its images and "
            f"videos give {sum(grid.num_tokens for grid in grids)}"
        )
    positions[at:] = (start + np.arange(len(kinds) - at))[:, None]
    return positions, run


def _grid_positions(grid: Grid, tokens_per_second: float | None) -> np.ndarray:
    """(time, row, column) of a grid's tokens from its start (n, 3), in raster order."""
    # The reference multiplies in float32 and truncates.
    step = np.float32(1)
    if grid.seconds is not None and tokens_per_second is not None:
        step = np.float32(tokens_per_second) * np.float32(grid.seconds)
    times = (np.arange(grid.frames, dtype=np.float32) * step).astype(np.int64)
    axes = np.meshgrid(times, np.arange(grid.rows), np.arange(grid.columns), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], axis=-1)


def _leading(kinds: np.ndarray, kind: int) -> int:
    """How many entries at the front are of a kind."""
    other = np.flatnonzero(kinds != kind)
    return int(other[0]) if len(other) else len(kinds)


def pruned_positions(
    index: RopeIndex, keep: jax.Array, rule: MropePositions
) -> tuple[jax.Array, jax.Array]:
    """Positions once some visual tokens leave; for use inside jit.

    "original" changes nothing: kept tokens and text turn as in the full prompt, and the answer goes
    on where it would have. "compact" keeps each token's offset in its image but lets the text
    behind begin one after the largest row or column offset that was kept (nothing kept: the image
    takes no room), for each image of a prompt in turn. If all tokens are kept the rules agree.

    Args:
        index: the unpruned prompts.
        keep: (B, S) bool, which tokens stay: text, and the kept visual tokens.
        rule: how positions are counted.

    Returns:
        (positions (B, S, 3) int32 in the unpruned layout, to be gathered with the tokens; following
        (B,) int32, the position of the first generated token).
    """
    positions = jnp.asarray(index.positions)
    following = jnp.asarray(index.following)
    if rule == "original":
        return positions, following
    run, starts = jnp.asarray(index.run), jnp.asarray(index.starts)
    extents = jnp.asarray(index.extents)
    width = starts.shape[1]
    # What each image still takes: rows and columns only, as in the unpruned rule.
    own = run[:, :, None] == jnp.arange(width)  # [B, S, R]
    offset = jnp.max(positions[:, :, 1:], axis=-1)[:, :, None] - starts[:, None]  # [B, S, R]
    takes = jnp.max(jnp.where(own & keep[:, :, None], offset + 1, 0), axis=1)  # [B, R]
    saved = jnp.cumsum(extents - takes, axis=1)  # [B, R], behind image r
    # Tokens move up by what the images in front of them saved: those that began and ended before.
    ended = jnp.cumsum(own, axis=1) > 0  # [B, S, R], at or behind the first token of image r
    before = ended & ~own
    shift = jnp.max(jnp.where(before, saved[:, None], 0), axis=-1)  # [B, S]
    moved = jnp.maximum(positions - shift[:, :, None], 0)  # padding has no room to move
    last = jnp.max(jnp.where(keep[:, :, None], moved, -1), axis=(1, 2))
    return moved, last + 1
