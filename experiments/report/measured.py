"""Accuracies, relative performance, differences and tests of a run's settings, by bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resprune_jax.experiments.report.reading import Results
from resprune_jax.experiments.report.settings import Setting
from resprune_jax.experiments.statistics import (
    RESAMPLES,
    Estimate,
    cluster_sums,
    ends,
    holm,
    relative,
    resampled,
    share,
    sign_flip,
)

RELATIVE = "Rel. Perf."
"""A figure beside the accuracies of categories, by the name that the paper gives it."""
ALL = "all"
"""The accuracy on all examples."""


@dataclass(frozen=True)
class Comparison:
    """One setting set against another: the paired difference, its p-value, and Holm's.

    Attributes:
        gain: what it is above the other, with the interval of the paired bootstrap.
        p: of the sign-flip test.
        holm: corrected for all comparisons of the table.
    """

    gain: Estimate
    p: float
    holm: float

    @property
    def mark(self) -> str:
        """Where the corrected test decides at 5 %: "better" or "worse" than the other."""
        return "" if self.holm >= 0.05 else "better" if self.gain.value > 0 else "worse"


class Measured:
    """Every figure of every setting, all from the same bootstrap samples of the clusters.

    Args:
        results: a run.
        settings: M of them; random draws of one are averaged, example by example.
        full: the number of the full model among them.
        rng_seed: of the bootstrap and of the tests.
        draws: bootstrap samples.
    """

    def __init__(
        self,
        results: Results,
        settings: Sequence[Setting],
        full: int,
        *,
        rng_seed: int = 0,
        draws: int = RESAMPLES,
    ) -> None:
        self.results, self.settings, self.full = results, settings, full
        self.rng_seed, self._draws = rng_seed, draws
        self.scores = np.stack([results.scores[list(one.members)].mean(0) for one in settings])
        self.categories = results.category_names
        self.members = np.stack([results.categories == name for name in self.categories])  # [G, E]
        self._counts = cluster_sums(self.members, results.clusters)  # [G, S]
        self._sums = self._by_category(self.scores)  # [M, G, S]
        drawn, asked = self._resampled(self._sums), self._resampled(self._counts)
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = drawn / asked[:, None]  # [R, M, G]
            overall = drawn.sum(-1) / asked.sum(-1)[:, None]
        self._values = {ALL: self.scores.mean(1), RELATIVE: self._relative()}
        self._samples = {ALL: overall, RELATIVE: relative(samples, samples[:, full, None])}
        for g, name in enumerate(self.categories):
            self._values[self._key(name)] = self._sums[:, g].sum(-1) / self._counts[g].sum()
            self._samples[self._key(name)] = samples[..., g]

    @staticmethod
    def _key(category: str) -> str:
        """A category's figure: a data set may well call one "all"."""
        return f"category {category}"

    @property
    def figures(self) -> list[tuple[str, str]]:
        """The accuracies that tables print: (figure, heading); each category's, and all."""
        named = [(self._key(name), name or "no category") for name in self.categories]
        return [*(named if len(named) > 1 else []), (ALL, ALL if len(named) > 1 else "accuracy")]

    def _by_category(self, scores: np.ndarray) -> np.ndarray:
        """(M, E) -> (M, G, S)."""
        own = [cluster_sums(scores * group, self.results.clusters) for group in self.members]
        return np.stack(own, axis=-2)

    def _resampled(self, sums: np.ndarray) -> np.ndarray:
        return resampled(sums, draws=self._draws, rng_seed=self.rng_seed)

    def _relative(self) -> np.ndarray:
        scores = self._sums.sum(-1) / self._counts.sum(-1)
        return relative(scores, scores[self.full])

    def figure(self, setting: int, figure: str) -> Estimate:
        """A figure of a setting with its interval, as a share."""
        value = float(self._values[figure][setting])
        if figure != RELATIVE and value in (0.0, 1.0):
            return self._whole(self.scores[setting], self.weights(figure) > 0)
        low, high = ends(self._samples[figure][:, setting])
        return Estimate(value, float(low), float(high))

    def _whole(self, scores: np.ndarray, asked: np.ndarray) -> Estimate:
        """An accuracy of 0 or 1, of which every bootstrap sample is the same: Wilson's interval."""
        pair = np.stack([np.where(asked, scores, 0.0), asked])
        return share(*cluster_sums(pair, self.results.clusters))

    def samples(self, setting: int, figure: str = ALL) -> np.ndarray:
        """(draws,): a figure in every bootstrap sample."""
        return self._samples[figure][:, setting]

    def measure(self, setting: int, name: str) -> np.ndarray:
        """(E,): a measured column of a setting, draws averaged; NaN where any row has none."""
        return self.results.measures[name][list(self.settings[setting].members)].mean(0)

    def level(self, setting: int, name: str) -> float:
        """The mean of a measured column; NaN where no row has one."""
        values = self.measure(setting, name)
        known = values[~np.isnan(values)].astype(np.float64)
        return float(known.mean()) if len(known) else float("nan")

    def mean_samples(self, values: np.ndarray) -> np.ndarray:
        """(draws, ...): the mean of (..., E) values, NaN left out, in every bootstrap sample."""
        known = ~np.isnan(values)
        pair = np.stack([np.where(known, values, 0.0), known])
        drawn = self._resampled(cluster_sums(pair, self.results.clusters))
        with np.errstate(invalid="ignore"):
            return drawn[:, 0] / drawn[:, 1]

    def means(self, values: np.ndarray, *, shares: bool = False) -> list[Estimate]:
        """Means of (K, E) values with their intervals.

        Args:
            values: NaN where an example is left out; each has one that is not.
            shares: they are scores, so that a mean of 0 or 1 has Wilson's interval.
        """
        low, high = ends(self.mean_samples(values))
        made = []
        for own, down, up in zip(values, low, high, strict=True):
            value = float(np.nanmean(own))
            if shares and value in (0.0, 1.0):
                made.append(self._whole(own, ~np.isnan(own)))
            else:
                made.append(Estimate(value, float(down), float(up)))
        return made

    def weights(self, figure: str) -> np.ndarray:
        """(E,): what an example's score adds to a figure.

        Every figure is linear in the scores, relative performance too with the full model's
        accuracies as they were measured; so a difference of figures is a sum over clusters.
        """
        if figure == ALL:
            return np.full(self.scores.shape[1], 1 / self.scores.shape[1])
        if figure == RELATIVE:
            full = [self._values[self._key(name)][self.full] for name in self.categories]
            own = np.array(full) * self.members.sum(1) * len(full)  # [G]
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray((self.members / own[:, None]).sum(0))
        group = self.members[[self._key(name) for name in self.categories].index(figure)]
        return np.asarray(group / group.sum())

    def compare(
        self, pairs: Sequence[tuple[int, int]], figures: Sequence[str]
    ) -> list[list[Comparison]]:
        """Set settings against others; Holm's correction goes over all that is asked at once.

        Args:
            pairs: numbers of a setting and of the one it is set against.
            figures: in which figures.

        Returns:
            For each pair one a figure.
        """
        if not pairs:
            return []
        one, other = np.array(pairs).T
        apart = self.scores[one] - self.scores[other]  # [P, E]
        weights = np.stack([self.weights(figure) for figure in figures])  # [F, E]
        known = np.isfinite(weights).all(1)
        parts = [cluster_sums(apart * own, self.results.clusters) for own in weights[known]]
        p = np.ones((len(pairs), len(figures)))
        if known.any():
            p[:, known] = sign_flip(np.stack(parts, axis=1), rng_seed=self.rng_seed)
        corrected = holm(p.reshape(-1)).reshape(p.shape)
        return [
            [
                Comparison(self.gain(i, j, figure), float(p[n, f]), float(corrected[n, f]))
                for f, figure in enumerate(figures)
            ]
            for n, (i, j) in enumerate(pairs)
        ]

    def gain(self, setting: int, other: int, figure: str) -> Estimate:
        """The paired difference of a figure between two settings, with its interval."""
        values, samples = self._values[figure], self._samples[figure]
        low, high = ends(samples[:, setting] - samples[:, other])
        return Estimate(float(values[setting] - values[other]), float(low), float(high))
