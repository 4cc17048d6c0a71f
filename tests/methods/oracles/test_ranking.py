"""Ranks, quantiles and outliers, worked out by hand."""

import pytest

from tests.methods.oracles.encoder import ranking


def test_ties_go_to_the_lowest_place():
    assert ranking.descending([1.0, 3.0, 3.0, 2.0]) == [1, 2, 3, 0]
    assert ranking.top([5.0, 5.0, 5.0], 2) == [0, 1]
    with pytest.raises(ValueError, match="4 of 3"):
        ranking.top([1.0, 2.0, 3.0], 4)


def test_outliers_lie_strictly_above_the_fence():
    # 0..8: Q1 = 2, Q3 = 6, fence 6 + 1.5 * 4 = 12. With the last one put at 12 or above, Q1 and Q3
    # stay: 12 is no outlier, 12.1 is one.
    values = [0.0, 1, 2, 3, 4, 5, 6, 7]
    assert ranking.outliers([*values, 12.0]) == 0
    assert ranking.outliers([*values, 12.1]) == 1
    # Four values: places 0.75 and 2.25, so 1.75 and 3.25 of 1, 2, 3, 4.
    assert ranking.quantile([4.0, 2, 1, 3], 0.25) == 1.75
    assert ranking.quantile([4.0, 2, 1, 3], 0.75) == 3.25
