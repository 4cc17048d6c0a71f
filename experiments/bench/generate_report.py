"""What the generation benchmark shows: a table a batch, what does not pay, a picture."""

from pathlib import Path
from typing import Any

from resprune_jax.experiments.bench.report import milliseconds, wide_console
from resprune_jax.experiments.info import bytes_text

HEADS = {
    "encode": "encode", "select": "select", "prefill": "prefill", "first_token": "first token",
    "token": "a further token",
}  # fmt: skip


def memory_text(memory: dict[str, Any]) -> str:
    """What a pass takes beside the parameters: as it was seen, else as the compiler planned it."""
    size = memory["planned"] if memory["measured"] is None else memory["measured"]
    return "" if size is None else bytes_text(size) if size else "0"


def print_row(name: str, facts: dict[str, Any]) -> None:
    """Print a batch: a line a budget and implementation, milliseconds for the whole batch."""
    from rich import box
    from rich.table import Table

    out = wide_console()
    table = Table(title=f"{name}, milliseconds", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("tokens", justify="right")
    for head in (*HEADS.values(), "quartiles of the first", "sooner", "memory"):
        table.add_column(head, justify="right", no_wrap=True)
    for side in facts["sides"]:
        first = side["ms"]["first_token"]
        table.add_row(
            side["where"],
            "all" if side["keep"] is None else str(side["keep"]),
            *(milliseconds(side["ms"][part]["median"]) for part in HEADS),
            f"{milliseconds(first['low'])} .. {milliseconds(first['high'])}",
            f"{side['speedup']:.2f}x" if "speedup" in side else "",
            memory_text(side["memory"]),
        )
    if facts["sides"]:
        out.print(table)
    for side in facts["sides"]:
        if "why" in side:
            out.print(f"{side['where']}, {side['keep']} tokens: the first token is no sooner:"
                      f" {side['why']}")  # fmt: skip
    for what, why in facts["left_out"].items():
        out.print(f"  left out: {what}: {why}", style="dim")
    if "tokens_equal" in facts:
        out.print(f"  full model: {facts['tokens_equal']:.1%} of the tokens equal to transformers'",
                  style="dim")  # fmt: skip


def print_end(report: dict[str, Any]) -> None:
    """Print what the figures mean."""
    model, about = report["model"], report["machine"]
    count = model.get("parameters")
    size = f"{count / 1e6:,.0f} million parameters, " if count else ""
    wide_console().print(
        f"{model['name']}: {size}{model['dtype']}, random weights, {model['visual_tokens']} visual"
        f" tokens; {about['device']}, {about['cores']} cores. Medians for the whole batch. First"
        " token: encode, select and prefill, each waited for. Memory: beside the parameters.",
        style="dim",
    )


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the time to the first token: a bar a budget, stacked by part; one panel a batch."""
    from matplotlib.figure import Figure

    rows = {name: row for name, row in report["rows"].items() if row["sides"]}
    figure = Figure(figsize=(max(6, 4 * len(rows)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(rows)), squeeze=False)[0]
    for axes, (name, facts) in zip(panels, rows.items(), strict=False):
        labels = []
        for position, side in enumerate(facts["sides"]):
            left = 0.0
            for number, part in enumerate(("encode", "select", "prefill")):
                width = side["ms"][part]["median"]
                axes.barh(position, width, left=left, color=f"C{number}",
                          label=part if not position else None)  # fmt: skip
                left += width
            kept = "all" if side["keep"] is None else side["keep"]
            labels.append(f"{side['where']}, {kept}")
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("milliseconds to the first token")
        axes.grid(axis="x", alpha=0.3)
    if rows:
        panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
