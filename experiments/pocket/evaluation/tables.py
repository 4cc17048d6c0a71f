"""The figures of an evaluation as tables: on a terminal, or as Markdown for documents."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Figures = Mapping[str, Any]
Row = tuple[str, ...]

NAMES = {
    "full": "all tokens",
    "blank": "blank image",
    "resprune": "ResPrune",
    "alpha0": "ResPrune, alpha 0",
    "random": "random tokens",
    "oracle": "object's patches",
}


def percent(estimate: Figures) -> str:
    """A share with its interval, as "93.1 (92.0 to 94.0)"."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def points(estimate: Figures) -> str:
    """A difference with its interval, as "+1.2 (-0.3 to +2.6)"."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def label(method: str) -> str:
    """A method as the tables name it."""
    return NAMES.get(method, method)


def accuracy_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a setting: tokens, accuracy of all questions with its interval, what it lost.

    "kept" counts the tokens behind the last drop; "average" those of the LLM's layers, where some
    method drops inside it. Times are milliseconds a question in a batch, where they were measured.
    """
    settings = figures["settings"]
    inside = any(one.get("average", one["kept"]) != one["kept"] for one in settings)
    timed = any(one.get("times") for one in settings)
    head: Row = ("tokens", "which", "kept", *(("average",) if inside else ()), "accuracy, %")
    head += ("lost, points", *(("method, ms", "prefill, ms") if timed else ()))
    rows: list[Row] = []
    for one in settings:
        which, draws = label(one["method"]), one.get("draws", 1)
        if draws > 1:
            which += f" (mean of {draws} draws)"
        row: Row = (one["ratio"] or "all", which, f"{one['kept']:.1f}")
        if inside:
            row += (f"{one['average']:.1f}",)
        row += (percent(one["accuracy"]["overall"]),)
        row += (points(one["lost"]["overall"]) if "lost" in one else "",)
        if timed:
            own = one.get("times", {})
            row += tuple(f"{own[part]:.2f}" if own else "" for part in ("select", "prefill"))
        rows.append(row)
    return head, rows


def family_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a setting, a column a family; under the full model's its intervals."""
    families = [name for name in figures["settings"][0]["accuracy"] if name != "overall"]
    rows: list[Row] = []
    for setting in figures["settings"]:
        own = [setting["accuracy"][family] for family in families]
        cells = [f"{100 * one['value']:.1f}" for one in own]
        rows.append((setting["ratio"] or "all", label(setting["method"]), *cells))
        if setting["method"] == "full":
            spans = [f"{100 * one['low']:.1f} to {100 * one['high']:.1f}" for one in own]
            rows.append(("", "95 % interval", *spans))
    return ("tokens", "which", *families), rows


def kind_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a kind of question: right answers of the full model and of `resprune` at each ratio."""
    shown = [s for s in figures["settings"] if s["method"] in ("full", "resprune")]
    head = ("kind", "asked", *(s["ratio"] or "all tokens" for s in shown))
    rows: list[Row] = []
    for kind, (_, asked) in shown[0]["kinds"].items():
        cells = [f"{100 * setting['kinds'][kind][0] / asked:.1f}" for setting in shown]
        rows.append((kind, str(asked), *cells))
    return head, rows


def comparison_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a pair of methods and ratio: what the one gains over the other."""
    head = ("tokens", "which", "over", "gain, points")
    rows: list[Row] = [
        (one["ratio"], label(one["method"]), label(one["over"]), points(one["gain"]))
        for one in figures["comparisons"]
    ]
    return head, rows


def auc_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a family: how well text relevance finds what the question names."""
    rows: list[Row] = []
    for name, one in figures["relevance_auc"].items():
        interval = f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        rows.append((name, str(one["questions"]), interval))
    return ("questions about", "asked", "mean AUC"), rows


def verdict(estimates: Sequence[Figures], *, low: float = -1.0, high: float = 1.0) -> str:
    """Whether figures lie in a range, as far as their 95 % intervals decide it.

    Args:
        estimates: each must lie in the range.
        low: the least that is good.
        high: the most that is good.

    Returns:
        "yes" where every interval lies inside, "no" where one lies outside, else "undecided".
    """
    if any(one["high"] < low or one["low"] > high for one in estimates):
        return "no"
    inside = all(one["low"] >= low and one["high"] <= high for one in estimates)
    return "yes" if inside else "undecided"


def goal_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a goal of the bench: what was measured, and whether it is met; see `verdict`."""
    by_name = {setting["name"]: setting for setting in figures["settings"]}
    full = by_name["full"]["accuracy"]
    overall = full["overall"]
    families = {name: one for name, one in full.items() if name != "overall"}
    worst = min((one["value"], name) for name, one in families.items())
    rows: list[Row] = [
        (
            "all tokens: at least 90 % right",
            f"{100 * overall['value']:.1f}",
            verdict([overall], low=0.90),
        ),
        (
            "every family: at least 80 % right",
            f"{100 * worst[0]:.1f} ({worst[1]})",
            verdict(list(families.values()), low=0.80),
        ),
    ]
    if "blank" in by_name:
        blind = by_name["blank"]["accuracy"]["overall"]
        met = verdict([blind], high=0.55)
        rows.append(("blank image: under 55 % right", f"{100 * blind['value']:.1f}", met))
    goals: tuple[tuple[str, str, dict[str, float]], ...] = (
        ("random 1/9", "random 1/9 of the tokens: at least 10 points lost", {"low": 0.10}),
        ("oracle 1/9", "object's patches, 1/9 at most: at most 3 points lost", {"high": 0.03}),
    )
    for name, what, good in goals:
        if name in by_name:
            lost = by_name[name]["lost"]["overall"]
            rows.append((what, f"{100 * lost['value']:+.1f}", verdict([lost], **good)))
    if "overall" in figures["relevance_auc"]:
        area = figures["relevance_auc"]["overall"]
        met = verdict([area], low=0.75)
        rows.append(("mean AUC of text relevance: at least 0.75", f"{area['value']:.3f}", met))
    return ("goal", "measured", "met"), rows


def left_out_table(figures: Figures) -> tuple[Row, list[Row]]:
    """A row a method that could not be asked with, and why."""
    return ("not applicable", "why"), list(figures.get("left_out", {}).items())


def _tables(figures: Figures) -> list[tuple[str, tuple[Row, list[Row]]]]:
    made = [
        ("Goals", goal_table(figures)),
        ("Accuracy", accuracy_table(figures)),
        ("Accuracy by family, %", family_table(figures)),
        (
            "Accuracy by kind of question, %: all tokens, and ResPrune at each share",
            kind_table(figures),
        ),
        ("Gains, of all questions", comparison_table(figures)),
        ("Left out", left_out_table(figures)),
        ("Text relevance: does it find the patches of what a question names?", auc_table(figures)),
    ]
    return [(title, table) for title, table in made if table[1]]


def source(figures: Figures) -> str:
    """Where the figures come from, in a sentence."""
    frozen = "the frozen test set" if figures["split"] == "test" else "validation scenes"
    return (
        f"{figures['questions']:,} questions about {figures['scenes']} scenes of {frozen}"
        f" (preset {figures['preset']}, {figures['visual_tokens']} visual tokens), 95 % intervals"
        " in brackets (accuracies: Wilson, widened as far as questions about one scene go together;"
        " differences: paired, by bootstrap over scenes); nouns by"
        f" {figures['noun_backend']}."
    )


CAVEAT = "A test bench for ideas and regressions, not a claim about 7B models."


def show(figures: Figures, screen: "Console") -> None:
    """Print the tables."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    screen.print(f"[bold]{escape(figures['model'])}[/bold]: {escape(source(figures))}")
    screen.print(f"{CAVEAT}\n")
    for title, (head, rows) in _tables(figures):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in head:
            table.add_column(name, min_width=max(map(len, name.split())))
        for row in rows:
            table.add_row(*map(escape, row))
        screen.print(table)


def markdown_table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """A table in Markdown, a line a row."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def markdown(figures: Figures, *, level: int = 3) -> str:
    """All tables in Markdown.

    Args:
        figures: what `summary.summary` made.
        level: of the headings.
    """
    parts = [f"{source(figures)} {CAVEAT}\n"]
    for title, (head, rows) in _tables(figures):
        parts.append(f"{'#' * level} {title}\n")
        parts.append(markdown_table(head, rows))
    return "\n".join(parts)
