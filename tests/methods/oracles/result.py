"""What the oracles of the pruning methods return."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kept:
    """The tokens that one image keeps."""

    indices: list[int]  # kept tokens in output order; -1 for a row that is no token (an aggregate)
    merged: np.ndarray | None = None  # output rows where the method merges, in output order
