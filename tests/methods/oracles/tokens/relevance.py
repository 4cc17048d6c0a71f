"""Relevance of tokens to nouns: aggregation and the map to weights of 0 or more, an oracle."""

import numpy as np

from tests.methods.oracles.tokens.geometry import cosine


def cosines(
    embeddings: np.ndarray, text: np.ndarray, aggregate: str = "max", relevance_sign: int = 1
) -> np.ndarray:
    """Each token's cosine with the text rows: the largest, the mean, or that with their mean.

    relevance_sign=-1 counts it against the token: applied to the aggregated value.
    """
    found = []
    for row in embeddings:
        if aggregate == "pooled":
            found.append(cosine(row, np.mean(np.asarray(text, np.float64), axis=0)))
        else:
            each = [cosine(row, noun) for noun in text]
            found.append({"max": max, "mean": np.mean}[aggregate](each))
    return relevance_sign * np.array(found, np.float64)


def nonnegative(values: np.ndarray, how: str = "clip") -> np.ndarray:
    """Cosines (N,) to weights: clip at 0, shift (1 + c) / 2, or minmax over the image.

    minmax of values that are all alike is 1 everywhere (assumed: nothing tells the tokens apart).
    """
    low, high = min(values), max(values)
    found = []
    for value in values:
        if how == "clip":
            found.append(max(0.0, value))
        elif how == "shift":
            found.append((1 + value) / 2)
        else:
            found.append((value - low) / (high - low) if high > low else 1.0)
    return np.array(found, np.float64)


def relevance(
    *,
    embeddings: np.ndarray,
    text: np.ndarray,
    aggregate: str = "max",
    how: str = "clip",
    relevance_sign: int = 1,
) -> np.ndarray:
    """The weights (N,) before the exponent; without a noun (text (0, d)) 1 for every token."""
    if len(text) == 0:
        return np.ones(len(embeddings))
    return nonnegative(cosines(embeddings, text, aggregate, relevance_sign), how)
