"""What the selection benchmark shows: a table a row, the counted ratios at the end, a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprune_jax.experiments.bench.engines import AUTO, LOOP, PREPARE, PRODUCT
from resprune_jax.experiments.bench.reference import ALGORITHM_1, CHOLESKY
from resprune_jax.experiments.common import console
from resprune_jax.experiments.info import bytes_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


WIDE = 150
"""Columns of a table that goes to a file or a pipe."""


def wide_console() -> "Console":
    """The console, wide enough for the tables where no terminal says how wide it is."""
    out = console()
    if not out.is_terminal:
        out.width = WIDE
    return out


def milliseconds(value: float) -> str:
    """Three digits of a time in milliseconds."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def spread(ms: dict[str, Any]) -> str:
    """The quartiles of a time."""
    if ms["runs"] == 1:
        return "one run"
    return f"{milliseconds(ms['low'])} .. {milliseconds(ms['high'])}"


def agreed(entry: dict[str, Any] | None) -> str:
    """How many selections of a side equal the reference's pick for pick; where the first of the
    others parts from it, and by which share of a squared norm its choice there was the other.
    """
    if entry is None:
        return ""
    text = f"{entry['equal']} of {entry['of']}"
    if parted := entry.get("parted"):
        text += f" (pick {parted['step']}, {parted['gap']:.0e})"
    return text


def row_table(name: str, facts: dict[str, Any]) -> "Table":
    """The sides of a row, milliseconds for one selection."""
    from rich import box
    from rich.table import Table

    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    heads = ("ms", "quartiles", "ratio", "of product", "moved", "of bandwidth", "peak memory")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("equal picks", no_wrap=True)
    agreement = facts.get("agreement", {})
    for side, found in facts["sides"].items():
        ms = found["ms"]
        picks = agreement.get("sides", {}).get(side)
        table.add_row(
            side,
            milliseconds(ms["median"]),
            spread(ms),
            "" if found["ratio"] is None or side == PRODUCT else f"{found['ratio']:.2f}",
            f"{found['of_product']:.0%}" if "of_product" in found else "",
            "" if found["bytes"] is None else bytes_text(int(found["bytes"])),
            "" if found["bandwidth_share"] is None else f"{found['bandwidth_share']:.0%}",
            memory_text(found["memory"]),
            "the reference" if side == agreement.get("against") else agreed(picks),
        )
    return table


def memory_text(memory: dict[str, Any]) -> str:
    """What a side takes beyond its arguments: as the compiler planned it, else as it was seen."""
    if plan := memory.get("planned"):
        return bytes_text(plan["temporaries"] + plan["outputs"])
    seen = memory.get("measured")
    return "" if seen is None else bytes_text(seen) if seen else "0"


def print_row(name: str, facts: dict[str, Any]) -> None:
    """Print what a row showed and what was left out of it."""
    out = wide_console()
    if facts["sides"]:
        out.print(row_table(name, facts))
    else:
        out.print(f"{name}: nothing was measured")
    for side, why in facts["left_out"].items():
        out.print(f"  left out: {side}: {why}", style="dim")


def best_engine(facts: dict[str, Any]) -> str | None:
    """The side that a row is judged by: the choice by size, else the fastest engine."""
    engines = {
        name: side["ms"]["median"]
        for name, side in facts["sides"].items()
        if name not in (PRODUCT, PREPARE, LOOP) and not side["group"].startswith("torch")
    }
    return AUTO if AUTO in engines else min(engines, key=lambda name: engines[name], default=None)


def kind_times(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The times of a row's fastest side of each kind, ours as "here"."""
    engine = best_engine(facts)
    best: dict[str, dict[str, Any]] = {}
    for name, side in facts["sides"].items():
        kind = "here" if name == engine else side["group"]
        if kind not in best or side["ms"]["median"] < best[kind]["median"]:
            best[kind] = side["ms"]
    return best


def print_summary(report: dict[str, Any]) -> None:
    """Print the rows side by side: torch's Algorithm 1 against the engine that a user gets."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("milliseconds for one selection", no_wrap=True)
    for head in (ALGORITHM_1, CHOLESKY, "here", "engine", "ratio", "picks of product"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, facts in report["rows"].items():
        sides = facts["sides"]
        if (engine := best_engine(facts)) is None:
            continue

        best = {
            kind: f"about {milliseconds(found['ms'])}, estimated"
            for kind, found in facts.get("estimates", {}).items()
        }
        best |= {kind: milliseconds(ms["median"]) for kind, ms in kind_times(facts).items()}
        ratio = sides[engine]["ratio"]
        table.add_row(
            name,
            *(best.get(kind, "") for kind in (ALGORITHM_1, CHOLESKY, "here")),
            engine,
            "" if ratio is None else f"{ratio:.1f}",
            f"{sides[LOOP]['of_product']:.0%}" if "of_product" in sides.get(LOOP, {}) else "",
        )
    out = wide_console()
    out.print(table)
    for name, why in report.get("not_measured", {}).items():
        out.print(f"  {name}: {why}", style="dim")
    about, speed = report["machine"], report["speeds"]
    out.print(
        f"{about['device']}, {about['cores']} cores; {speed['bandwidth'] / 1e9:.0f} GB/s,"
        f" {speed['matmul_float32'] / 1e9:.0f} GFLOP/s in float32. Medians, quartiles beside them;"
        " the ratio is to the fastest way of torch's Algorithm 1 in the same run.",
        style="dim",
    )


def print_fits(fits: dict[str, Any]) -> None:
    """Print how the time of every side grows, and how well the fit foretells a row it left out."""
    out = wide_console()
    for group, found in fits.items():
        terms = " + ".join(f"{value:.3g} {name}" for name, value in found["terms"].items())
        out.print(f"{group}: ms for one image = {terms}")
        out.print(
            f"  {found['rows']} rows; a row left out of the fit is foretold to"
            f" {found['typical_error']:.0%} (median), {found['worst_error']:.0%} at worst"
            f" ({found['worst_row']})",
            style="dim",
        )


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the rows of one image (or of the least batch there is): a bar a kind of side.

    Args:
        report: as the JSON file holds it.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    rows = {name: row for name, row in report["rows"].items() if row["sides"]}
    least = min((row["batch"] for row in rows.values()), default=1)
    rows = {name: row for name, row in rows.items() if row["batch"] == least}
    figure = Figure(figsize=(10, 1.2 + 0.9 * max(1, len(rows))), layout="constrained")
    axes = figure.subplots()
    kinds = (ALGORITHM_1, CHOLESKY, PRODUCT, "here")
    named: set[str] = set()
    for position, facts in enumerate(rows.values()):
        best = kind_times(facts)
        for number, kind in enumerate(kinds):
            if (ms := best.get(kind)) is None:
                continue
            spread = [[ms["median"] - ms["low"]], [ms["high"] - ms["median"]]]
            axes.barh(
                position + 0.2 * number - 0.3, ms["median"], height=0.19, color=f"C{number}",
                xerr=spread, error_kw={"elinewidth": 0.8}, label=None if kind in named else kind,
            )  # fmt: skip
            named.add(kind)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds for one selection (median; lines: quartiles)")
    axes.set_title(f"Choosing the visual tokens on {report['machine']['device']}", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    if named:
        figure.legend(loc="outside lower center", ncols=len(named), fontsize=8)
    figure.savefig(path, dpi=120)
