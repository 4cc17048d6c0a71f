"""docs/explanation/ablations.md says what the tables of validation and of test hold."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "explanation" / "ablations.md").read_text("utf-8")
SPLITS = ("validation", "test")
AXES = {
    "negative cosines": "nonnegative", "text": "text", "relevance sign": "relevance-sign",
    "positions": "positions", "tagger": "tagger", "OCR line": "ocr-line", "aggregation": "table-vi",
    "seed token": "table-vii", "alpha": "table-v",
}  # fmt: skip
"""The choices of the table of differences, and the file of each."""

BUDGETS = ("1/3", "2/9", "1/9")


def budget_of(block: str) -> str:
    """The budget of a table's block; "" above all of them."""
    return block.split("Retain ")[1].split(" ")[0] if "Retain " in block else ""


def file(name: str) -> list[dict[str, str]]:
    """A table of the test set."""
    path = DOCS / "ablations" / "test" / "tables" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def figures_of(method: str, column: str) -> list[float]:
    """A method's figures in Table I at each budget."""
    found = {budget_of(row["block"]): row for row in file("table-i") if row["method"] == method}
    return [float(found[budget][column]) for budget in BUDGETS]


def behind(method: str) -> list[float]:
    """How many points of accuracy ResPrune is ahead of a method."""
    own, other = figures_of("resprune", "all"), figures_of(method, "all")
    return [a - b for a, b in zip(own, other, strict=True)]


def lost(axis: str, value: str) -> list[float]:
    """Points that the test set loses by a value, at each budget."""
    made = differences("test", axis)
    return [-made[value, budget][0] for budget in BUDGETS]


def hard(*methods: str) -> list[float]:
    """Accuracies at 1/9 where downsampling is wrong, and of how many questions."""
    rows = [row for row in file("hard") if budget_of(row["block"]) == "1/9"]
    found = {row["method"]: float(row["where downsample is wrong"]) for row in rows}
    return [float(rows[0]["examples"]), *(found[method] for method in methods)]


def energy_and_accuracy(*methods: str) -> list[float]:
    """The share of energy that methods leave at 1/9, and then their accuracies."""
    rows = {row["method"]: row for row in file("costs") if budget_of(row["block"]) == "1/9"}
    left = [float(rows[method]["energy left, %"]) for method in methods]
    return left + [figures_of(method, "all")[-1] for method in methods]


RELATIVE = "Rel. Perf."
NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
CLAIMS: dict[str, Callable[[], list[float]]] = {
    "alpha 0) the test set loses #, # and # points": lambda: lost("alpha", "0"),
    "keep #, # and # %, ResPrune #, # and # %": lambda: [
        *figures_of("relevance", RELATIVE), *figures_of("resprune", RELATIVE)
    ],
    "random tokens**: yes, by #, # and # points": lambda: behind("random"),
    "Uniform ones**: by #, # and #.": lambda: behind("uniform"),
    "at 1/9, # against # % of the full": lambda: [
        figures_of(name, RELATIVE)[-1] for name in ("resprune", "divprune")
    ],
    "as many tokens (# and # %)": lambda: figures_of("cdpruner-llm", RELATIVE)[1:],
    "`adaptprune` keeps # % at 1/9 with # tokens": lambda: [
        figures_of("adaptprune", column)[-1] for column in (RELATIVE, "a layer")
    ],
    "at 1/9, # questions, all tokens have # % right, ResPrune #, DivPrune #, uniform tokens #": (
        lambda: hard("all tokens", "resprune", "divprune", "uniform")
    ),
    "random tokens leave # % of a picture's energy outside their span, ResPrune # %, and have"
    " # and # % right": lambda: energy_and_accuracy("random", "resprune"),
    "questions that have it lose #, # and # points": lambda: lost("OCR line", "keep"),
}  # fmt: skip
"""What the page says in words, # for a number, and the numbers of the test set's files."""


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_figure_in_words_is_that_of_the_tables(claim: str) -> None:
    pattern = re.escape(claim).replace(r"\#", NUMBER).replace("#", NUMBER)
    found = re.findall(pattern, " ".join(PAGE.split()))
    assert len(found) == 1, claim
    said = found[0] if isinstance(found[0], tuple) else (found[0],)
    for number, value in zip(said, CLAIMS[claim](), strict=True):
        digits = len(number.partition(".")[2])
        assert f"{value:,.{digits}f}".replace("-0.0", "0.0") == number, (claim, number, value)
    print(f"{len(said)} numbers: {claim}")


DECIDED = {
    "cdpruner-llm": "=++", "adaptprune": "=++", "fastv": "==+", "dart": "-=+", "sparsevlm": "--=",
    "sparsevlm-plus": "-==",
}  # fmt: skip
"""Which methods the page calls ahead of ResPrune or behind it, at each budget."""


def test_who_is_ahead_is_what_the_tests_decide() -> None:
    marks = {"better": "+", "worse": "-", "": "="}
    found: dict[str, str] = {}
    ahead = set()
    for row in file("table-i"):
        if budget_of(row["block"]):
            mark = marks[row["Rel. Perf. mark"]]
            found[row["method"]] = found.get(row["method"], "") + mark
            ahead |= {row["method"]} if mark == "+" else set()
    assert {name: found[name] for name in DECIDED} == DECIDED
    assert ahead == {name for name, decided in DECIDED.items() if "+" in decided}


Difference = tuple[float, float, float, str]


def differences(split: str, axis: str) -> dict[tuple[str, str], Difference]:
    """(value, budget) -> (points, low, high, arrow) of a file."""
    found = {}
    path = DOCS / "ablations" / split / "tables" / f"{AXES[axis]}-categories.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            # Where half of the questions have no line of OCR tokens, those that have one.
            of = "with" if axis == "OCR line" else "all"
            budget = budget_of(row["block"])
            points, low, high = (float(row[of + end]) for end in ("", " low", " high"))
            decided = float(row[f"{of} p Holm"]) < 0.05
            arrow = ("↑" if points > 0 else "↓") if decided else ""
            found[list(row.values())[1], budget] = (points, low, high, arrow)
    return found


def printed(made: Difference | None) -> str:
    """A difference as the page prints it."""
    if made is None:
        return "–"
    points, low, high, arrow = made
    a, b, c = ("0.0" if abs(x) < 0.05 else f"{x:+.1f}" for x in (points, low, high))
    return f"{a}{arrow} ({b} to {c})"


def rows_of(text: str) -> list[list[str]]:
    """The cells of every line of a table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_difference_is_that_of_the_tables() -> None:
    seen, dashes = 0, 0
    for choice, value, budget, *cells in (row for row in rows_of(PAGE) if len(row) == 5):
        axis = choice.split(" (")[0]
        if axis not in AXES:
            continue
        for split, cell in zip(SPLITS, cells, strict=True):
            made = differences(split, axis).get((value, budget))
            assert cell == printed(made), (choice, value, budget, split)
            seen, dashes = seen + 1, dashes + (made is None)
    print(f"{seen} differences compared, {dashes} of them not asked")
    assert seen > 110 and not dashes


@pytest.mark.parametrize("number", ["I", "IV", "V", "VI", "VII"])
def test_the_papers_tables_are_those_of_the_report(number: str) -> None:
    report = (DOCS / "ablations" / "test" / "report.md").read_text("utf-8")

    def table(text: str) -> list[str]:
        (body,) = re.findall(rf"^##+ [^\n]*paper's Table {number}\)\n(.*?)(?=^##|\Z)", text,
                             re.MULTILINE | re.DOTALL)  # fmt: skip
        return [line for line in body.splitlines() if line.startswith("|")]

    assert table(PAGE) == table(report)
    print(f"Table {number}: {len(table(PAGE))} lines")
    assert len(table(PAGE)) > 8
