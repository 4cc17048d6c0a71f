"""What figures of a report share: their look, the axis of tokens, names at the ends of lines."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resprune_jax.experiments.report.measured import ALL
from resprune_jax.experiments.report.tables import Maker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GREY, GRID = "#1b1e23", "#727b86", "#c3c8ce", "#e6e9ed"
OURS = "#d55e00"
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f4e9c")
"""Okabe and Ito's, told apart by colour-blind readers; OURS is the method tested against."""
MARKERS = "osD^vP"
SMALL, LINE_SHARE = 6.5, 0.0065
"""Points of a name in small print; the share of the frame's height that a point of a name takes."""
STYLE: dict[str, Any] = {
    "font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.fontsize": 8, "axes.titlesize": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "axes.linewidth": 0.7,
    "xtick.major.width": 0.7, "ytick.major.width": 0.7, "pdf.fonttype": 42,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7, "legend.frameon": False,
}  # fmt: skip

Draw = Callable[[Sequence[str]], dict[str, bytes]]
"""Draws one figure as each of some formats."""


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    told: Any = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
    with matplotlib.rc_context(told):
        yield


def drawn(paint: Callable[[], "Figure"], kinds: Sequence[str]) -> dict[str, bytes]:
    """A figure as each of some formats, "png" or "pdf"."""
    made = {}
    with _styled():
        figure = paint()
        for kind in kinds:
            out = io.BytesIO()
            # No date in it: the same results give the same bytes.
            told = {"CreationDate": None} if kind == "pdf" else {"Software": None}
            figure.savefig(out, format=kind, dpi=220, metadata=told)
            made[kind] = out.getvalue()
    return made


def new_figure(width: float, height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """An empty figure, in inches, with panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0].tolist()
    for one in axes:
        one.grid(axis="y")
    return figure, axes


class Label(NamedTuple):
    """A name at the end of a line."""

    x: float
    """NaN for the edge of the frame."""
    y: float
    text: str
    colour: str
    size: float = 8
    """In points."""


def full_model(maker: Maker, axes: "Axes") -> Label:
    """The full model as a line; its name is yet to be written."""
    full = maker.measured.figure(maker.choice.full, ALL)
    axes.axhline(100 * full.value, color=INK, lw=1.0, ls=(0, (5, 3)), zorder=1)
    axes.axhspan(100 * full.low, 100 * full.high, color=INK, alpha=0.06, lw=0, zorder=0)
    return Label(np.nan, 100 * full.value, "all tokens", INK)


def tokens_axis(maker: Maker, axes: "Axes", kept: Sequence[float], wanted: Sequence[float]) -> None:
    """Tokens kept, fewer to the right, on a logarithmic axis with ticks at the budgets."""
    from matplotlib.ticker import NullLocator

    total = maker.measured.level(maker.choice.full, "visual_tokens")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    reach = np.log(max(kept) / min(kept))
    ticks: list[float] = []
    for tick in sorted(wanted or set(kept), reverse=True):
        # A label takes a twelfth of the axis.
        if not ticks or np.log(ticks[-1] / tick) > reach / 12:
            ticks.append(tick)
    share = [f"{tick:.3g}\n({100 * (1 - tick / total):.1f}%)" for tick in ticks]
    axes.set_xticks(ticks, share)
    low, high = min([*kept, *ticks]), max([*kept, *ticks])
    room = max(high / low, 1.3) ** 0.06
    axes.set_xlim(high * room, low / room)
    axes.set_xlabel("visual tokens a layer (pruned)")


def name_ends(axes: "Axes", labels: Sequence[Label]) -> None:
    """Names at the ends of lines, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    placed = sorted(labels, key=lambda one: one.y)
    heights = [one.y for one in placed]
    needed = [(high - low) * LINE_SHARE * one.size for one in placed]
    gaps = [(a + b) / 2 for a, b in pairwise(needed)]
    for _ in range(400):
        moved = False
        for n in range(1, len(heights)):
            if (short := gaps[n - 1] - (heights[n] - heights[n - 1])) > 1e-9:
                heights[n - 1] -= short / 2
                heights[n] += short / 2
                moved = True
        if not moved:
            break
    edge = axes.get_xlim()[1]
    for one, height in zip(placed, heights, strict=True):
        start = edge if np.isnan(one.x) else one.x
        axes.plot([start, edge], [one.y, height], color=one.colour, lw=0.6, alpha=0.6,
                  clip_on=False, zorder=1)  # fmt: skip
        axes.annotate(
            one.text, (edge, height), (3, 0), textcoords="offset points", color=one.colour,
            va="center", size=one.size, annotation_clip=False,
        )  # fmt: skip
    axes.set_ylim(min(low, heights[0] - needed[0]), max(high, heights[-1] + needed[-1]))
    # Names may need room above all that can be reached.
    bottom, top = axes.get_ylim()
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= min(100, top)])
