"""Random selection problems of every kind that the exactness tests speak of.

A problem is drawn from its rng_seed alone: kind, sizes, dtype, relevance, alpha and first token,
unless the caller fixes some of them.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

KINDS = (
    "gaussian",
    "clustered",
    "low-rank",
    "duplicated",
    "scaled",
    "tiny",
    "huge",
    "zeros",
)
RELEVANCES = ("none", "positive", "with zeros", "all zeros", "tied")
ALPHAS = (0.0, 0.25, 0.3, 0.5, 0.75, 1.0, 1.25)


@dataclass(frozen=True)
class Problem:
    """One selection problem.

    Attributes:
        tokens: (N, d) float32 or bfloat16.
        relevance: (N,) float32, never negative, or None.
        alpha: strength of textual guidance.
        first: index of the seed token, or None for the largest norm.
        valid: (N,) bool, or None where there is no padding.
        kind: what was drawn, to name a failing problem: "low-rank bfloat16 relevance tied ...".
    """

    tokens: NDArray[Any]
    relevance: NDArray[np.float32] | None
    alpha: float
    first: int | None
    valid: NDArray[np.bool_] | None
    kind: str

    @property
    def count(self) -> int:
        """Tokens that are not padding."""
        return len(self.tokens) if self.valid is None else int(self.valid.sum())

    @property
    def conditions(self) -> dict[str, Any]:
        """The keyword arguments that `select`, `greedy` and `certify` share."""
        return {
            "relevance": self.relevance,
            "alpha": self.alpha,
            "first": self.first,
            "valid": self.valid,
        }


def draw(
    rng_seed: int,
    *,
    n: int | None = None,
    d: int | None = None,
    max_n: int = 700,
    max_d: int = 4096,
    kind: str | None = None,
    dtype: str | None = None,
    relevance: str | None = None,
) -> Problem:
    """Draw a problem.

    Args:
        rng_seed: seed of the random generator.
        n: number of tokens; None draws 1 to max_n, often small, often large.
        d: their dimension; None draws 1 to max_d, log-uniformly.
        max_n: largest number of tokens to draw.
        max_d: largest dimension to draw.
        kind: one of KINDS; None draws one.
        dtype: "float32" or "bfloat16"; None draws one (float32 three times in four).
        relevance: one of RELEVANCES; None draws one.

    Returns:
        The problem, without padding.
    """
    rng = np.random.default_rng(rng_seed)
    kind = KINDS[rng.integers(len(KINDS))] if kind is None else kind
    if n is None:
        log_uniform = int(np.exp(rng.uniform(0.0, np.log(max_n + 1))))
        n = min(max_n, log_uniform) if rng.random() < 0.4 else int(rng.integers(1, max_n + 1))
    if d is None:
        d = min(max_d, int(np.exp(rng.uniform(0.0, np.log(max_d + 1)))))
    tokens = _tokens(rng, kind, n, d)
    if dtype is None:
        dtype = "bfloat16" if rng.random() < 0.25 else "float32"
    values = tokens.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    relevance = RELEVANCES[rng.integers(len(RELEVANCES))] if relevance is None else relevance
    alpha = float(ALPHAS[rng.integers(len(ALPHAS))])
    first = None if rng.random() < 0.4 else int(rng.integers(n))
    name = f"{kind} n={n} d={d} {dtype} relevance={relevance} alpha={alpha} first={first}"
    return Problem(values, _relevance(rng, relevance, n), alpha, first, None, f"{name} #{rng_seed}")


def pad(problem: Problem, size: int, *, rng_seed: int = 0, interleave: bool = False) -> Problem:
    """Pad a problem to a static number of tokens with values that would win if they counted.

    Args:
        problem: a problem without padding, of at most `size` tokens.
        size: N of the padded problem.
        rng_seed: seed of the random generator.
        interleave: put the padding between the tokens (their order stays) instead of behind them.

    Returns:
        The padded problem: padding rows are finite, long, partly copies of real tokens, and
        highly relevant. `valid` is set, `first` moved along; `np.flatnonzero(valid)` maps the
        indices of the problem to those of the padded one.
    """
    n, d = problem.tokens.shape
    if problem.valid is not None or n > size:
        raise ValueError(f"{n} tokens, padded: {problem.valid is not None}; asked for {size}")
    rng = np.random.default_rng((rng_seed, n, size))
    where = np.arange(n)
    if interleave:
        where = np.sort(rng.permutation(size)[:n])
    real = problem.tokens.astype(np.float64)
    longest = max(float(np.sqrt((real**2).sum(axis=1).max())), 1e-20)
    garbage = rng.normal(size=(size, d)) * 30 * longest / np.sqrt(d)
    copies = rng.random(size) < 0.3
    garbage[copies] = real[rng.integers(n, size=int(copies.sum()))]
    tokens = garbage.astype(problem.tokens.dtype)
    tokens[where] = problem.tokens
    valid = np.zeros(size, dtype=bool)
    valid[where] = True
    relevance = None
    if problem.relevance is not None:
        relevance = rng.uniform(0.9, 1.0, size).astype(np.float32)
        relevance[where] = problem.relevance
    return dataclasses.replace(
        problem,
        tokens=tokens,
        relevance=relevance,
        first=None if problem.first is None else int(where[problem.first]),
        valid=valid,
        kind=f"{problem.kind} padded to {size}{' interleaved' if interleave else ''}",
    )


def _tokens(rng: np.random.Generator, kind: str, n: int, d: int) -> NDArray[np.float64]:
    """[n, d] of one kind."""
    noise = rng.normal(size=(n, d))
    if kind == "gaussian":
        return noise
    if kind == "low-rank":
        rank = max(1, min(n, d) // int(rng.integers(2, 20)))
        return rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d)) / np.sqrt(rank)
    if kind == "duplicated":
        # Copies, and some exact powers of two and negatives of others.
        source = rng.integers(max(1, n // 3), size=n)
        return noise[source] * rng.choice([1.0, 1.0, 1.0, -1.0, 2.0], size=(n, 1))
    if kind == "scaled":
        return noise / np.sqrt(d) * 10.0 ** rng.uniform(-3, 3, size=(n, 1))
    if kind == "zeros":
        noise[rng.random(n) < 0.3] = 0.0
        return noise
    clustered = _clustered(rng, n, d)
    if kind == "tiny":
        return clustered * 1e-20
    if kind == "huge":
        return clustered * 1e15
    if kind != "clustered":
        raise ValueError(f"{kind} is not one of {KINDS}")
    return clustered


def _clustered(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float64]:
    """[n, d] like visual tokens: a common mean, a few centres, noise, heavy-tailed norms."""
    centres = rng.normal(size=(int(rng.integers(2, 12)), d)) + 0.5 * rng.normal(size=d)
    spread = float(rng.choice([0.03, 0.1, 0.3]))
    tokens = centres[rng.integers(len(centres), size=n)] + spread * rng.normal(size=(n, d))
    return tokens / np.sqrt(d) * np.exp(0.7 * rng.standard_t(4, size=(n, 1)).clip(-4, 4))


def _relevance(rng: np.random.Generator, name: str, n: int) -> NDArray[np.float32] | None:
    """[n] of one of RELEVANCES, between 0 and 1."""
    if name == "none":
        return None
    if name == "positive":
        return rng.uniform(0.01, 1.0, n).astype(np.float32)
    if name == "with zeros":
        cosines = rng.normal(0.05, 0.1, n)
        return np.where(cosines > 1e-3, cosines, 0.0).clip(0.0, 1.0).astype(np.float32)
    if name == "all zeros":
        return np.zeros(n, dtype=np.float32)
    if name != "tied":
        raise ValueError(f"{name} is not one of {RELEVANCES}")
    return rng.choice(np.array([0.0, 0.1, 0.25, 0.5], dtype=np.float32), n)
