"""The scores of a finished run: figures with intervals, beside them what the paper prints."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from resprune_jax.experiments.benchmark.run.answers import Rows
from resprune_jax.experiments.benchmark.run.catalogue import FACTS
from resprune_jax.experiments.benchmark.run.data import Benchmark
from resprune_jax.experiments.benchmark.scoring import (
    HEADLINE,
    Verdict,
    estimate,
    ratio,
    shortcomings,
)
from resprune_jax.experiments.report.printed import TABLES, row_of
from resprune_jax.experiments.report.settings import BACKBONES
from resprune_jax.experiments.statistics import Estimate
from resprune_jax.experiments.sweep.grid import read_keep

_NAMES = {
    "llava-1.5": r"llava-(v?1\.5)-7b",
    "llava-next": r"llava-(v?1\.6|next)(-vicuna)?-7b",
    "qwen2.5-vl": r"qwen2\.5-vl-7b",
}
"""How the checkpoints that the paper measured are called."""


def backbone_of(model: str) -> str | None:
    """Which of the paper's models a checkpoint is called after, None for none of them.

    Args:
        model: a folder or an id on the Hub.
    """
    name = re.split(r"[/\\]", model.rstrip("/\\"))[-1].lower()
    return next((own for own, form in _NAMES.items() if re.search(form, name)), None)


@dataclass(frozen=True)
class Printed:
    """A number of the paper's.

    Attributes:
        value: as printed.
        table: its numeral.
        row: what the row is called there.
        group: the heading above it, None for the full model.
        column: of the benchmark.
    """

    value: float
    table: str
    row: str
    group: str | None
    column: str


def printed_for(
    name: str, backbone: str | None, configuration: Mapping[str, Any], tokens: int
) -> Printed | None:
    """What the paper prints for a benchmark, a model, a method and a budget.

    Args:
        name: of the benchmark.
        backbone: a key of `TABLES`, None for a model that the paper does not have.
        configuration: as a run records it; axes that it names must stand at the paper's values.
        tokens: visual tokens of a picture, which counts are a share of.
    """
    if backbone is None:
        return None
    base = BACKBONES[backbone]
    own = {
        **configuration.get("settings", {}),
        **{
            axis: value
            for axis, value in configuration.items()
            if axis not in ("name", "method", "keep", "draw", "settings")
        },
    }
    if any(axis not in base or base[axis] != value for axis, value in own.items()):
        return None
    kept = None
    if configuration["keep"] is not None:
        keep = configuration["keep"]
        if "/" in keep:
            kept = Fraction(keep)
        else:
            count = read_keep(keep)
            whole = 2880 if backbone == "llava-next" else tokens
            if isinstance(count, int) and not whole:
                return None
            kept = Fraction(count, whole) if isinstance(count, int) else Fraction(keep)
    row = row_of(backbone, configuration["method"], kept)
    column = FACTS[name].column
    value = None if row is None else row.values.get(column)
    if row is None or value is None:
        return None
    return Printed(value, TABLES[backbone], row.name, row.group, column)


@dataclass(frozen=True)
class Scored:
    """The scores of one configuration.

    Attributes:
        name: of the configuration.
        kept: visual tokens on average.
        rows: how many were asked.
        failed: how many of them have no answer.
        figures: by name; {} where nothing is scored.
        relative: the headline figure in per cent of the full model's, None without it.
        printed: what the paper prints for it, None for nothing.
    """

    name: str
    kept: float
    rows: int
    failed: int
    figures: Mapping[str, Estimate]
    relative: Estimate | None
    printed: Printed | None


@dataclass(frozen=True)
class Scores:
    """All scores of a run.

    Attributes:
        benchmark: its name.
        headline: the figure that the paper prints, "" where nothing is scored.
        configurations: in the order of the run.
        notes: what a reader must know of them.
    """

    benchmark: str
    headline: str
    configurations: Sequence[Scored]
    notes: Sequence[str]

    def record(self) -> dict[str, Any]:
        """As scores.json holds it."""
        return {
            "benchmark": self.benchmark,
            "headline": self.headline,
            "configurations": [
                {
                    "name": one.name,
                    "kept": one.kept,
                    "rows": one.rows,
                    "failed": one.failed,
                    "figures": {name: _record(value) for name, value in one.figures.items()},
                    "relative": None if one.relative is None else _record(one.relative),
                    "printed_in_the_paper": None if one.printed is None else vars(one.printed),
                }
                for one in self.configurations
            ],
            "notes": list(self.notes),
        }


def _record(value: Estimate) -> dict[str, float | None]:
    return {
        name: own if math.isfinite(own) else None
        for name, own in (("value", value.value), ("low", value.low), ("high", value.high))
    }


def score(
    bench: Benchmark,
    rows: Rows,
    configurations: Sequence[Mapping[str, Any]],
    *,
    backbone: str | None,
    tokens: int,
) -> Scores:
    """Score a run.

    Args:
        bench: what was asked.
        rows: every answer.
        configurations: as the run records them.
        backbone: the paper's model whose numbers stand beside, None for none.
        tokens: visual tokens of a picture.
    """
    name, headline = bench.benchmark, HEADLINE.get(bench.benchmark, "")
    clusters = [example.cluster for example in bench.examples]
    verdicts: dict[str, list[Verdict]] = {
        one["name"]: [
            bench.verdict(example.key, rows[one["name"]][example.key].given)
            for example in bench.examples
        ]
        for one in configurations
    }
    full = next((one["name"] for one in configurations if one["method"] == "none"), None)
    made: list[Scored] = []
    short: dict[str, list[str]] = {}
    for one in configurations:
        own = verdicts[one["name"]]
        said = rows[one["name"]].values()
        figures = estimate(name, own, clusters)
        relative = None
        if full not in (None, one["name"]) and figures:
            relative = ratio(name, headline, own, verdicts[full], clusters)
        failed = sum(each.error is not None for each in said)
        made.append(
            Scored(
                one["name"],
                sum(each.kept for each in said if each.error is None) / max(1, len(said) - failed),
                len(own),
                failed,
                figures,
                relative,
                printed_for(name, backbone, one, tokens),
            )
        )
        for text in shortcomings(name, own):
            short.setdefault(text, []).append(one["name"])
    notes = [
        text if len(names) == len(configurations) else f"{', '.join(names)}: {text}"
        for text, names in short.items()
    ]
    if failures := sum(one.failed for one in made):
        notes.append(f"{failures} rows failed; they count as wrong")
    unscored = sum(each.score is None for each in next(iter(verdicts.values()), []))
    if name == "mm-vet":
        notes.append(
            "MM-Vet is scored by a language model elsewhere (its authors' server or script): hand"
            " in mm-vet.json; nothing is scored here"
        )
    elif unscored:
        notes.append(
            f"{unscored} of {len(bench.examples)} rows hold no accepted answer, as test splits do:"
            " they are not scored here"
        )
    return Scores(name, headline if any(one.figures for one in made) else "", made, notes)
