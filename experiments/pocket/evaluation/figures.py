"""Pictures of figures: a run's losses, and accuracy against the visual tokens kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from resprune_jax.experiments.pocket.evaluation.tables import NAMES

LOG = "log.jsonl"
_NO_SHARES = ("step", "seconds", "loss", "norm", "middle", "centre", "answers", "asking", "dense")
_ENDS = ("value", "low", "high")
_INK = {"resprune": "#d9480f", "alpha0": "#1971c2", "random": "#868e96", "oracle": "#2f9e44"}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a stage's log in the order of steps; of a step logged twice, the later one."""
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    by_step = {row["step"]: row for row in found}
    return (by_step[step] for step in sorted(by_step))


def loss_figure(folder: Path, stages: Sequence[str]) -> Path:
    """Draw the losses and accuracies of a run.

    Args:
        folder: of the run.
        stages: names of its stages that have a log.

    Returns:
        The picture, loss.png in that folder.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(stages), 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(stages), sharex="col", squeeze=False)
    for (top, low), stage in zip(axes.T, stages, strict=True):
        lines = list(rows(folder / stage / LOG))
        steps = [line["step"] for line in lines]
        top.plot(steps, [line["loss"] for line in lines], color="#1b1e23")
        top.set_title(stage)
        top.set_ylim(bottom=0)
        top.set_ylabel("loss")
        for name in dict.fromkeys(name for line in lines for name in line):
            values = [line.get(name) for line in lines]
            known = [value for value in values if value is not None]
            if known and name not in _NO_SHARES and 0 <= min(known) <= max(known) <= 1:
                low.plot(steps, [float("nan") if v is None else v for v in values], label=name)
        low.set_ylim(0, 1)
        low.set_ylabel("share right")
        low.set_xlabel("step")
        if low.lines:
            low.legend(fontsize=7, ncols=2)
    path = folder / "loss.png"
    figure.savefig(path)
    return path


def accuracy_figure(figures: Mapping[str, Any], path: Path) -> Path:
    """Draw accuracy against the share of tokens kept, with 95 % intervals.

    Args:
        figures: what `summary.summary` made.
        path: the picture; its suffix gives the format.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), dpi=160, layout="constrained")
    axes = figure.subplots()
    settings = figures["settings"]
    pruned = [setting for setting in settings if setting["ratio"]]
    shares = sorted({Fraction(setting["ratio"]) for setting in pruned})
    for setting in settings:
        if setting["ratio"] is None:
            whole = {name: 100 * setting["accuracy"]["overall"][name] for name in _ENDS}
            style = {"full": "-", "blank": ":"}[setting["method"]]
            axes.axhline(whole["value"], color="#1b1e23", linestyle=style, lw=1.2,
                         label=NAMES[setting["method"]])  # fmt: skip
            axes.axhspan(whole["low"], whole["high"], color="#1b1e23", alpha=0.07, lw=0)
    methods = list(dict.fromkeys(setting["method"] for setting in pruned))
    for number, method in enumerate(methods):
        own = [setting for setting in pruned if setting["method"] == method]
        # A little aside, so that intervals do not hide each other.
        aside = 0.06 * (number - (len(methods) - 1) / 2)
        at = [shares.index(Fraction(setting["ratio"])) + aside for setting in own]
        value, low, high = (
            np.array([100 * setting["accuracy"]["overall"][name] for setting in own])
            for name in _ENDS
        )
        axes.errorbar(at, value, [value - low, high - value], color=_INK[method], marker="o",
                      ms=4, lw=1.4, capsize=3, label=NAMES[method])  # fmt: skip
    axes.set_xticks(range(len(shares)), [
        f"{share}\n{next(s['budget'] for s in pruned if Fraction(s['ratio']) == share)} tokens"
        for share in shares
    ])  # fmt: skip
    axes.set_xlim(-0.5, max(len(shares), 1) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel("right answers, %")
    axes.set_title(
        f"{figures['questions']:,} questions, preset {figures['preset']},"
        f" {figures['visual_tokens']} visual tokens",
        size=10,
    )
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=2, loc="lower right", frameon=False)
    figure.savefig(path)
    return path
