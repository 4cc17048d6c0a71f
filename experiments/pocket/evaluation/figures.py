"""Pictures of figures: a run's losses, and accuracy against the visual tokens kept."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from resprune_jax.experiments.pocket.evaluation.tables import label

_ENDS = ("value", "low", "high")
_INK = {"resprune": "#d9480f", "alpha0": "#1971c2", "random": "#868e96", "oracle": "#2f9e44"}


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
                         label=label(setting["method"]))  # fmt: skip
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
        axes.errorbar(at, value, [value - low, high - value], color=_INK.get(method), marker="o",
                      ms=4, lw=1.4, capsize=3, label=label(method))  # fmt: skip
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
