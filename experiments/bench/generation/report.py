"""What the generation benchmark shows: a table a batch, what does not pay, Markdown, a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resprune_jax.experiments.bench.generation.plan import LABELS, MEANING, label
from resprune_jax.experiments.bench.markdown import machine_text, table, with_spread
from resprune_jax.experiments.bench.report import milliseconds, wide_console
from resprune_jax.experiments.info import bytes_text

HEADS = {
    "encode": "encode", "select": "select", "prefill": "prefill", "first_token": "first token",
    "token": "a further token",
}  # fmt: skip
SHARES = {
    "matmul_share": "of matmul rate", "bandwidth_share": "of bandwidth",
    "choosing": "choosing / saved", "theoretical": "in theory", "realised": "realised",
}  # fmt: skip
UNMEASURED = "not measured"


def memory_text(memory: dict[str, Any]) -> str:
    """What a pass takes beside the parameters: as it was seen, else as the compiler planned it."""
    size = memory["planned"] if memory["measured"] is None else memory["measured"]
    return "" if size is None else bytes_text(size) if size else "0"


def ordered(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a batch, measured or not: way by way, the full model first."""
    ways = list(LABELS)

    def place(side: dict[str, Any]) -> tuple[int, float]:
        keep = side["keep"]
        return ways.index(side["way"]), -float("inf") if keep is None else -keep

    return sorted(row["sides"] + row["not_measured"], key=place)


def shares(side: dict[str, Any]) -> list[str]:
    """The columns of `SHARES` in words; empty where they do not apply."""
    if "ms" not in side:
        return [UNMEASURED] * len(SHARES)

    def percent(name: str) -> str:
        return f"{side[name]:.0%}" if side.get(name) is not None else ""

    choosing = percent("choosing")
    if "choosing" in side and (side["choosing"] is None or side["choosing"] > 10):
        choosing = "over 1000%" if side["choosing"] else "none saved"
    theory = f"{side['theoretical']:.2f}" if "theoretical" in side else ""
    found = [percent("matmul_share"), percent("bandwidth_share"), choosing, theory]
    return [*found, percent("realised")]


def remarks(row: dict[str, Any]) -> list[str]:
    """What is to be said of a batch: what does not pay, what was not measured, how it was."""
    said: dict[str, list[str]] = {}
    for side in ordered(row):
        name = label(side["way"], side["keep"])
        if "why" in side:
            reason = side["why"]
            if "ms" in side:
                reason = f"the first token is no sooner: {reason}"
            said.setdefault(reason, []).append(name)
        if "ms" not in side:
            continue
        for text in side["notes"]:
            said.setdefault(text, []).append(name)
        if not side["in_turn"]:
            runs = side["ms"]["token"]["runs"]
            text = f"measured by itself, {'one run' if runs == 1 else f'{runs} runs'}, not in turn"
            said.setdefault(text, []).append(name)
        if side["way"] == "compiled":
            text = (
                f"compiling and the first pass took {side['ready_s']:.0f} s, which is in no time"
                " here"
            )
            said.setdefault(text, []).append(name)
        equal = side.get("equal_to_eager")
        if equal is not None and side["way"] != "eager":
            said.setdefault(f"{equal:.1%} of the tokens equal to eager", []).append(name)
    lines = [f"{'; '.join(names)}: {reason}" for reason, names in said.items()] + row["notes"]
    if (equal := row.get("tokens_equal")) is not None:
        lines.append(f"full model: {equal:.1%} of the tokens equal to transformers' (eager)")
    return lines


def print_row(name: str, facts: dict[str, Any]) -> None:
    """Print a batch: a line a budget and implementation, milliseconds for the whole batch."""
    from rich import box
    from rich.table import Table

    def made(title: str, heads: Iterable[str]) -> Table:
        found = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        found.add_column("", no_wrap=True)
        for head in heads:
            found.add_column(head, justify="right", no_wrap=True)
        return found

    out = wide_console()
    spans = made(f"{name}, milliseconds", (*HEADS.values(), "quartiles of the first", "sooner"))
    parts = made("", (*SHARES.values(), "memory"))
    for side in ordered(facts):
        title = label(side["way"], side["keep"])
        if "ms" not in side:
            spans.add_row(title, UNMEASURED)
            continue
        first = side["ms"]["first_token"]
        spans.add_row(
            title,
            *(milliseconds(side["ms"][part]["median"]) for part in HEADS),
            f"{milliseconds(first['low'])} .. {milliseconds(first['high'])}",
            f"{side['speedup']:.2f}x" if "speedup" in side else "",
        )
        parts.add_row(title, *shares(side), memory_text(side["memory"]))
    out.print(spans)
    if facts["sides"]:
        out.print(parts)
    for line in remarks(facts):
        out.print(f"  {line}", style="dim")


def print_end(report: dict[str, Any]) -> None:
    """Print what the figures mean."""
    wide_console().print(model_text(report), style="dim")
    for way, why in report["left_out"].items():
        wide_console().print(f"  {LABELS[way]}: {UNMEASURED}: {why}", style="dim")


def model_text(report: dict[str, Any]) -> str:
    """The model, and what stands in the columns."""
    model, about = report["model"], report["machine"]
    return (
        f"{model['name']}: {model['parameters'] / 1e6:,.0f} million parameters, {model['dtype']},"
        f" random weights, {model['visual_tokens']} visual tokens; {about['device']},"
        f" {about['cores']} cores. Medians for the whole batch. First token: encode, select and"
        " prefill, each waited for. Of matmul rate: prefill's FLOPs. Of bandwidth: parameters and"
        " cache that a further token reads. Choosing / saved: select over what prefill saved. In"
        " theory: the full model's floor to the first token over the pruned one's; realised: the"
        f" measured speed-up over that. Memory: beside the parameters. {MEANING}"
    )


def markdown(report: dict[str, Any]) -> str:
    """The rows as a Markdown table, as docs/explanation/performance.md holds it."""
    heads = ["batch, tokens", "encode", "select", "prefill", "first token", "sooner",
             "a further token", *SHARES.values()]  # fmt: skip
    rows, notes = [], []
    for name, facts in report["rows"].items():
        notes += [f"- {name}, {line}\n" for line in remarks(facts)]
        for side in ordered(facts):
            title = f"{name}, {label(side['way'], side['keep'])}"
            if "ms" not in side:
                rows.append([title, *[UNMEASURED] * (len(heads) - 1)])
                continue
            ms = side["ms"]
            rows.append(
                [
                    title,
                    *(milliseconds(ms[part]["median"]) for part in ("encode", "select", "prefill")),
                    with_spread(ms["first_token"]),
                    f"{side['speedup']:.2f}" if "speedup" in side else "",
                    milliseconds(ms["token"]["median"]),
                    *shares(side),
                ]
            )
    notes += [f"- {LABELS[way]}: {UNMEASURED}: {why}\n" for way, why in report["left_out"].items()]
    if report["torch"]:
        notes.append(f"- transformers: {UNMEASURED}: {report['torch']}\n")
    parts = [machine_text(report), model_text(report) + "\n", table(heads, rows), "".join(notes)]
    return "\n".join(parts)


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the time to the first token: a bar a budget, stacked by part; one panel a batch."""
    from matplotlib.figure import Figure

    rows = {name: row for name, row in report["rows"].items() if row["sides"]}
    figure = Figure(figsize=(max(6, 5 * len(rows)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(rows)), squeeze=False)[0]
    for axes, (name, facts) in zip(panels, rows.items(), strict=False):
        labels = []
        for position, side in enumerate(side for side in ordered(facts) if "ms" in side):
            left = 0.0
            for number, part in enumerate(("encode", "select", "prefill")):
                width = side["ms"][part]["median"]
                axes.barh(position, width, left=left, color=f"C{number}",
                          label=part if not position else None)  # fmt: skip
                left += width
            kept = "all" if side["keep"] is None else side["keep"]
            way = "here" if side["way"] == "here" else f"transformers ({side['way']})"
            labels.append(f"{way}, {kept}")
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("milliseconds to the first token")
        axes.grid(axis="x", alpha=0.3)
    if rows:
        panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
