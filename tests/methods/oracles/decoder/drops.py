"""What an oracle of a method that drops inside the language model returns."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Drops:
    """Every drop of a schedule.

    Attributes:
        kept: for each drop the visual tokens that are left, by their number in the image, in image
            order; -1 for a row that is no token (a merged one), after the tokens.
        counts: visual tokens that each layer works on (runs over), one entry a layer.
        merged: for each drop the rows that entered after the kept ones, (C, d), or None.
    """

    kept: list[list[int]]
    counts: list[int]
    merged: list[np.ndarray | None] = field(default_factory=list)


def best(scores: list[float], count: int) -> list[int]:
    """The `count` places with the largest scores, best first; of equal ones the lower place."""
    ranked = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return ranked[:count]
