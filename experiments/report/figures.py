"""Figures of a report: accuracy against budget, residual energy, budgets by error."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from resprune_jax.experiments.report.drawing import (
    COLOURS,
    FAINT,
    GREY,
    LINE_SHARE,
    MARKERS,
    OURS,
    SMALL,
    Draw,
    Label,
    drawn,
    full_model,
    name_ends,
    new_figure,
    tokens_axis,
)
from resprune_jax.experiments.report.measured import ALL
from resprune_jax.experiments.report.tables import Group, Maker, NoTableError
from resprune_jax.experiments.report.tolerance import Point, variants
from resprune_jax.experiments.statistics import Estimate, ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIRST = ("divprune", "random", "downsample", "uniform")
"""Methods that are coloured before others; the rest are the best at the smallest budget."""
BINS, LEAST = 8, 15
"""Bins of residual energy, fewer where one would hold less than so many examples; at least 3."""
FLOOR = 1e-3
"""Per cent of energy below which figures tell nothing apart: float32 decides there."""


def figures(maker: Maker) -> dict[str, tuple[str, Draw]]:
    """The figures that the results hold.

    Returns:
        Name of a file -> (caption, what draws it in formats, "png" or "pdf").
    """
    made: dict[str, tuple[str, Draw]] = {}
    against = maker.choice.against
    try:
        groups = [group for group in maker.methods() if group.keep is not None]
    except NoTableError:
        return made
    if any(_seen(maker, line.setting) for group in groups for line in group.lines):
        caption = (
            "Accuracy against the visual tokens that an LLM layer sees, the mean over layers, with"
            " 95 % intervals; the dashed line is the full model."
        )
        made["accuracy"] = caption, partial(drawn, partial(_accuracy, maker, groups))
    if measured := _with_residual(maker, groups):
        caption = (
            "Accuracy against the share of energy outside the span of the kept tokens: the examples"
            " of each budget in bins of as many, at the median of each, with 95 % intervals."
        )
        made["residual"] = caption, partial(drawn, partial(_residual, maker, measured))
    found = variants(maker.choice, maker.measured)
    if not found:
        return made
    caption = (
        f"Fixed budgets of {against} and budgets by error (numbers: the share of energy left at"
        " which it stops): accuracy against the mean of tokens kept, with 95 % intervals of both."
    )
    made["tolerance"] = caption, partial(drawn, partial(_tolerance, maker, found))
    return made


def _seen(maker: Maker, setting: int) -> float:
    """Visual tokens that an LLM layer sees; 0: none, or every row failed.

    A logarithmic axis has no place for it.
    """
    kept = maker.measured.level(setting, "average")
    return 0.0 if np.isnan(kept) else kept


def _accuracy(maker: Maker, groups: Sequence[Group]) -> "Figure":
    choice, own = maker.choice, maker.measured
    figure, (axes,) = new_figure(6.0, 3.8)
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    ticks = []
    for group in groups:
        for line in group.lines:
            if not (kept := _seen(maker, line.setting)):
                continue
            if line.setting == group.reference:
                ticks.append(kept)
            curves.setdefault(line.label, []).append((kept, own.figure(line.setting, ALL)))
    look = _look(choice.against, curves)
    labels = [full_model(maker, axes)]
    for label in sorted(curves, key=lambda label: label in look):
        curve = sorted(curves[label], key=lambda point: -point[0])
        at = np.array([kept for kept, _ in curve])
        value, low, high = (
            100 * np.array([getattr(one, end) for _, one in curve])
            for end in ("value", "low", "high")
        )
        if label not in look:
            axes.plot(at, value, color=GREY, lw=0.8, marker=".", ms=3, zorder=1)
            continue
        colour, marker = look[label]
        ours = label == choice.against
        axes.fill_between(at, low, high, color=colour, alpha=0.16 if ours else 0.09, lw=0, zorder=2)
        axes.plot(at, value, color=colour, marker=marker, ms=5 if ours else 4,
                  lw=2.0 if ours else 1.2, zorder=4 if ours else 3)  # fmt: skip
        labels.append(Label(at[-1], value[-1], label, colour))
    tokens_axis(maker, axes, [kept for curve in curves.values() for kept, _ in curve], ticks)
    axes.set_ylabel("accuracy, %")
    # What lies far below all that is coloured would press it together: it leaves the frame.
    seen = [100 * one.low for label in look for _, one in curves[label]]
    floor = min(seen) - 0.25 * (axes.get_ylim()[1] - min(seen))
    if any(one.value < floor / 100 for curve in curves.values() for _, one in curve):
        axes.set_ylim(bottom=floor)
    last = {label: min(curve, key=lambda point: point[0]) for label, curve in curves.items()}
    grey = {n: (x, 100 * one.value) for n, (x, one) in last.items() if n not in look}
    _name_grey(axes, grey, labels)
    name_ends(axes, labels)
    return figure


def _name_grey(axes: "Axes", last: Mapping[str, tuple[float, float]], labels: list[Label]) -> None:
    """Name grey lines in small print, given their last points.

    Those that end at the edge are added to the labels there, if all have room; others are listed in
    the corner.
    """
    # A quarter more tokens than the fewest is the edge, as in `_look`.
    edge = 1.25 * np.nanmin([x for x, _ in last.values()] + [one.x for one in labels])
    bottom = axes.get_ylim()[0]
    beside = [
        Label(x, y, name, FAINT, SMALL) for name, (x, y) in last.items() if x < edge and y >= bottom
    ]
    if LINE_SHARE * sum(one.size for one in (*labels, *beside)) > 0.95:
        beside = []
    labels += beside
    rest = sorted(
        last.keys() - {one.text for one in beside}, key=lambda name: (-last[name][1], name)
    )
    if not rest:
        return
    names = [name if last[name][1] >= bottom else f"{name} (below)" for name in rest]
    lines = [", ".join(names[n : n + 4]) for n in range(0, len(names), 4)]
    said = "grey, from best to worst at their fewest tokens:\n" + ",\n".join(lines)
    axes.text(0.01, 0.02, said, transform=axes.transAxes, color=FAINT, size=SMALL, zorder=5,
              bbox={"color": "white", "alpha": 0.8, "pad": 1, "lw": 0})  # fmt: skip


def _look(against: str, curves: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for the method tested against and the first few others."""

    def last(label: str) -> tuple[bool, float]:
        """At its smallest budget: whether it needs more tokens than the method does, accuracy."""
        kept, estimate = min(curves[label], key=lambda point: point[0])
        least = min((one for one, _ in curves.get(against, [])), default=kept)
        return kept > 1.25 * least, -float(estimate.value)

    others = [name for name in FIRST if name in curves and name != against]
    others += sorted((n for n in curves if n not in (*FIRST, against)), key=last)
    look = {n: (c, m) for n, c, m in zip(others, COLOURS, MARKERS[1:] + "X", strict=False)}
    return {**look, against: (OURS, MARKERS[0])} if against in curves else look


def _with_residual(maker: Maker, groups: Sequence[Group]) -> dict[str, list[tuple[str, int]]]:
    """Budget -> (label, setting) of what measured its residual energy, the first few."""
    choice, own = maker.choice, maker.measured
    found: dict[str, list[tuple[str, int]]] = {}
    names = sorted(choice.methods, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
    for keep in (group.keep or "" for group in groups):
        named = {choice.against: choice.reference(keep)}
        named["alpha 0"] = choice.at_base(choice.against, keep, alpha=0)
        named |= {label: choice.at_base(label, keep) for label in names}
        for label, i in named.items():
            if i is None or i in [one for _, one in found.get(keep, [])]:
                continue
            known = _finite(own.measure(i, "residual"))
            if np.ptp(known) > 0 and len(known) >= 3 * LEAST:
                found.setdefault(keep, []).append((label, i))
    return {keep: own[:4] for keep, own in found.items()}


def _finite(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    return known if len(known) else np.zeros(1)


def _residual(maker: Maker, shown: Mapping[str, Sequence[tuple[str, int]]]) -> "Figure":
    from matplotlib.ticker import FuncFormatter

    own = maker.measured
    keeps = list(shown)[:4]
    figure, panels = new_figure(
        1.0 + 2.1 * len(keeps) + (1.6 if len(keeps) == 1 else 0), 3.2, len(keeps)
    )
    names = list(dict.fromkeys(label for keep in keeps for label, _ in shown[keep]))
    against = maker.choice.against
    colours = dict(zip([n for n in names if n != against], COLOURS, strict=False)) | {against: OURS}
    reached: list[float] = []
    for axes, keep in zip(panels, keeps, strict=True):
        for n, (label, i) in enumerate(shown[keep]):
            at, value, low, high = _binned(maker, i)
            reached += at.tolist()
            colour = colours[label]
            axes.fill_between(at, low, high, color=colour, alpha=0.12, lw=0)
            axes.plot(at, value, color=colour, marker=MARKERS[n], ms=3.5, lw=1.3, label=label)
        kept = own.level(shown[keep][0][1], "kept")
        axes.set_title(
            f"{keep} of the tokens ({kept:.3g})" if "/" in keep else f"{kept:.3g} tokens"
        )
    for axes in panels:
        axes.set_xlim(min(reached) / 1.3, max(reached) * 1.3)
        if max(reached) > 20 * min(reached):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    panels[0].set_ylabel("accuracy, %")
    handles = {h.get_label(): h for axes in panels for h in axes.get_lines()}
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=len(handles))
    figure.supxlabel("energy left, %", fontsize=9)
    return figure


def _binned(maker: Maker, setting: int) -> tuple[np.ndarray, ...]:
    """Median residual in per cent and accuracy with interval, in bins of as many examples."""
    own = maker.measured
    residual = 100 * own.measure(setting, "residual").astype(np.float64)
    known = np.flatnonzero(np.isfinite(residual))
    order = known[np.argsort(residual[known], kind="stable")]
    parts = np.array_split(order, min(BINS, len(known) // LEAST))
    scores = np.full((len(parts), len(residual)), np.nan)
    for n, part in enumerate(parts):
        scores[n, part] = 100 * own.scores[setting, part]
    at = np.array([max(np.median(residual[part]), FLOOR) for part in parts])
    low, high = ends(own.mean_samples(scores))
    return at, np.nanmean(scores, axis=1), low, high


def _tolerance(maker: Maker, found: Mapping[str, tuple[list[Point], list[Point]]]) -> "Figure":
    figure, (axes,) = new_figure(6.0, 3.8)
    full = full_model(maker, axes)
    ends_ = [point for series in found.values() for own in series for point in own
             if own is series[1] or point.keep is not None]  # fmt: skip
    kept = [point.kept.value for point in ends_]
    # A name takes some tenth of the axis.
    room = 0.1 * np.log(max(kept) / min(kept))
    ticks: list[float] = []
    pairs = ((COLOURS[0], OURS), (COLOURS[4], COLOURS[3]))
    for (variant, (fixed, controlled)), (plain, by_error) in zip(
        found.items(), pairs, strict=False
    ):
        budgets = [point for point in fixed if point.keep is not None]
        more = f", {variant}" if variant else ""
        _series(axes, budgets, plain, "o", f"fixed budgets{more}", room, dashed=bool(variant))
        ticks = ticks or [point.kept.value for point in budgets]
        caps = list(dict.fromkeys(point.keep for point in controlled))
        for n, cap in enumerate(caps):
            own = [point for point in controlled if point.keep == cap]
            label = f"budgets by error{more}{f', at most {cap}' if len(caps) > 1 else ''}"
            _series(axes, own, by_error, "sD^vPX"[n % 6], label, room, dashed=bool(variant))
    tokens_axis(maker, axes, kept, ticks)
    axes.set_xlabel("visual tokens kept, mean (pruned)")
    axes.set_ylabel("accuracy, %")
    figure.legend(loc="outside upper center", ncols=2)
    name_ends(axes, [full])
    return figure


def _series(
    axes: "Axes",
    own: Sequence[Point],
    colour: str,
    marker: str,
    label: str,
    room: float,
    *,
    dashed: bool,
) -> None:
    from matplotlib.patheffects import withStroke

    at, value = ([getattr(point, name).value for point in own] for name in ("kept", "accuracy"))
    value = [100 * one for one in value]
    across = np.array([_reach(point.kept, 1) for point in own]).T
    up = np.array([_reach(point.accuracy, 100) for point in own]).T
    axes.errorbar(at, value, yerr=up, xerr=across, color=colour, marker=marker, ms=4.5, lw=1.4,
                  ls="--" if dashed else "-", elinewidth=0.9, capsize=0, label=label)  # fmt: skip
    said: list[float] = []
    for point, x, y in zip(own, at, value, strict=True):
        # Names that would cover each other are left to the table.
        apart = all(abs(np.log(x / other)) > room for other in said)
        if point.tolerance is not None and not dashed and apart:
            said.append(x)
            axes.annotate(f"{point.tolerance:g}", (x, y), (4, -11), size=7,
                          textcoords="offset points", color=colour, zorder=5,
                          path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip


def _reach(one: Estimate, by: float) -> tuple[float, float]:
    """How far an interval reaches down and up."""
    if not np.isfinite(one.low + one.high):
        return 0.0, 0.0
    return by * max(one.value - one.low, 0.0), by * max(one.high - one.value, 0.0)
