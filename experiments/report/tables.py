"""The paper's tables with measured numbers, and the other axes of a sweep in the same layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from resprune_jax.experiments.report import printed
from resprune_jax.experiments.report.formats import Block, Cell, Number, Row, Table, scaled
from resprune_jax.experiments.report.measured import RELATIVE, Comparison, Measured
from resprune_jax.experiments.report.settings import Choice, share, written

NAMES: Mapping[str, str] = {
    "1": "Methods at each budget (the paper's Table I)",
    "4": "What the text conditions (the paper's Table IV)",
    "5": "Strength of the guidance (the paper's Table V)",
    "6": "Relevance over several nouns (the paper's Table VI)",
    "7": "The seed token (the paper's Table VII)",
    "nonnegative": "How a negative cosine becomes a weight",
    "relevance_sign": "Relevance for a token, or against it",
    "text": "Which words condition the choice",
    "ocr_line": "The line of OCR tokens",
    "tagger": "What finds the nouns",
    "positions": "Position ids after pruning",
}
"""The tables that this file makes, by what `--tables` calls them, with their titles."""

PAPER = {"1": "I", "4": "IV", "5": "V", "6": "VI", "7": "VII"}
_VARIED = {"5": "alpha", "6": "aggregate", "7": "seed_rule"}


@dataclass(frozen=True)
class Line:
    """A row to be: its label, the setting, and the paper's relative performance beside it."""

    label: str
    setting: int
    paper: float | None = None


@dataclass(frozen=True)
class Group:
    """Rows of one budget, and the one that the others are tested against."""

    keep: str | None
    lines: Sequence[Line]
    reference: int | None


class NoTableError(Exception):
    """A table's configurations are not in the results; the message says which."""


@dataclass(frozen=True)
class Maker:
    """What all tables are made from.

    Attributes:
        choice: the run's settings.
        measured: their figures.
        backbone: whose numbers of the paper stand beside them.
    """

    choice: Choice
    measured: Measured
    backbone: str

    def make(self, name: str) -> list[Table]:
        """A table, and for one that varies an axis another of differences by category.

        Args:
            name: a key of NAMES.

        Raises:
            NoTableError: the results do not hold its configurations.
        """
        groups = self.methods() if name == "1" else self._varied(name)
        made = [self._table(name, groups)]
        if name != "1" and len(self.measured.figures) > 1:
            made.append(self._by_category(name, groups))
        return made

    def _paper(self, name: str, row: str, keep: str | None) -> float | None:
        if name not in PAPER or keep is None:
            return None
        return printed.relative(self.backbone, PAPER[name], row, self._share(keep))

    def _share(self, keep: str) -> Any:
        return share(keep, int(self.choice.results.run["visual_tokens"]))

    def methods(self) -> list[Group]:
        """Table I's rows: every method at every budget, all axes at the base.

        Raises:
            NoTableError: there is none.
        """
        groups = []
        for keep in self.choice.keeps:
            found = [(label, self.choice.at_base(label, keep)) for label in self.choice.methods]
            lines = [Line(n, i, self._paper("1", n, keep)) for n, i in found if i is not None]
            if lines:
                groups.append(Group(keep, lines, self.choice.reference(keep)))
        groups = _fullest(groups, 0.5)
        own = [(label, self.choice.own_budget(label)) for label in self.choice.methods]
        if lines := [Line(n, i) for n, i in own if i is not None]:
            groups.append(Group(None, lines, None))
        if not groups:
            raise NoTableError("no setting stands at the base of every axis")
        return groups

    def _varied(self, name: str) -> list[Group]:
        find = self._conditions if name == "4" else self._values(_VARIED.get(name, name))
        groups: list[Group] = []
        references = [self.choice.reference(keep) for keep in self.choice.keeps]
        if all(i is None for i in references):
            raise NoTableError(
                f"no {self.choice.against} at the base was run{self.choice.elsewhere()}"
            )
        for keep, reference in zip(self.choice.keeps, references, strict=True):
            if reference is None:
                continue
            lines = [Line(label, i, self._paper(name, row, keep)) for label, row, i in find(keep)]
            if any(line.setting != reference for line in lines):
                groups.append(Group(keep, lines, reference))
        if not groups:
            what = "another setting" if name == "4" else f"two values of {_VARIED.get(name, name)}"
            raise NoTableError(f"no budget has {what} of {self.choice.against}")
        return _fullest(groups, 1)

    def _conditions(self, keep: str) -> list[tuple[str, str, int]]:
        against, choice = self.choice.against, self.choice
        found = (
            ("Full method", "full", choice.reference(keep)),
            ("Setting-1: every word", "text", choice.at_base(against, keep, text="prompt")),
            ("Setting-2: no text, alpha 0", "alpha", choice.at_base(against, keep, alpha=0)),
            ("Setting-3: top by relevance", "top", choice.same_budget("relevance", keep)),
        )
        return [(label, row, i) for label, row, i in found if i is not None]

    def _values(self, axis: str) -> Callable[[str], list[tuple[str, str, int]]]:
        def find(keep: str) -> list[tuple[str, str, int]]:
            found = []
            for value in self.choice.values(axis):
                i = self.choice.at_base(self.choice.against, keep, **{axis: value})
                if i is not None:
                    found.append((written(value), written(value), i))
            return found

        return find

    def _compared(
        self, groups: Sequence[Group], figures: Sequence[str]
    ) -> dict[tuple[int, int], list[Comparison]]:
        """Every row against its group's reference, corrected for all of the table."""
        pairs = [
            (line.setting, group.reference)
            for group in groups
            for line in group.lines
            if group.reference is not None and line.setting != group.reference
        ]
        found = self.measured.compare(pairs, figures)
        return dict(zip(pairs, found, strict=True))

    def _table(self, name: str, groups: Sequence[Group]) -> Table:
        compared = self._compared(groups, [RELATIVE])
        figures = self.measured.figures
        kept = [self._kept(line.setting) for group in groups for line in group.lines]
        inside = any(abs(whole - layer) > 0.05 for whole, layer in kept)
        head = ["method" if name == "1" else _heading(name), RELATIVE]
        head += ["paper's"] if name in PAPER else []
        head += [heading for _, heading in figures]
        head += ["kept", *(["a layer"] if inside else [])]
        full = Line("all tokens", self.choice.full, 100.0)
        look = name in PAPER, inside
        blocks = [Block("", [self._row(full, None, *look)])]
        for group in groups:
            rows = [
                self._row(line, self._found(compared, line, group), *look) for line in group.lines
            ]
            strong = [line.setting == group.reference for line in group.lines]
            rows = [replace(row, strong=one) for row, one in zip(rows, strong, strict=True)]
            blocks.append(Block(self.heading(group.keep), rows))
        return Table(_file(name), NAMES[name], head, blocks, self._notes(name, groups, compared))

    @staticmethod
    def _found(
        compared: Mapping[tuple[int, int], list[Comparison]], line: Line, group: Group
    ) -> list[Comparison] | None:
        if group.reference is None:
            return None
        return compared.get((line.setting, group.reference))

    def _row(
        self, line: Line, against: list[Comparison] | None, printed: bool, inside: bool
    ) -> Row:
        own = self.measured
        mark = against[0].mark if against else ""
        cells: list[Cell] = [line.label, scaled(own.figure(line.setting, RELATIVE), mark=mark)]
        if printed:
            cells.append(Number(np.nan if line.paper is None else line.paper))
        cells += [scaled(own.figure(line.setting, figure), short=True) for figure, _ in own.figures]
        whole, layer = self._kept(line.setting)
        cells += [Number(whole), *([Number(layer)] if inside else [])]
        more: dict[str, str | float] = {"configuration": own.settings[line.setting].name}
        if against:
            more |= in_full(against[0])
        return Row(cells, more)

    def _kept(self, setting: int) -> tuple[float, float]:
        return self.measured.level(setting, "kept"), self.measured.level(setting, "average")

    def _by_category(self, name: str, groups: Sequence[Group]) -> Table:
        figures = self.measured.figures
        compared = self._compared(groups, [figure for figure, _ in figures])
        blocks = []
        for group in groups:
            rows = []
            for line in group.lines:
                if (found := self._found(compared, line, group)) is not None:
                    cells = [scaled(one.gain, signed=True, mark=one.mark) for one in found]
                    more: dict[str, str | float] = {}
                    for one, (_, heading) in zip(found, figures, strict=True):
                        more |= {f"{heading} p": one.p, f"{heading} p Holm": one.holm}
                    rows.append(Row([line.label, *cells], more))
            own = [line.label for line in group.lines if line.setting == group.reference]
            base = own[0] if own else self.choice.against
            blocks.append(Block(f"{self.heading(group.keep)}, against {base}", rows))
        note = (
            "Differences of accuracy in points, with paired 95 % intervals; arrows where the paired"
            f" test decides after Holm's correction for {len(compared) * len(figures)} comparisons."
        )
        title = f"{NAMES[name].split(' (')[0]}: differences by category"
        head = [_heading(name), *(heading for _, heading in figures)]
        return Table(f"{_file(name)}-categories", title, head, blocks, [note])

    def heading(self, keep: str | None) -> str:
        """What stands above the rows of a budget."""
        if keep is None:
            return "Budgets of the methods' own"
        share = float(self._share(keep))
        what = (
            f"{keep} visual tokens"
            if share != 1 and keep.isdigit()
            else f"{keep} of the visual tokens"
        )
        return f"Retain {what} (pruning ratio = {100 * (1 - share):.1f}%)"

    def _notes(self, name: str, groups: Sequence[Group], compared: Mapping[Any, Any]) -> list[str]:
        against = self.choice.against
        notes = [
            "Rel. Perf. is the unweighted mean over the categories of accuracy / the full model's,"
            " in per cent, with its 95 % interval; ± is half the width of an interval."
        ]
        if compared:
            plural = "s" if len(compared) > 1 else ""
            notes.append(
                f"Arrows: Rel. Perf. is above (↑) or below (↓) that of {against} at the same budget"
                " (in bold), by a paired sign-flip test by cluster at 5 %, Holm's correction for"
                f" {len(compared)} comparison{plural}."
            )
        if name in PAPER:
            notes.append("paper's: the Rel. Perf. that the paper prints for this row and ratio.")
        shown = {group.keep for group in groups}
        if rest := [keep for keep in self.choice.keeps if keep not in shown]:
            notes.append(
                f"Budgets with fewer settings are in configurations.csv: {', '.join(rest)}."
            )
        settings = self.measured.settings
        drawn = {
            len(settings[line.setting].members) for group in groups for line in group.lines
        } - {1}
        if drawn:
            notes.append(f"Random tokens: the mean of {max(drawn)} draws.")
        return notes


def _fullest(groups: list[Group], part: float) -> list[Group]:
    """Budgets with at least this part of the rows of the one that has most: the others are of
    another table (a curve of one method), and stand in configurations.csv."""
    most = max((len(group.lines) for group in groups), default=0)
    return [group for group in groups if len(group.lines) >= part * most]


def in_full(comparison: Comparison) -> dict[str, float]:
    """What a CSV file says of a comparison, in points."""
    gain = scaled(comparison.gain)
    return {
        "difference": gain.value, "difference low": gain.low, "difference high": gain.high,
        "p": comparison.p, "p Holm": comparison.holm,
    }  # fmt: skip


def _heading(name: str) -> str:
    return {"4": "setting", "5": "alpha", "6": "relevance", "7": "seed token"}.get(
        name, name.replace("_", " ")
    )


def _file(name: str) -> str:
    return f"table-{PAPER[name].lower()}" if name in PAPER else name.replace("_", "-")
