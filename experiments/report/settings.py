"""What the tables choose rows by: configurations without their draws, and the axes of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, shown
from resprune_jax.experiments.report.reading import Results

FULL = "none"
"""The method that keeps every token: what the others are relative to."""

OFF = "off"
"""On the axis of tolerances: the whole budget is kept. Results may hold null in its place."""

AXES: Mapping[str, tuple[Any, ...]] = {
    "alpha": (),
    "aggregate": ("max", "mean", "pooled"),
    "nonnegative": ("clip", "shift", "minmax"),
    "relevance_sign": (1, -1),
    "seed_rule": ("cls_attention", "max_norm", "text", "mean_similarity", "center"),
    "text": ("nouns", "prompt"),
    "ocr_line": ("strip", "keep"),
    "tagger": (),
    "positions": ("reindex", "original"),
    "tolerance": (),
}
"""The axes of a sweep, with the order in which tables list their values; () is by size or name."""

LLAVA: Mapping[str, Any] = {
    "alpha": 0.75, "aggregate": "max", "nonnegative": "clip", "relevance_sign": 1,
    "seed_rule": "cls_attention", "text": "nouns", "ocr_line": "strip", "tagger": "auto",
    "positions": "reindex", "tolerance": OFF,
}  # fmt: skip
"""The full method on a LLaVA: what an axis that a configuration does not name stands at."""

BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "llava-1.5": LLAVA,
    "llava-next": LLAVA,
    "qwen2.5-vl": {**LLAVA, "alpha": 0.3, "seed_rule": "max_norm", "positions": "original"},
}

_OWN = ("name", "method", "keep", "draw", "settings")


@dataclass(frozen=True)
class Setting:
    """Configurations that differ by their draw alone: one row of a table.

    Attributes:
        method: its name.
        keep: the budget as it was written, None for every token or one that the method sets.
        axes: the values of the axes that it names.
        settings: of the method, beside those.
        members: numbers of its configurations.
    """

    method: str
    keep: str | None
    axes: Mapping[str, Any]
    settings: Mapping[str, Any]
    members: tuple[int, ...]

    @property
    def label(self) -> str:
        """The method as a table names it, with the settings that are not axes."""
        told = ",".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.method}:{told}" if told else self.method

    @property
    def name(self) -> str:
        """All that sets it apart, as a sweep names its configurations."""
        words = [self.label, *([] if self.keep is None else [f"keep={self.keep}"])]
        return " ".join([*words, *(f"{name}={value}" for name, value in self.axes.items())])


def settings_of(results: Results) -> list[Setting]:
    """The settings of a run, in the order of its configurations."""
    found: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for number, one in enumerate(results.configurations):
        settings = dict(one.get("settings") or {})
        axes = {name: value for name, value in one.items() if name not in _OWN}
        # A setting that is an axis is one, wherever it was written.
        axes |= {name: settings.pop(name) for name in AXES if name in settings}
        if axes.get("tolerance", OFF) is None:
            axes["tolerance"] = OFF
        keep = None if one["keep"] is None else str(one["keep"])
        own = {"method": one["method"], "keep": keep, "axes": axes, "settings": settings}
        key = json.dumps(own, sort_keys=True, default=str)
        found.setdefault(key, (own, []))[1].append(number)
    return [Setting(**own, members=tuple(members)) for own, members in found.values()]


def share(keep: str, visual_tokens: int) -> Fraction:
    """The share of the visual tokens that a budget is.

    Args:
        keep: "1/9", "0.2" or a count, "64".
        visual_tokens: most of an image, which counts are shares of.
    """
    value = Fraction(keep)
    return value if value < 1 and not keep.isdigit() else value / max(visual_tokens, 1)


class Choice:
    """Which settings a table is about.

    Args:
        results: the run.
        against: the method that others are tested against and whose axes are varied, with its
            settings where it has any.
        backbone: a key of BACKBONES: what axes stand at that a configuration of ResPrune leaves to
            the method. What other methods leave to themselves goes with any base.
        told: AXIS=VALUE, the base where it is not the backbone's: the value at which an axis stands
            where another is varied.

    Raises:
        CallError: no full model, no such method, no AXIS=VALUE, or a run that contradicts the
            backbone.
    """

    def __init__(
        self, results: Results, against: str, backbone: str = "llava-1.5", told: Sequence[str] = ()
    ) -> None:
        self.results = results
        self.settings = settings_of(results)
        self.against = against
        self._unnamed = {name: _comparable(value) for name, value in BACKBONES[backbone].items()}
        self.base = {name: _comparable(v) for name, v in base_of(backbone, told).items()}
        full = [i for i, one in enumerate(self.settings) if one.method == FULL]
        if not full:
            raise CallError(
                "the results hold no full model, which every figure is relative to: sweep method"
                f" {FULL} too"
            )
        self.full = full[0]
        if against not in self.methods:
            there = ", ".join(self.methods) or "no pruning method"
            raise CallError(f"the results hold no method {shown(against)}: they hold {there}")
        for keep in self.keeps:
            self._check_unnamed(keep)

    @cached_property
    def keeps(self) -> list[str]:
        """The budgets, largest first."""
        tokens = int(self.results.run["visual_tokens"])
        return sorted(
            {one.keep for one in self.settings if one.keep is not None},
            key=lambda keep: -share(keep, tokens),
        )

    @cached_property
    def methods(self) -> list[str]:
        """The pruning methods with their settings, in order; the one tested against comes last."""
        labels = dict.fromkeys(one.label for one in self.settings if one.method != FULL)
        return sorted(labels, key=lambda label: label == self.against)

    def at_base(self, label: str, keep: str | None, **varied: Any) -> int | None:
        """The setting of a method at a budget whose axes stand at the base.

        Of several, the one that names the fewest: it stands at the method's own defaults.

        Args:
            label: the method with its settings.
            keep: the budget.
            **varied: axes that must stand at these values in place of the base.

        Returns:
            Its number, None where the run has none.
        """
        found = self._matching(label, keep, varied)
        return min(found, key=lambda i: len(self.settings[i].axes), default=None)

    def own_budget(self, label: str) -> int | None:
        """The setting of a method that sets its budget itself."""
        return None if label == FULL else self.at_base(label, None)

    def _matching(self, label: str, keep: str | None, varied: Mapping[str, Any]) -> list[int]:
        wanted = {**self.base, **{name: _comparable(value) for name, value in varied.items()}}
        return [
            i
            for i, one in enumerate(self.settings)
            if one.label == label
            and one.keep == keep
            and all(self._stands(one, axis) == wanted[axis] for axis in varied)
            and all(self._stands(one, axis) in (value, None) for axis, value in wanted.items())
        ]

    def _stands(self, one: Setting, axis: str) -> Any:
        """Where an axis of a setting stands, None where that is not known."""
        if axis in one.axes:
            return _comparable(one.axes[axis])
        return self._unnamed.get(axis) if one.method == "resprune" else None

    def values(self, axis: str) -> list[Any]:
        """The values of an axis that the method tested against was run at, in order."""
        found = {
            self._stands(one, axis) for one in self.settings if one.label == self.against
        } - {None}  # fmt: skip
        listed = AXES.get(axis, ())
        return sorted(found, key=lambda v: _order(v, listed))

    def reference(self, keep: str) -> int | None:
        """The full method at a budget."""
        return self.at_base(self.against, keep)

    def elsewhere(self) -> str:
        """For a message that the base was not run: at which base it would have been."""
        own = [one for one in self.settings if one.label == self.against]
        words = []
        for axis, value in self.base.items():
            found = {self._stands(one, axis) for one in own}
            if len(found) == 1 and not found & {value, None}:
                (only,) = found
                words.append(f"{axis}={only:g}" if isinstance(only, float) else f"{axis}={only}")
        return f": with --base {' '.join(words)} it was" if words else ""

    def same_budget(self, method: str, keep: str) -> int | None:
        """The setting of a method by name at a budget, whatever its settings, the plainest."""
        labels = {one.label for one in self.settings if one.method == method}
        found = (self.at_base(label, keep) for label in sorted(labels, key=len))
        return next((i for i in found if i is not None), None)

    def _check_unnamed(self, keep: str) -> None:
        """Settings that are one, what they do not name being the backbone's, answer alike."""
        same = self._matching(self.against, keep, {})
        rows = [self.results.scores[list(self.settings[i].members)].mean(0) for i in same]
        for i, row in zip(same[1:], rows[1:], strict=True):
            one, other = self.settings[same[0]], self.settings[i]
            if one.method == "resprune" and not np.array_equal(row, rows[0]):
                raise CallError(
                    f"{shown(one.name)} and {shown(other.name)} ought to be one, and answer"
                    " differently: say with --backbone whose defaults stand where axes are not"
                    f" named, one of {', '.join(BACKBONES)}"
                )


def _comparable(value: Any) -> Any:
    """A value that can be compared and sorted: 1 and 1.0 are one, None stays."""
    if value is None or isinstance(value, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else str(value)


def _order(value: Any, listed: Sequence[Any]) -> tuple[Any, ...]:
    known = [_comparable(one) for one in listed]
    if value in known:
        return 0, known.index(value), ""
    return (1, value, "") if isinstance(value, float) else (2, 0, str(value))


def base_of(backbone: str, told: Sequence[str]) -> dict[str, Any]:
    """The base of a backbone, with what `--base` says otherwise.

    Raises:
        CallError: no AXIS=VALUE, or an axis that there is not.
    """
    base = dict(BACKBONES[backbone])
    for one in told:
        axis, is_, word = one.partition("=")
        if not is_ or axis not in AXES or not word:
            raise CallError(f"--base {shown(one)}: write AXIS=VALUE, AXIS one of {', '.join(AXES)}")
        try:
            base[axis] = float(word)
        except ValueError:
            base[axis] = word
    return base


def written(value: Any) -> str:
    """A value of an axis as tables write it: 0.75, 1, clip."""
    return f"{value:g}" if isinstance(value, float) else str(value)
