"""Buckets hold what they must, are few, and grow with the count."""

from collections.abc import Callable

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.prompts import buckets

ALL = [
    buckets.length_bucket,
    buckets.batch_bucket,
    buckets.new_token_bucket,
    buckets.noun_bucket,
    buckets.step,
]


@pytest.mark.parametrize(
    ("bucket", "sizes"),
    [
        (
            buckets.length_bucket,
            {0: 64, 1: 64, 64: 64, 65: 128, 640: 640, 1024: 1024, 1025: 1280, 4095: 4096},
        ),
        (buckets.batch_bucket, {0: 1, 1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 9: 16, 17: 24, 64: 64}),
        (buckets.new_token_bucket, {0: 64, 1: 64, 64: 64, 65: 128, 128: 128, 2000: 2048}),
        (buckets.noun_bucket, {0: 32, 8: 32, 32: 32, 33: 64, 65: 128}),
        (buckets.step, {0: 0, 1: 64, 64: 64, 65: 128, 576: 576, 2944: 2944}),
    ],
)
def test_sizes(bucket: Callable[[int], int], sizes: dict[int, int]) -> None:
    assert {n: bucket(n) for n in sizes} == sizes


@pytest.mark.parametrize("bucket", ALL)
def test_properties(bucket: Callable[[int], int]) -> None:
    sizes = [bucket(n) for n in range(4097)]
    assert all(size >= n for n, size in enumerate(sizes))
    assert sizes == sorted(sizes)
    assert all(bucket(size) == size for size in set(sizes)), "a bucket is its own bucket"


def test_few_lengths_up_to_a_whole_context() -> None:
    assert len({buckets.length_bucket(n) for n in range(4097)}) == 16 + 12


@pytest.mark.parametrize("bucket", ALL)
def test_negative(bucket: Callable[[int], int]) -> None:
    with pytest.raises(CallError, match="got -1"):
        bucket(-1)
