"""The oracles of the baselines, held by problems worked out by hand."""

import math

import numpy as np
import pytest

from tests.methods.oracles.baselines import downsample, pooling, random, uniform


def test_random_cuts_the_permutation_and_sorts():
    assert random.random(permutation=[3, 0, 4, 1, 2], keep=3).indices == [0, 3, 4]
    assert random.random(permutation=[3, 0, 4, 1, 2], keep=5).indices == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="permutation"):
        random.random(permutation=[0, 0, 1], keep=1)


def test_uniform_on_a_small_grid():
    # 4 x 4, T = 4: two rows, the middles of two halves of 4 cells are cells 1 and 3 (1.0 and 3.0).
    assert uniform.uniform(grid=(4, 4), keep=4).indices == [5, 7, 13, 15]
    # T = 5: sqrt(5) = 2.2, two rows with floor(5/2) = 2 and 3 tokens; three columns of 4 have their
    # middles at 4/6, 2 and 20/6.
    assert uniform.uniform(grid=(4, 4), keep=5).indices == [5, 7, 12, 14, 15]
    assert uniform.uniform(grid=(4, 4), keep=5, layout="cells").indices == [5, 7, 13, 15]
    # 16 cells in 5 parts of 3.2: middles 1.6, 4.8, 8, 11.2, 14.4.
    assert uniform.uniform(grid=(4, 4), keep=5, layout="raster").indices == [1, 4, 8, 11, 14]
    # A wide picture: sqrt(4 * 2 / 8) = 1 row, the lower one (its middle is 1.0), 4 of 8 columns.
    assert uniform.uniform(grid=(2, 8), keep=4).indices == [9, 11, 13, 15]
    # One row of 3 takes all of its cells; T = N is every token.
    assert uniform.uniform(grid=(1, 3), keep=3).indices == [0, 1, 2]
    assert uniform.uniform(grid=(3, 5), keep=15).indices == list(range(15))


@pytest.mark.parametrize("grid", [(24, 24), (7, 12), (1, 30), (30, 1), (13, 5)])
def test_uniform_keeps_exactly_the_budget(grid):
    for keep in range(1, grid[0] * grid[1] + 1):
        for layout in ("rows", "raster"):
            indices = uniform.uniform(grid=grid, keep=keep, layout=layout).indices
            assert len(indices) == keep == len(set(indices))
            assert indices == sorted(indices)
        cells = uniform.uniform(grid=grid, keep=keep, layout="cells").indices
        assert len(cells) == len(set(cells)) <= keep


def test_pooling_means_over_bins():
    rows = np.arange(16.0)[:, None] * [1.0, 10.0]
    # 2 x 2 bins of 2 x 2 cells: (0 + 1 + 4 + 5) / 4 and so on.
    kept = pooling.pooling(embeddings=rows, grid=(4, 4), keep=4)
    assert kept.indices == [-1] * 4
    np.testing.assert_allclose(kept.merged[:, 0], [2.5, 4.5, 10.5, 12.5])
    np.testing.assert_allclose(kept.merged[:, 1], [25, 45, 105, 125])
    # A line of 5 into 2: adaptive bins 0..3 and 2..5 share cell 2, a partition is 0..2 and 2..5.
    line = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    for bins, expected in (("adaptive", [2.0, 4.0]), ("partition", [1.5, 4.0])):
        kept = pooling.pooling(embeddings=line, grid=(1, 5), keep=2, bins=bins)
        np.testing.assert_allclose(kept.merged[:, 0], expected)
    with pytest.raises(ValueError, match="2 x 3 bins"):
        pooling.pooling(embeddings=rows, grid=(4, 4), keep=5, size=(2, 3))


def test_pooled_sizes():
    sizes = {64: (8, 8), 128: (8, 16), 192: (12, 16), 576: (24, 24), 1000: (24, 24)}
    for keep, size in sizes.items():
        assert pooling.pooled_size(grid=(24, 24), keep=keep) == size
    for keep, size in {64: (8, 8), 128: (11, 11), 192: (13, 14)}.items():
        assert pooling.pooled_size(grid=(24, 24), keep=keep, rule="aspect") == size
    # 31 is prime and does not fit: 30; 5 x 6 and 6 x 5 are equally square, so the fewest rows.
    assert pooling.pooled_size(grid=(24, 24), keep=31) == (5, 6)
    # Half as high as wide: of 2 x 16, 4 x 8 and 8 x 4 the second has the picture's shape.
    assert pooling.pooled_size(grid=(16, 32), keep=32) == (4, 8)


def test_downsample_counts_squares():
    assert [downsample.count(keep) for keep in (192, 128, 64, 1, 2, 3, 6, 7)] == [
        *(196, 121, 64, 1, 1, 4, 4, 9)
    ]
    assert downsample.max_pixels(256) == 256 * 28 * 28


def test_bicubic_position_embeddings():
    # From 4 to 2 the centres are 0.5 and 2.5: four taps at distances 1.5, 0.5, 0.5, 1.5, weights
    # -0.09375 and 0.59375 (a = -0.75: 1.25/8 - 2.25/4 + 1, and -0.75 (3.375 - 11.25 + 12 - 4)).
    assert math.isclose(downsample.cubic(0.5, -0.75), 0.59375)
    assert math.isclose(downsample.cubic(1.5, -0.75), -0.09375)
    # So cell 0 = -0.09375 e0 (the tap at -1) + 0.59375 e0 + 0.59375 e1 - 0.09375 e2.
    assert downsample.weights(4, 2, 0, antialias=False) == {0: 0.5, 1: 0.59375, 2: -0.09375}
    table = np.concatenate([[[7.0]], np.arange(16.0)[:, None]])  # CLS 7, e(y, x) = 4 y + x
    small = downsample.position_embeddings(table, (2, 2))
    # x: 0.59375 - 0.1875 = 0.40625 and by symmetry 3 - 0.40625 = 2.59375; y four times that.
    np.testing.assert_allclose(small[:, 0], [7, 2.03125, 4.21875, 10.78125, 12.96875])
    # The same grid is the table itself; antialiasing leaves constants as they are.
    np.testing.assert_allclose(downsample.position_embeddings(table, (4, 4)), table)
    flat = downsample.position_embeddings(np.ones((17, 1)), (3, 2), antialias=True)
    np.testing.assert_allclose(flat, np.ones((7, 1)))
    # Antialiased 4 -> 2, scale 2, centre 1: cells 0..4 at (0.5, 0.5, 1.5, 2.5) / 2 with a = -0.5:
    # 1.5 x^3 - 2.5 x^2 + 1 at 0.25 = 0.8671875, at 0.75 = 0.2265625; at 1.25 it is -0.0703125.
    found = downsample.weights(4, 2, 0, antialias=True)
    total = 2 * 0.8671875 + 0.2265625 - 0.0703125
    expected = [0.8671875 / total, 0.8671875 / total, 0.2265625 / total, -0.0703125 / total]
    np.testing.assert_allclose([found[cell] for cell in range(4)], expected)
