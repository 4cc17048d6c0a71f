"""docs/explanation/ablations.md says what the tables of validation and of test hold."""

import csv
import re
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

Difference = tuple[float, float, float, str]


def differences(split: str, axis: str) -> dict[tuple[str, str], Difference]:
    """(value, budget) -> (points, low, high, arrow) of a file."""
    found = {}
    path = DOCS / "ablations" / split / "tables" / f"{AXES[axis]}-categories.csv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            budget = row["block"].split("Retain ")[1].split(" ")[0]
            points, low, high = (float(row[name]) for name in ("all", "all low", "all high"))
            decided = float(row["all p Holm"]) < 0.05
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
