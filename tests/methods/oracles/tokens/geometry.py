"""Cosines and projections, one pair of rows at a time, in float64."""

from collections.abc import Sequence

import numpy as np

EXHAUSTED = 2e-6
"""A token with no more than this share of its squared norm left is explained by those chosen."""


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two rows; a row of zeros has cosine 0 with everything, itself included."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = float(np.sqrt(a @ a)) * float(np.sqrt(b @ b))
    return float(a @ b) / lengths if lengths > 0 else 0.0


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """Squared Euclidean norm of every row: (N, d) to (N,)."""
    return np.array([float(row @ row) for row in np.asarray(rows, np.float64)])


def residual_energy(row: np.ndarray, basis: Sequence[np.ndarray]) -> float:
    """Squared norm of what is left of a row after projection onto the span of the basis rows.

    The projection is the least-squares fit. The basis rows are first brought to unit length, which
    leaves the span as it is; dependent rows do no harm.
    """
    row = np.asarray(row, np.float64)
    units = [np.asarray(b, np.float64) / np.linalg.norm(b) for b in basis if np.any(b)]
    if not units:
        return float(row @ row)
    span = np.stack(units, axis=1)  # [d, picks]
    fit = np.linalg.lstsq(span, row, rcond=None)[0]
    left = row - span @ fit
    return float(left @ left)
