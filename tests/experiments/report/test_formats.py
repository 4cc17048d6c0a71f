"""What is printed: numbers, Markdown, CSV and LaTeX of any text."""

import csv
import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.experiments.report.formats import (
    Block,
    Number,
    Row,
    Table,
    comma_separated,
    document,
    latex,
    markdown,
    tex_text,
)

NUMBERS = [
    (Number(93.14), ("93.1", "")),
    (Number(93.14, 92.0, 94.26), ("93.1", "(92.0 to 94.3)")),
    (Number(93.14, 92.0, 94.26, short=True), ("93.1", "±1.1")),
    (Number(-2.04, -3.1, 0.02, signed=True), ("-2.0", "(-3.1 to 0.0)")),
    (Number(0.04, -1.0, 1.0, signed=True), ("0.0", "(-1.0 to +1.0)")),
    (Number(-0.001, digits=2), ("0.00", "")),
    (Number(16.0, 16.0, 16.0), ("16.0", "")),
    (Number(math.nan, 1.0, 2.0), ("–", "")),
    (Number(math.inf), ("–", "")),
    (Number(5.0, math.nan, 2.0), ("5.0", "")),
]


@pytest.mark.parametrize(("number", "parts"), NUMBERS)
def test_a_number_and_its_interval(number: Number, parts: tuple[str, str]) -> None:
    assert number.parts() == parts


def table(label: str = "resprune", heading: str = "Retain 1/9", rows: int = 2) -> Table:
    cells = [label, Number(-1.5, -2.0, 1.0, signed=True, mark="worse"), Number(16.0)]
    own = [Row(cells, {"p": 0.01}, strong=n == 0) for n in range(rows)]
    return Table(
        "table-iv",
        f"About {label}",
        ["setting", "gain", "kept"],
        [Block(heading, own)],
        ["A note."],
    )


def test_markdown():
    assert markdown(table()) == (
        "## About resprune\n\n| setting | gain | kept |\n|---|---:|---:|\n"
        "| *Retain 1/9* |  |  |\n| **resprune** | -1.5↓ (-2.0 to +1.0) | 16.0 |\n"
        "| resprune | -1.5↓ (-2.0 to +1.0) | 16.0 |\n\nA note.\n"
    )


def test_comma_separated():
    lines = comma_separated(table()).splitlines()
    assert lines == ["block,setting,gain,gain low,gain high,gain mark,kept,p",
                     *["Retain 1/9,resprune,-1.5,-2,1,worse,16,0.01"] * 2]  # fmt: skip
    twice = Table("t", "T", ["text", "text", "block"], [Block("", [Row(["a", "b", "c"])])])
    assert comma_separated(twice).splitlines() == ["block,text,text 2,block 2", ",a,b,c"]
    exact = Table("t", "T", ["x"], [Block("", [Row([Number(100 / 3)])])])
    assert comma_separated(exact).splitlines()[1] == ",33.33333333"


def balanced(tex: str) -> bool:
    """Whether braces, environments and math shifts close."""
    plain = re.sub(r"\\[\\{}$%&#_]", "", tex)
    depth = 0
    for char in plain:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", tex):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return False
    return depth == 0 and not opened and plain.count("$") % 2 == 0


@pytest.mark.parametrize(("rows", "kind"), [(2, "tabular"), (60, "longtable")])
def test_latex(rows: int, kind: str) -> None:
    tex = latex(table("a_b & 100%", rows=rows))
    assert balanced(tex) and rf"\begin{{{kind}}}{{@{{}}lrr@{{}}}}" in tex
    cells = r"$-$1.5$^{\downarrow}$ {\scriptsize ($-$2.0 to +1.0)} & 16.0 \\"
    assert rf"\textbf{{a\_b \& 100\%}} & {cells}" in tex
    assert tex.count(cells) == rows
    whole = document("T#1", ["one & all"], [table(), table(rows=rows)], [("figures/a.pdf", "C^2")])
    assert balanced(whole) and r"\input{tables/table-iv.tex}" in whole
    assert (r"\clearpage" + "\n" + r"\input" in whole) == (kind == "longtable")


def test_latex_of_what_has_a_meaning_there():
    assert tex_text("a|b<c>") == r"a\textbar{}b\textless{}c\textgreater{}"
    assert tex_text(r"\{$&#%_^~") == (
        r"\textbackslash{}\{\$\&\#\%\_\textasciicircum{}\textasciitilde{}"
    )
    assert tex_text("±1 – ↓\n↑") == r"$\pm$1 -- $\downarrow$ $\uparrow$"


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=80, deadline=None)
@given(ANY, ANY)
def test_any_text_stays_in_its_cell(label, heading):
    made = table(label, heading)
    lines = markdown(made).splitlines()
    held = [line for line in lines if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 4 for line in held)
    rows = list(csv.reader(io.StringIO(comma_separated(made))))
    assert len(rows) == 3 and all(len(row) == 8 for row in rows)
    tex = latex(made)
    assert balanced(tex)
    # What separates cells is the table's own, in every row.
    body = tex.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    ends = [
        line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line
    ]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in ends] == [2, 2]
    assert not re.search(r"(?<!\\)[#%]|(?<![\\$])\^(?!\{)", tex_text(label))
