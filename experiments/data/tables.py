"""Rows of Parquet and Arrow files, read a window at a time: no file is held in memory.

Pictures are fetched again when they are asked for. Of a data set's files one keeps its window, the
one that was read last: going forward reads everything once, going back starts its part anew.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from resprune_jax.errors import ResPruneError, RunError

WINDOW = 64 * 2**20
"""Bytes of rows that are held at once, uncompressed; a single row or page may be larger."""

_BUFFER = 2**20


class Desk:
    """Where at most one table of a data set keeps a window of its rows; safe for threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._table: Table | None = None

    def take(self, table: "Table") -> None:
        """Let another table clear its place for this one; call it under the lock."""
        if self._table is not None and self._table is not table:
            self._table.release()
        self._table = table


class Table(ABC):
    """A file of rows.

    Args:
        path: the file.
        desk: shared by the tables of a data set.
    """

    kind = "table"

    def __init__(self, path: Path, desk: Desk) -> None:
        self.path = path
        self._desk = desk
        self._column = ""
        self._windows: Iterator[tuple[int, pa.RecordBatch]] | None = None
        self._first = 0
        self._values: Any = ()
        with self.reading():
            self.schema = self._look()
            names = self.schema.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise RunError(f"{path} has two columns {twice!r}: rename or drop one")

    @abstractmethod
    def _look(self) -> pa.Schema:
        """The schema."""

    @abstractmethod
    def _parts(self, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As `windows`, not looked through."""

    def windows(
        self, columns: Sequence[str], start: int = 0
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows of some columns, a window at a time.

        Args:
            columns: of the schema.
            start: a row; windows that end before it may be left out.

        Yields:
            The number of a window's first row, and its rows.
        """
        for first, batch in self._parts([*columns], start):
            # Of a broken file values may point anywhere, and end the process where they are read.
            batch.validate(full=True)
            yield first, batch
            del batch  # before the next one is read: never two

    def cell(self, row: int, column: str) -> Any:
        """A value, as a Python object.

        Raises:
            RunError: the file has changed or cannot be read any more.
        """
        with self._desk.lock, self.reading():
            self._desk.take(self)
            first, held = self._first, len(self._values)
            # The next window is read on from here; what lies behind it is looked up.
            if column != self._column or not first <= row < first + max(2 * held, 1):
                self.release()
            if self._windows is None:
                self._column = column
                self._windows = self.windows([column], row)
            while not self._first <= row < self._first + len(self._values):
                self._values = ()
                found = next(self._windows, None)
                if found is None:
                    self.release()
                    raise RunError(f"{self.path} has no row {row} any more: start again")
                self._first, self._values = found[0], found[1].column(0)
                del found
            return self._values[row - self._first].as_py()

    def release(self) -> None:
        """Forget the window, and close the file."""
        self._windows, self._first, self._values = None, 0, ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn what pyarrow raises into one line about the file."""
        try:
            yield
        except ResPruneError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, EOFError) as error:
            self.release()
            if isinstance(error, PermissionError):
                raise RunError(f"{self.path} cannot be read: permission denied") from error
            hint = "get it again, or write it again"
            if _is_pointer(self.path):
                hint = "it is a Git LFS pointer, run git lfs pull"
            raise RunError(
                f"{self.path} is no {self.kind} file, or a broken one: {hint} ({error})"
            ) from error


def _is_pointer(path: Path) -> bool:
    """Whether a file stands for another one, which Git LFS has not fetched yet."""
    try:
        with path.open("rb") as file:
            return file.read(23) == b"version https://git-lfs"
    except OSError:
        return False


class ParquetTable(Table):
    """A Parquet file; a window is a row group, or a part of a large one."""

    kind = "Parquet"

    def _open(self) -> pq.ParquetFile:
        # Buffered, so that pages of a large row group come one after the other.
        return pq.ParquetFile(self.path, buffer_size=_BUFFER, pre_buffer=False)

    def _look(self) -> pa.Schema:
        with self._open() as file:
            return file.schema_arrow

    def _parts(self, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        with self._open() as file:
            first = 0
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                rows, size = group.num_rows, group.total_byte_size
                if first + rows > start and rows:
                    some = max(1, min(rows, rows * WINDOW // max(size, 1)))
                    at = first
                    for batch in file.iter_batches(some, row_groups=[number], columns=columns):
                        yield at, batch
                        at += batch.num_rows
                        del batch
                first += rows


class ArrowTable(Table):
    """An Arrow file as `datasets` saves it, mapped into memory; a window is a record batch."""

    kind = "Arrow"

    @contextmanager
    def _batches(self) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
        with pa.memory_map(str(self.path)) as source:
            magic = source.read(6)
            source.seek(0)
            if magic == b"ARROW1":
                with pa.ipc.open_file(source) as file:
                    yield file.schema, map(file.get_batch, range(file.num_record_batches))
            else:
                with pa.ipc.open_stream(source) as stream:
                    yield stream.schema, iter(stream)

    def _look(self) -> pa.Schema:
        with self._batches() as (schema, _):
            return schema

    def _parts(self, columns: list[str], start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        with self._batches() as (_, batches):
            first = 0
            for batch in batches:
                if first + batch.num_rows > start and batch.num_rows:
                    yield first, batch.select(columns)
                first += batch.num_rows
