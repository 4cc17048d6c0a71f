"""What the selection benchmark runs on: sizes, and random tokens that look like real ones."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resprune_jax.errors import CallError

if TYPE_CHECKING:
    import numpy as np

ALPHA = 0.75
"""Of every problem: the paper's for LLaVA."""

QUESTIONS = 8
"""Asked about one image in the row that shares the image's work."""


@dataclasses.dataclass(frozen=True, order=True)
class Size:
    """One size of the problem.

    Attributes:
        n: visual tokens N of an image.
        d: their width.
        keep: K, how many are kept.
    """

    n: int
    d: int
    keep: int

    def __str__(self) -> str:
        return f"{self.n}x{self.d} -> {self.keep}"


SIZES = (
    Size(576, 4096, 128),
    Size(576, 4096, 64),
    Size(576, 4096, 192),
    Size(2928, 4096, 976),
    Size(2928, 4096, 325),
    Size(2340, 4096, 780),
    Size(2340, 4096, 260),
    Size(10549, 3584, 1172),
    Size(10549, 3584, 3516),
)
"""LLaVA-1.5 at its three budgets, LLaVA-NeXT at its most and for a wide picture, a 4K picture of
Qwen2.5-VL; the one that is asked about most comes first."""

QUICK_SIZES = (Size(576, 4096, 128), Size(2340, 4096, 260))


def parse_size(text: str) -> Size:
    """Read "N,d,K".

    Raises:
        CallError: no three whole numbers, or a K that N tokens do not have.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise CallError(f"--sizes {text!r} is not a size: write N,d,K such as 576,4096,128")
    size = Size(*map(int, parts))
    if min(size.n, size.d) < 2 or not 1 <= size.keep <= size.n:
        raise CallError(f"--sizes {text}: N and d must be at least 2, and K between 1 and N")
    return size


@dataclasses.dataclass(frozen=True)
class Problem:
    """A batch of images, or several questions about one image, on the host.

    Attributes:
        size: N, d and K.
        dtype: of the tokens.
        tokens: (B, N, d), or (1, N, d) where all questions are about one image.
        relevance: (B, N) float32, non-negative.
        first: (B,) int32, the seed tokens.
    """

    size: Size
    dtype: str
    tokens: "np.ndarray"
    relevance: "np.ndarray"
    first: "np.ndarray"

    @property
    def rows(self) -> int:
        """B: selections to make."""
        return len(self.relevance)


def visual_tokens(size: Size, batch: int, rng_seed: int = 0) -> "np.ndarray":
    """Random tokens in the manner of a projector's: a mean that all share, regions that look alike,
    noise, norms with a heavy tail and a few tokens that are several times longer than the rest.

    Args:
        size: N and d.
        batch: images.
        rng_seed: of the random generator.

    Returns:
        (batch, N, d) float32, full rank, no two tokens equal.
    """
    import numpy as np

    rng = np.random.default_rng((rng_seed, size.n, size.d))
    n, d = size.n, size.d
    noise = rng.standard_normal((n, d), np.float32)
    regions = max(4, n // 24)
    mean = rng.standard_normal(d, np.float32)
    tokens = np.empty((batch, n, d), np.float32)
    for image in tokens:
        centres = rng.standard_normal((regions, d), np.float32) + 0.7 * mean
        owner = np.sort(rng.integers(regions, size=n))  # neighbours look alike
        # The same noise in another order: drawing it anew for every image would take longest.
        np.take(noise, rng.permutation(n), axis=0, out=image)
        image *= rng.uniform(0.25, 1.0, (n, 1)).astype(np.float32)
        image += centres[owner]
        norms = np.exp(0.25 * rng.standard_normal((n, 1))).astype(np.float32)
        norms[rng.choice(n, max(1, n // 100), replace=False)] *= 6
        image *= norms * np.float32(0.4)
    return tokens


def relevance(rows: int, n: int, rng_seed: int = 0) -> "np.ndarray":
    """Random relevances (rows, n): cosines with nouns, small, a few of them cut off at zero."""
    import numpy as np

    rng = np.random.default_rng((rng_seed, rows, n, 1))
    cosines = 0.06 + 0.04 * rng.standard_normal((rows, n), np.float32)
    return np.maximum(cosines, 0)


def make_problem(
    size: Size, batch: int, dtype: str, *, questions: int = 0, rng_seed: int = 0
) -> Problem:
    """Draw a problem.

    Args:
        size: N, d and K.
        batch: images.
        dtype: of the tokens, "float32" or "bfloat16".
        questions: this many questions about one image, in place of `batch` images.
        rng_seed: of the random generator.
    """
    import ml_dtypes
    import numpy as np

    tokens = visual_tokens(size, 1 if questions else batch, rng_seed)
    first = np.argmax(np.square(tokens).sum(axis=-1), axis=-1).astype(np.int32)
    if dtype == "bfloat16":
        tokens = tokens.astype(ml_dtypes.bfloat16)
    weight = relevance(questions or batch, size.n, rng_seed)
    if questions:
        first = np.repeat(first, questions)
    return Problem(size, dtype, tokens, weight, first)


def parted(problem: Problem, row: int, ours: Sequence[int], theirs: Sequence[int]) -> Any:
    """Where two selections of one image part, and how near to a tie the choice there was.

    Args:
        problem: what both were given.
        row: which of its rows.
        ours: picks in order of choice.
        theirs: the same of the other.

    Returns:
        None where they are equal; else {"step": the first step that differs, "gap": the difference
        of the two gated residual energies there over the larger gate times the larger squared norm,
        computed in float64}. A gap of 2e-5 at most lies within the step certificate's slack.
    """
    import numpy as np

    a, b = np.asarray(ours), np.asarray(theirs)
    if not (differs := np.flatnonzero(a != b)).size:
        return None
    step = int(differs[0])
    tokens = problem.tokens[min(row, len(problem.tokens) - 1)]
    chosen = tokens[a[:step]].astype(np.float64)
    pair = tokens[[a[step], b[step]]].astype(np.float64)
    norms = np.square(pair).sum(axis=1)
    shares = chosen @ pair.T  # [step, 2]
    # By the normal equations: float64 has digits to spare for what float32 could choose.
    energy = norms - (shares * np.linalg.solve(chosen @ chosen.T, shares)).sum(axis=0)
    gate = problem.relevance[row][[a[step], b[step]]].astype(np.float64) ** ALPHA
    gap = abs(float(gate[0] * energy[0] - gate[1] * energy[1]))
    return {"step": step, "gap": gap / float((gate * norms).max())}
