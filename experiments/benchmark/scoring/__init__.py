"""Scorers of the nine benchmarks: one answer judged (`judge`), all of them added up (`aggregate`).

Plain Python and NumPy. A benchmark's columns are lmms-lab's, as in `prompts`.
"""

from resprune_jax.experiments.benchmark.scoring.figures import (
    HEADLINE,
    NAMES,
    aggregate,
    estimate,
    ratio,
    shortcomings,
)
from resprune_jax.experiments.benchmark.scoring.judging import SUBTASKS, Verdict, judge, truth_of

__all__ = [
    "HEADLINE",
    "NAMES",
    "SUBTASKS",
    "Verdict",
    "aggregate",
    "estimate",
    "judge",
    "ratio",
    "shortcomings",
    "truth_of",
]
