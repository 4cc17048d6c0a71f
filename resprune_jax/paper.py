"""The paper's tables as data, and its relative performance as the paper computes it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from .errors import CallError

RELATIVE = "Rel. Perf."

#: Tables whose rows carry a relative performance. Table VIII is about cost.
SCORED = ("I", "II", "III", "IV", "V", "VI", "VII")

#: Columns that a table prints but leaves out of its relative performance. (Table II does not
#: print MM-Vet at all.)
LEFT_OUT: Mapping[str, tuple[str, ...]] = {"I": ("MM-Vet",)}

#: Scores of the full model that a table must have used although its own row prints others:
#: Table III was computed with the MME of the ablation section (its row prints 2304).
BASE_SCORES: Mapping[str, Mapping[str, float]] = {"III": {"MME": 2321.0}}


@dataclass(frozen=True)
class Row:
    """One printed row.

    Attributes:
        table: the table's Roman numeral.
        group: the heading above it ("Retain 192 visual tokens ..."), None above all headings.
        name: method, setting or backbone.
        values: column -> printed number, None where the paper prints none.
    """

    table: str
    group: str | None
    name: str
    values: Mapping[str, float | None]

    @property
    def relative(self) -> float | None:
        """The printed relative performance in per cent."""
        return self.values.get(RELATIVE)

    @property
    def is_base(self) -> bool:
        """Whether it is the full model of a backbone, which the rows below it are relative to."""
        return self.relative == 100.0


@dataclass(frozen=True)
class Table:
    """One printed table: numeral, column names and rows in printed order."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def averaged(self) -> tuple[str, ...]:
        """The columns whose scores enter the relative performance."""
        left_out = (RELATIVE, *LEFT_OUT.get(self.name, ()))
        return tuple(column for column in self.columns if column not in left_out)

    def base(self, row: Row) -> dict[str, float]:
        """The full-model scores that a row is relative to.

        Tables V and VII hold two backbones, each base row above its own block.

        Args:
            row: a row of this table.

        Returns:
            Column -> score, with what the table must have used instead of what it prints.
        """
        index = next((i for i, own in enumerate(self.rows) if own is row), None)
        if index is None:
            raise CallError(f"{row.name!r} of table {row.table} is no row of table {self.name}")
        above = [own for own in self.rows[: index + 1] if own.is_base]
        if not above:
            raise CallError(f"table {self.name} has no full-model row above {row.name!r}")
        scores = {c: v for c in self.averaged if (v := above[-1].values[c]) is not None}
        return {**scores, **BASE_SCORES.get(self.name, {})}

    def compared(self) -> Iterator[tuple[Row, float]]:
        """Every row that is not a base row, with its relative performance as computed."""
        for row in self.rows:
            if not row.is_base:
                yield row, relative_performance(row.values, self.base(row), self.averaged)


@cache
def tables() -> Mapping[str, Table]:
    """Tables I to VIII of the paper, by Roman numeral.

    Returns:
        The tables as printed, in the units that their column names give; the KV cache that
        Table VIII heads MB is in MiB, its times are plain numbers.
    """
    text = (resources.files("resprune_jax") / "data" / "tables.json").read_text(encoding="utf-8")
    return {
        name: Table(
            name,
            tuple(table["columns"]),
            tuple(
                Row(name, row["group"], row["name"], dict(row["values"])) for row in table["rows"]
            ),
        )
        for name, table in json.loads(text).items()
    }


def relative_performance(
    scores: Mapping[str, float | None],
    base: Mapping[str, float | None],
    columns: Sequence[str],
) -> float:
    """Relative performance as the paper computes it.

    The unweighted mean over benchmarks of score / full-model score, in per cent.

    Args:
        scores: benchmark -> score of the pruned model.
        base: benchmark -> score of the full model.
        columns: the benchmarks to average; for a table of the paper, `Table.averaged`.

    Returns:
        Per cent: 100 is the full model.

    Raises:
        CallError: no column, a score that is missing, or a base score that is not above 0.
    """
    if not columns:
        raise CallError("no benchmark to average; expected at least one column")
    shares = []
    for column in columns:
        score, full = scores.get(column), base.get(column)
        if score is None or full is None:
            whose = "score" if score is None else "full-model score"
            raise CallError(f"no {whose} for {column!r}; expected one for each of {list(columns)}")
        if not full > 0:
            raise CallError(f"the full model's {column!r} is {full}; expected more than 0")
        shares.append(score / full)
    return 100.0 * sum(shares) / len(shares)
