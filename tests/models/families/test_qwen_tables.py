"""Index tables of packed batches: windows, frames, tokens and buckets, against slow oracles."""

import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.families.qwen_vl.images import smart_resize
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.tables import (
    PATCH_BUCKETS,
    make_tables,
    num_tokens,
    patch_bucket,
    token_bucket,
    window_rows,
)

CONFIG = QwenVisionConfig(32, 56, 2, 2, 64, full_attention_blocks=(1,))
Grids = list[tuple[int, int, int]]


def slow_patches(grids: Grids) -> list[tuple[int, int, int, int]]:
    """(frame, row, column, window) of every patch in packed order, by loops."""
    out, frame, window = [], 0, 0
    for frames, height, width in grids:
        across, down = -(-width // 8), -(-height // 8)
        for _ in range(frames):
            for top in range(0, height, 2):
                for left in range(0, width, 2):
                    for row in (top, top + 1):
                        for column in (left, left + 1):
                            place = (row // 8) * across + column // 8
                            out.append((frame, row, column, window + place))
            frame, window = frame + 1, window + down * across
    return out


def random_grids(rng: np.random.Generator) -> Grids:
    """A few pictures, strips and videos."""
    grids: Grids = []
    for _ in range(rng.integers(1, 5)):
        height, width = (2 * int(n) for n in rng.integers(1, 14, 2))
        if rng.random() < 0.2:
            height, width = 2, 2 * int(rng.integers(1, 60))
        grids.append((int(rng.integers(1, 4)) if rng.random() < 0.4 else 1, height, width))
    return grids


def test_tables_match_the_loops() -> None:
    rng = np.random.default_rng(0)
    patches = windows = 0
    for _ in range(60):
        grids = random_grids(rng)
        tables, expected = make_tables(grids, CONFIG), slow_patches(grids)
        real, size = len(expected), len(tables.segments)
        frame, row, column, window = np.asarray(expected).T
        np.testing.assert_array_equal(tables.segments[:real], frame)
        np.testing.assert_array_equal(tables.coords[:real], np.stack([row, column], axis=-1))
        # Padding: a segment of its own, in no window.
        assert (tables.segments[real:] == frame.max() + 1).all()
        rows, slots = tables.windows.shape
        assert slots == 64 and rows == window_rows(size, CONFIG)
        assert (tables.window_slot[real:] == rows * slots).all()
        # Each patch sits in one slot; a row holds whole windows, told apart by their segment.
        flat = tables.windows.reshape(-1)
        np.testing.assert_array_equal(flat[tables.window_slot[:real]], np.arange(real))
        assert (np.sort(flat[flat < size]) == np.arange(real)).all()
        np.testing.assert_array_equal(
            tables.window_segments.reshape(-1)[tables.window_slot[:real]], window
        )
        assert (tables.window_segments[tables.windows == size] == -1).all()
        in_row = np.asarray(tables.window_slot[:real]) // slots
        for number in range(window.max() + 1):
            assert len(set(in_row[window == number])) == 1
        patches, windows = patches + real, windows + int(window.max()) + 1
    print(f"{patches} patches in {windows} windows")
    assert patches > 20_000


def test_token_rows_and_their_coordinates() -> None:
    grids: Grids = [(1, 4, 6), (2, 2, 4), (1, 2, 2)]
    tables = make_tables(grids, CONFIG, rows=[[1, 0], [2]], tokens=16, batch=4)
    none = len(tables.segments) // 4
    assert tables.tokens.shape == (4, 16)
    # Picture 0 has 6 cells, the video 2 frames of 2, the last one 1: cells 0-5, 6-9 and 10.
    assert tables.tokens[0].tolist() == [6, 7, 8, 9, 0, 1, 2, 3, 4, 5] + [none] * 6
    assert tables.tokens[1].tolist() == [10] + [none] * 15
    np.testing.assert_array_equal(tables.tokens[2:], tables.tokens[[0, 0]])
    places = [(0, 0), (0, 1), (0, 0), (0, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert list(map(tuple, tables.token_coords[0, :10].tolist())) == places
    assert [num_tokens(grid, CONFIG) for grid in grids] == [6, 4, 1]


def test_buckets_hold_any_mix_and_waste_little() -> None:
    rng = np.random.default_rng(1)
    used, share, raised = set(), [], 0
    for _ in range(400):
        height, width = (int(n) for n in rng.integers(320, 1281, 2))
        tall, wide = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=12845056)
        real = (tall // 14) * (wide // 14)
        tables = make_tables([(1, tall // 14, wide // 14)], CONFIG)
        size = len(tables.segments)
        used.add(size)
        share.append(size / real)
        raised += size != next(bucket for bucket in PATCH_BUCKETS if bucket >= real)
    print(f"buckets {sorted(used)}, padded over real {np.mean(share):.3f}, {raised} raised")
    assert len(used) <= 6 and np.mean(share) <= 1.35 and raised == 0
    # Strips whose windows do not pair up need more rows than patches: the next bucket has them.
    for columns in (6, 10, 12, 14):
        height = 28 * 50
        tables = make_tables([(1, height, columns)], CONFIG)
        real = height * columns
        print(f"{height} x {columns}: {real} patches in {len(tables.segments)}")
        assert real <= len(tables.segments) <= 3.5 * real


def test_bucket_sizes() -> None:
    assert patch_bucket(42_196, 660, CONFIG) == 43_008
    assert patch_bucket(65_536, 1024, CONFIG) == 65_536
    assert patch_bucket(65_537, 1025, CONFIG) == 81_920
    assert patch_bucket(64, 3, CONFIG) == 128  # the rows do not fit
    assert patch_bucket(70_000, 3000, CONFIG) == 16_384 * 10
    assert token_bucket(10_549, CONFIG) == 10_752
    assert all(bucket % 64 == 0 for bucket in PATCH_BUCKETS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grids": []}, "no image was given"),
        ({"grids": [(1, 3, 4)]}, "rows and columns in multiples of 2"),
        ({"grids": [(0, 2, 4)]}, r"got \(0, 2, 4\)"),
        ({"grids": [(1, 2)]}, r"got \(1, 2\)"),
        ({"grids": [(1, 16, 16)], "patches": 192}, "the smallest bucket is 320"),
        ({"grids": [(1, 4, 4)], "patches": 18}, "the smallest bucket is 64"),
        ({"grids": [(1, 4, 4)], "rows": [[1]]}, "below 1"),
        ({"grids": [(1, 4, 4)], "rows": [[]]}, "below 1"),
        ({"grids": [(1, 4, 4)], "tokens": 3}, "up to 4"),
        ({"grids": [(1, 4, 4)] * 2, "batch": 1}, "too few for 2 rows"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, said: str) -> None:
    with pytest.raises(CallError, match=said):
        make_tables(options.pop("grids"), CONFIG, **options)
    with pytest.raises(CallError, match="at least one patch"):
        patch_bucket(0, 1, CONFIG)
