"""Random selection problems laid out in the few static shapes that the tests compile."""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from resprune_jax import Selection, select
from resprune_jax.certificate import Certificate, certify
from tests.selection.problems import Problem, draw, pad


@dataclass(frozen=True)
class Shape:
    """One compiled shape: every problem is padded into it.

    Attributes:
        rows: B.
        n: N, tokens a row.
        d: their dimension.
        keep: K.
        dtype: of the tokens.
    """

    rows: int
    n: int
    d: int
    keep: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Batch:
    """Problems of one shape as `select` takes them."""

    problems: list[Problem]
    tokens: np.ndarray  # [B, N, d]
    options: dict[str, Any]

    def certify(self, row: int, chosen: Selection, **changes: Any) -> Certificate:
        """Replay one row of a selection in float64, by default on the problem as it was given."""
        problem = self.problems[row]
        conditions = {**problem.conditions, "tokens": self.tokens[row], **changes}
        return certify(
            indices=np.asarray(chosen.indices[row]),
            count=int(chosen.count[row]),
            energy=np.asarray(chosen.energy[row]),
            **conditions,
        )


@dataclass
class Tally:
    """What certificates decided, over the rows of several batches.

    Attributes:
        steps: picks that were replayed.
        spent: of them, those behind the last token with anything left.
        decided: those that rounding could not have changed.
        worst: the largest slack, a share of the tokens' energy.
        worst_energy: the largest error of a reported energy.
    """

    steps: int = 0
    spent: int = 0
    decided: int = 0
    worst: float = 0.0
    worst_energy: float = 0.0

    def __str__(self) -> str:
        """In words, for what a test prints."""
        return (
            f"{self.steps} steps, {self.spent} exhausted, {self.decided} decided, worst slack"
            f" {self.worst:.1e}"
        )

    def certify(self, shape: Shape, given: Batch, row: int, chosen: Selection) -> None:
        """Replay a row; it fails the test where a step is wrong or a pick is missing."""
        problem, result = given.problems[row], given.certify(row, chosen)
        assert result.ok, f"{problem.kind}: {result.violations[:3]}"
        assert chosen.count[row] == min(shape.keep, problem.count)
        self.steps, self.spent = self.steps + result.steps, self.spent + result.exhausted
        self.decided += result.decided
        self.worst = max(self.worst, result.worst_slack)
        self.worst_energy = max(self.worst_energy, result.worst_energy)


def batch(shape: Shape, rng_seed: int, **fixed: Any) -> Batch:
    """Draw a batch of problems of every kind; `fixed` goes to `problems.draw`."""
    rng = np.random.default_rng(rng_seed)
    dtype = ml_dtypes.bfloat16 if shape.dtype == "bfloat16" else np.float32
    problems = []
    tokens = np.zeros((shape.rows, shape.n, shape.d), dtype)
    for row in range(shape.rows):
        sizes: dict[str, Any] = {"max_n": shape.n, "max_d": shape.d, **fixed}
        if row % 2:  # half of them with rank to spare, so that most steps are real choices
            sizes = {"n": int(rng.integers((shape.n + 1) // 2, shape.n + 1)), "d": shape.d, **sizes}
        problem = draw(int(rng.integers(2**31)), dtype=shape.dtype, **sizes)
        problem = pad(problem, shape.n, rng_seed=row, interleave=bool(rng.random() < 0.5))
        problems.append(problem)
        # Columns of zeros change no product: one static d serves every dimension.
        tokens[row, :, : problem.tokens.shape[1]] = problem.tokens
    return Batch(problems, tokens, options(problems, shape))


def options(problems: list[Problem], shape: Shape) -> dict[str, Any]:
    """The traced arguments of a batch."""
    ones = np.ones(shape.n, np.float32)
    largest = [
        np.argmax(np.where(p.valid, np.square(p.tokens.astype(np.float64)).sum(axis=1), -1))
        for p in problems
    ]
    return {
        "relevance": np.stack([ones if p.relevance is None else p.relevance for p in problems]),
        "alpha": np.asarray([p.alpha for p in problems], np.float32),
        "first": np.asarray(
            [big if p.first is None else p.first for big, p in zip(largest, problems, strict=True)]
        ),
        "valid": np.stack([p.valid for p in problems]),
    }


def run(shape: Shape, given: Batch, engine: str, **changes: Any) -> Selection:
    """Select on a batch, everything fetched to the host."""
    arguments = {**given.options, **changes}
    tokens = arguments.pop("tokens", given.tokens)
    chosen = select(tokens, shape.keep, engine=engine, **arguments)
    return Selection(*(np.asarray(x) for x in (chosen.indices, chosen.energy, chosen.count)))
