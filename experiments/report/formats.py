"""One table, four ways to write it: Markdown, CSV, LaTeX (booktabs), and a whole LaTeX document."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from resprune_jax.experiments.statistics import Estimate

DASH = "–"
ARROWS = {"better": "↑", "worse": "↓", "": ""}


@dataclass(frozen=True)
class Number:
    """A number in a table.

    Attributes:
        value: as it is printed (per cent, points, tokens); NaN or infinite for a dash.
        low, high: the ends of its 95 % interval, NaN for none.
        digits: behind the point.
        signed: write the + of a difference.
        short: write half the interval's width in place of its ends.
        mark: "better" or "worse" than what it is tested against.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    digits: int = 1
    signed: bool = False
    short: bool = False
    mark: str = ""

    def parts(self) -> tuple[str, str]:
        """The number and its interval as plain text."""
        if not math.isfinite(self.value):
            return DASH, ""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        if not known or self.low == self.value == self.high:  # a count that does not vary
            return self._text(self.value), ""
        if self.short:
            return self._text(self.value), f"±{(self.high - self.low) / 2:.{self.digits}f}"
        return self._text(self.value), f"({self._text(self.low)} to {self._text(self.high)})"

    def _text(self, value: float) -> str:
        text = f"{value:{'+' if self.signed else ''}.{self.digits}f}"
        return text[1:] if re.fullmatch(r"[-+]0(\.0*)?", text) else text  # a zero has no sign


Cell = str | Number

LONG = 40
"""Rows from which on a LaTeX table goes over pages."""


@dataclass(frozen=True)
class Row:
    """Cells, one a column; what stands in the CSV file alone; whether it is what others are set
    against."""

    cells: Sequence[Cell]
    more: Mapping[str, str | float] = field(default_factory=dict)
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under a heading of their own, "" for none."""

    heading: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: of its file.
        title: a line.
        columns: headings.
        blocks: its rows.
        notes: what a reader must know, a sentence each.
    """

    name: str
    title: str
    columns: Sequence[str]
    blocks: Sequence[Block]
    notes: Sequence[str] = ()


def scaled(estimate: Estimate, by: float = 100.0, **look: object) -> Number:
    """An estimate as a number of a table, a share in per cent."""
    value, low, high = (by * one for one in (estimate.value, estimate.low, estimate.high))
    return Number(value, low, high, **look)  # type: ignore[arg-type]


def _plain(text: str) -> str:
    """A line of any text: control characters and breaks are blanks."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _markdown(text: str) -> str:
    return re.sub(r"([\\|`*<>\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", _plain(text))


def markdown(table: Table, *, level: int = 2) -> str:
    """A table in Markdown, with its title as a heading.

    Args:
        table: the table.
        level: of the heading.
    """
    lines = [f"{'#' * level} {_markdown(table.title)}", ""]
    lines.append("| " + " | ".join(_markdown(column) for column in table.columns) + " |")
    numeric = _numeric(table)
    lines.append("|" + "|".join("---:" if number else "---" for number in numeric) + "|")
    for block in table.blocks:
        if block.heading:
            blank = [""] * (len(table.columns) - 1)
            lines.append("| " + " | ".join([f"*{_markdown(block.heading)}*", *blank]) + " |")
        for row in block.rows:
            cells = [
                _markdown_cell(cell, row.strong and n == 0) for n, cell in enumerate(row.cells)
            ]
            lines.append("| " + " | ".join(cells) + " |")
    notes = [_markdown(note) for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _markdown_cell(cell: Cell, strong: bool) -> str:
    if isinstance(cell, str):
        return f"**{_markdown(cell)}**" if strong and cell else _markdown(cell)
    value, interval = cell.parts()
    return " ".join(part for part in (value + ARROWS[cell.mark], interval) if part)


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers, and stand to the right."""
    rows = [row for block in table.blocks for row in block.rows]
    return [
        any(isinstance(row.cells[n], Number) for row in rows) for n in range(len(table.columns))
    ]


def comma_separated(table: Table) -> str:
    """A table as CSV: every number with all its digits, the ends of its interval, its mark.

    A heading that is there twice (an axis and a category may have one name) gets a number.
    """
    rows = [(block.heading, row) for block in table.blocks for row in block.rows]
    head = ["block"]
    whole: list[tuple[bool, bool]] = []
    for n, column in enumerate(_different([*head, *table.columns])[1:]):
        cells = [row.cells[n] for _, row in rows]
        numbers = [cell for cell in cells if isinstance(cell, Number)]
        spans = any(math.isfinite(cell.low) for cell in numbers)
        marks = any(cell.mark for cell in numbers)
        whole.append((spans, marks))
        head += [column, *([f"{column} low", f"{column} high"] if spans else [])]
        head += [f"{column} mark"] if marks else []
    more = list(dict.fromkeys(name for _, row in rows for name in row.more))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_different([*head, *more]))
    for heading, row in rows:
        line = [_plain(heading)]
        for cell, (spans, marks) in zip(row.cells, whole, strict=True):
            number = cell if isinstance(cell, Number) else Number(math.nan)
            line.append(_digits(cell) if isinstance(cell, str) else _digits(number.value))
            line += [_digits(number.low), _digits(number.high)] if spans else []
            line += [number.mark] if marks else []
        writer.writerow([*line, *(_digits(row.more.get(name, "")) for name in more)])
    return out.getvalue()


def _different(names: Sequence[str]) -> list[str]:
    """Names, the second of one name as "name 2"."""
    made: list[str] = []
    for name in map(_plain, names):
        number, own = 2, name
        while own in made:
            number, own = number + 1, f"{name} {number}"
        made.append(own)
    return made


def _digits(value: str | float) -> str:
    if isinstance(value, str):
        return _plain(value)
    return f"{value:.10g}" if math.isfinite(value) else ""


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "–": "--", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "ε": r"$\varepsilon$",
    "α": r"$\alpha$",
}  # fmt: skip


def tex_text(text: str) -> str:
    """Any text as LaTeX prints it."""
    return "".join(_TEX.get(char, char) for char in _plain(text))


def is_long(table: Table) -> bool:
    """Whether it goes over pages in LaTeX."""
    return sum(len(block.rows) + 1 for block in table.blocks) > LONG


def latex(table: Table) -> str:
    """A table as LaTeX with booktabs, to be read with `\\input`.

    One of more than LONG rows goes over pages (longtable); others are scaled to the page's width.
    """
    numeric = _numeric(table)
    columns = f"@{{}}{''.join('r' if number else 'l' for number in numeric)}@{{}}"
    caption = rf"\caption{{{tex_text(table.title)}}}"
    label = rf"\label{{tab:{re.sub('[^a-z0-9-]', '-', table.name)}}}"
    head = [r"\toprule", " & ".join(map(tex_text, table.columns)) + r" \\", r"\midrule"]
    body = [*_tex_rows(table), r"\bottomrule"]
    notes = " ".join(tex_text(note) for note in table.notes)
    below = (
        rf"\par\smallskip\noindent\parbox{{\textwidth}}{{\footnotesize {notes}}}" if notes else ""
    )
    if is_long(table):
        # It cannot be scaled as a whole.
        wide = len(table.columns)
        size, apart = r"\tiny" if wide > 12 else r"\scriptsize", 3 if wide < 10 else 2
        lines = [
            rf"\begingroup{size}\setlength{{\tabcolsep}}{{{apart}pt}}",
            rf"\begin{{longtable}}{{{columns}}}", rf"{caption}{label}\\", *head, r"\endfirsthead",
            *head, r"\endhead", *body, r"\end{longtable}", r"\endgroup", below,
        ]  # fmt: skip
    else:
        narrow = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
        lines = [
            r"\begin{table}[htbp]", r"\centering\small\setlength{\tabcolsep}{4pt}", caption, label,
            narrow, rf"\begin{{tabular}}{{{columns}}}", *head, *body, r"\end{tabular}}", below,
            r"\end{table}",
        ]  # fmt: skip
    return "\n".join(line for line in lines if line) + "\n"


def _tex_rows(table: Table) -> list[str]:
    lines = []
    for n, block in enumerate(table.blocks):
        lines += [r"\midrule"] if n else []
        if block.heading:
            heading = rf"\multicolumn{{{len(table.columns)}}}{{@{{}}l@{{}}}}"
            lines.append(rf"{heading}{{\textit{{{tex_text(block.heading)}}}}} \\")
        for row in block.rows:
            cells = [_tex_cell(cell, row.strong and c == 0) for c, cell in enumerate(row.cells)]
            lines.append(" & ".join(cells) + r" \\")
    return lines


def _tex_cell(cell: Cell, strong: bool) -> str:
    if isinstance(cell, str):
        return rf"\textbf{{{tex_text(cell)}}}" if strong and cell else tex_text(cell)
    value, interval = cell.parts()
    sign = {"better": r"$^{\uparrow}$", "worse": r"$^{\downarrow}$", "": ""}[cell.mark]
    text = value if value == DASH else re.sub(r"^-", r"$-$", value)
    span = re.sub(r"(?<=[( ])-", r"$-$", interval).replace("±", r"$\pm$")
    return (
        tex_text(DASH)
        if text == DASH
        else text + sign + (rf" {{\scriptsize {span}}}" if span else "")
    )


def document(
    title: str, about: Sequence[str], tables: Sequence[Table], figures: Sequence[tuple[str, str]]
) -> str:
    """A LaTeX document that reads the tables and figures beside it, and compiles on its own.

    Args:
        title: of the report.
        about: paragraphs before the tables.
        tables: that are in it.
        figures: (file, caption).
    """
    lines = [
        r"\documentclass[10pt]{article}",
        r"\usepackage[T1]{fontenc}", r"\usepackage[utf8]{inputenc}",
        r"\usepackage[a4paper,margin=2cm]{geometry}", r"\usepackage{booktabs,longtable,graphicx}",
        r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
        r"\setlength{\belowcaptionskip}{5pt}", r"\begin{document}",
        rf"\section*{{{tex_text(title)}}}",
        *(f"{tex_text(paragraph)}\n" for paragraph in about),
    ]  # fmt: skip
    for n, table in enumerate(tables):
        # A long one stands where it is read: what floats must have come before it.
        lines += [r"\clearpage"] if is_long(table) and n else []
        lines.append(rf"\input{{tables/{table.name}.tex}}")
    lines.append(r"\clearpage")
    for file, caption in figures:
        lines += [
            r"\begin{figure}[htbp]", r"\centering",
            rf"\includegraphics[width=0.9\textwidth]{{{file}}}",
            rf"\caption{{{tex_text(caption)}}}", r"\end{figure}",
        ]  # fmt: skip
    return "\n".join([*lines, r"\end{document}"]) + "\n"
