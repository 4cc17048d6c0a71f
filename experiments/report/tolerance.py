"""Budgets by error against fixed ones: does spending tokens where the residual is large pay?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.experiments.report.measured import Measured
from resprune_jax.experiments.report.settings import OFF, Choice
from resprune_jax.experiments.statistics import Estimate, ends

VARIANTS: Mapping[str, Mapping[str, Any]] = {"": {}, "alpha 0": {"alpha": 0}}
"""The full method, and the one without text."""


@dataclass(frozen=True)
class Point:
    """One setting between tokens and accuracy.

    Attributes:
        setting: its number.
        keep: its budget, the most where a tolerance stops earlier; None for the full model.
        tolerance: the share of residual energy at which it stops, None for a fixed budget.
        kept: the mean tokens kept.
        accuracy: on all examples.
        kept_samples, accuracy_samples: (draws,), of the same bootstrap samples.
    """

    setting: int
    keep: str | None
    tolerance: float | None
    kept: Estimate
    accuracy: Estimate
    kept_samples: np.ndarray
    accuracy_samples: np.ndarray


def points(choice: Choice, measured: Measured, **varied: Any) -> tuple[list[Point], list[Point]]:
    """Fixed budgets of the method tested against, the full model last, and those by error.

    Args:
        choice: the run's settings.
        measured: their figures.
        **varied: axes that stand elsewhere than at the base.

    Returns:
        Both by the mean of tokens kept, fewest first; no budget by error where none was run.
    """
    against = choice.against
    fixed: list[tuple[str | None, float | None, int | None]] = [
        (keep, None, choice.at_base(against, keep, **varied)) for keep in choice.keeps
    ]
    fixed.append((None, None, choice.full))
    by_error = [
        (keep, float(value), choice.at_base(against, keep, tolerance=value, **varied))
        for keep in choice.keeps
        for value in choice.values("tolerance")
        if value != OFF
    ]
    found = [
        (keep, value, i)
        for keep, value, i in [*fixed, *by_error]
        if i is not None and not np.isnan(measured.level(i, "kept"))
    ]
    if not found:
        return [], []
    kept = np.stack([measured.measure(i, "kept") for _, _, i in found])  # [P, E]
    samples = measured.mean_samples(kept)  # [draws, P]
    low, high = ends(samples)
    made = [
        Point(
            i, keep, value,
            Estimate(float(np.nanmean(kept[n])), float(low[n]), float(high[n])),
            measured.figure(i, "all"), samples[:, n], measured.samples(i),
        )
        for n, (keep, value, i) in enumerate(found)
    ]  # fmt: skip
    made.sort(key=lambda point: point.kept.value)
    return [p for p in made if p.tolerance is None], [p for p in made if p.tolerance is not None]


def variants(choice: Choice, measured: Measured) -> dict[str, tuple[list[Point], list[Point]]]:
    """The points of each of VARIANTS that was run with budgets by error."""
    found = {name: points(choice, measured, **axes) for name, axes in VARIANTS.items()}
    return {name: both for name, both in found.items() if both[1]}


def above_fixed(point: Point, fixed: list[Point]) -> Estimate:
    """What a budget by error gains over a fixed one of as many tokens in the mean.

    The accuracy of fixed budgets is taken on straight lines between those that were run, over the
    logarithm of tokens; each bootstrap sample has lines of its own.

    Args:
        point: a budget by error.
        fixed: fixed budgets, fewest tokens first.

    Returns:
        The difference of accuracies; NaN where fewer tokens are kept than by any fixed budget.
    """
    tokens = np.stack([one.kept_samples for one in fixed])  # [F, draws]
    right = np.stack([one.accuracy_samples for one in fixed])
    gains = [
        accuracy - _between(kept, tokens[:, r], right[:, r])
        for r, (kept, accuracy) in enumerate(
            zip(point.kept_samples, point.accuracy_samples, strict=True)
        )
    ]
    low, high = ends(np.array(gains))
    there = np.array([one.kept.value for one in fixed])
    value = _between(point.kept.value, there, np.array([one.accuracy.value for one in fixed]))
    return Estimate(point.accuracy.value - value, float(low), float(high))


def _between(kept: float, tokens: np.ndarray, right: np.ndarray) -> float:
    if not tokens[0] <= kept <= tokens[-1]:
        return np.nan
    return float(np.interp(np.log(kept), np.log(tokens), right))
