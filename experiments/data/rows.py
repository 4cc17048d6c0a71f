"""Rows of whatever a data set lies in, and what is known of the pictures that they name."""

import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, ResPruneError, shown
from resprune_jax.experiments.common import check_file, status_of
from resprune_jax.experiments.data import columns
from resprune_jax.experiments.data.columns import RowError
from resprune_jax.experiments.data.folders import files_of, labels_of
from resprune_jax.experiments.data.lines import read_lines
from resprune_jax.experiments.data.pictures import (
    FilePicture,
    Picture,
    StoredPicture,
    digest_of,
)
from resprune_jax.experiments.data.tables import ArrowTable, Desk, ParquetTable, Table

KINDS = "a .jsonl or .parquet file, or a folder of a data set"


def place(text: str, kinds: str = KINDS) -> tuple[Path, str | None]:
    """The file or folder that is meant, and the split of a folder.

    Args:
        text: as it was typed.
        kinds: what messages say can be given.

    Raises:
        CallError: nothing that can be opened.
    """
    if not text:
        raise CallError(f"a data set has no empty name: give {kinds}")
    path, split = Path(text), None
    status = status_of(path, "data set")
    if status is None and (found := re.fullmatch(r"(.+):([^:/\\]+)", text)):
        above = status_of(Path(found[1]), "data set")
        if above is not None and stat.S_ISDIR(above.st_mode):
            path, split, status = Path(found[1]), found[2], above
    if status is not None and stat.S_ISDIR(status.st_mode):
        return path, split
    if status is None and not path.suffix and ":/" not in text:
        raise CallError(f"unknown data set {shown(text)}: give {kinds}")
    check_file(path, "data set")
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise CallError(
            f"data set {path} has another ending than .jsonl and .parquet: give {kinds}"
        )
    return path, split


@dataclass(frozen=True)
class Row:
    """A row as it was read.

    Attributes:
        where: what messages call it.
        folder: where paths start.
        values: by column.
        table: where it lies, None where that is no table.
        number: in the table.
    """

    where: str
    folder: Path
    values: Mapping[str, Any]
    table: Table | None = None
    number: int = 0


def rows_of(
    path: Path, split: str | None, used: Collection[str] = columns.COLUMNS
) -> Iterator[Row]:
    """The rows of whatever a path leads to.

    Args:
        path: a file or folder, as `place` gives it.
        split: of a folder that has several.
        used: the columns whose values are read where that costs something; of the others a row
            of a table has the names alone.
    """
    if path.is_dir():
        desk = Desk()
        for file in files_of(path, split):
            check_file(file, "data set")
            yield from _table_rows(
                (ArrowTable if file.suffix == ".arrow" else ParquetTable)(file, desk), used
            )
    elif path.suffix.lower() == ".parquet":
        yield from _table_rows(ParquetTable(path, Desk()), used)
    else:
        for where, values in read_lines(path):
            yield Row(where, path.parent, values)


def _table_rows(table: Table, columns: Collection[str]) -> Iterator[Row]:
    used = [name for name in table.schema.names if name in columns]
    others = [name for name in table.schema.names if name not in used]
    labels = labels_of(table.path, table.schema.metadata)
    with table.reading():
        for first, batch in table.windows(used):
            shown_as = {name: batch.column(name) for name in used}
            for i in range(batch.num_rows):
                # A row at a time: its pictures' bytes are let go before the next one's come.
                values = {name: column[i].as_py() for name, column in shown_as.items()}
                for name in labels.keys() & values.keys():
                    values[name] = _labelled(values[name], labels[name])
                where = f"{table.path}, row {first + i}"
                named = values | dict.fromkeys(others)  # for what messages say of columns
                yield Row(where, table.path.parent, named, table, first + i)
            del batch, shown_as  # before the next window is read: never two


def _labelled(value: Any, names: Sequence[str]) -> Any:
    """The name behind a class label; what is no label stays as it is."""
    fits = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if fits else value


@dataclass
class Seen:
    """The rows so far: who has a key, whose picture is missing, what is known of each file."""

    keys: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    files: dict[Path, str | None] = field(default_factory=dict)

    def claim(self, key: str, where: str, hint: str) -> None:
        """Give a row its key.

        Raises:
            RowError: another row has it.
        """
        if key in self.keys:
            raise RowError(f"its id {shown(key)} is that of {self.keys[key]} too: {hint}")
        self.keys[key] = where

    def check(self) -> None:
        """Refuse rows whose pictures are missing; all are counted.

        Raises:
            CallError: there are some.
        """
        if self.missing:
            others = len(self.missing) - 1
            more = f" (and {others} more row{'s' * (others > 1)} without a picture)"
            raise CallError(f"{self.missing[0]}{more if others else ''}")


def pictures(row: Row, seen: Seen) -> tuple[tuple[Picture, ...], list[str]]:
    """A row's pictures, and what each is called as a cluster.

    Raises:
        RowError: a value that is no picture.
    """
    images: list[Picture] = []
    shows = []
    for number, picture in enumerate(columns.pictures_of(row.values)):
        if isinstance(picture, bytes):
            content = digest_of(picture)
            fetch = partial(_fetch, row.table, row.number, number)
            images.append(StoredPicture(content, f"the picture of {row.where}", fetch))
            shows.append(f"sha256:{content[:16]}")
            continue
        path = row.folder / picture
        if path not in seen.files:
            seen.files[path] = trouble(path, row.where)
        if why := seen.files[path]:
            seen.missing.append(why)
        images.append(FilePicture(path))
        # A file's name may hold bytes that are no text.
        shows.append(str(Path(picture)).encode("utf-8", "backslashreplace").decode())
    return tuple(images), shows


def _fetch(table: Table | None, row: int, place: int) -> bytes:
    """Read the bytes of a picture again; JSON lines hold none."""
    for name in ("images", "image"):
        if (
            table is not None
            and name in table.schema.names
            and (value := table.cell(row, name)) is not None
        ):
            found = columns.pictures_of({name: value})[place]
            return found if isinstance(found, bytes) else b""
    return b""


def trouble(path: Path, where: str) -> str | None:
    """Why a picture's file cannot be read, None where it can."""
    try:
        check_file(path, f"{where}: image")
    except ResPruneError as error:
        return str(error)
    return None
