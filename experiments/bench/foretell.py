"""How long torch would take at a size that is too large to wait for, foretold from smaller ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench.problems import Size

WORTH = 2e10
"""N d K of one image from which a row's time is foretold before torch is let at it."""

PARTS = (8, 4)
"""Sizes to learn from: N and K divided by these."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a call took at a smaller size.

    Attributes:
        size: N, d and K.
        seconds: for one image.
    """

    size: Size
    seconds: float


def smaller_sizes(size: Size) -> list[Size]:
    """The sizes to learn from, the smallest first, of the same width."""
    return [Size(max(2, size.n // by), size.d, max(1, size.keep // by)) for by in PARTS]


def foretell(group: str, size: Size, itemsize: int, samples: Sequence[Sample]) -> float:
    """Seconds that an algorithm takes for one image, by its order of work.

    Both algorithms make K steps, each of a fixed cost (launches, the interpreter), and move a known
    number of bytes (`engines.bytes_moved`): their time is a K + b bytes, a and b never negative.

    Args:
        group: the algorithm, "torch Algorithm 1" or "torch Cholesky".
        size: N, d and K.
        itemsize: bytes of a token's number.
        samples: two smaller sizes, the smallest first.

    Returns:
        Seconds.
    """

    def work(of: Size) -> tuple[float, float]:
        moved = bench_engines.bytes_moved(group, of, itemsize)
        assert moved is not None  # both are known
        return float(of.keep), moved

    (k1, w1), (k2, w2) = (work(sample.size) for sample in samples)
    t1, t2 = (sample.seconds for sample in samples)
    steps, moved = work(size)
    determinant = k1 * w2 - k2 * w1
    if determinant > 0:
        a, b = (t1 * w2 - t2 * w1) / determinant, (k1 * t2 - k2 * t1) / determinant
    else:  # sizes that grow alike tell nothing apart
        a, b = 0.0, t2 / w2
    if a < 0:  # the larger one left the caches: it is the better guide
        a, b = 0.0, t2 / w2
    elif b < 0:
        a, b = t2 / k2, 0.0
    return a * steps + b * moved


def calls(seconds: float, trusted: float, long: float) -> int:
    """How often a row calls a side at the least: its trials, and a round where one is made."""
    return (3 if seconds < trusted else 1) + (1 if seconds < long else 0)


def facts(seconds: float, samples: Sequence[Sample]) -> dict[str, Any]:
    """An estimate as the JSON file holds it, milliseconds for one selection."""
    taken = [{"size": str(one.size), "ms": 1e3 * one.seconds} for one in samples]
    return {"ms": 1e3 * seconds, "from": taken}
