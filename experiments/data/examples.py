"""A data set as the commands see it: examples in order, and their pictures on request."""

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, ResPruneError, say_once, shown
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

POCKET = "pocket:"
_KINDS = "pocket:test, pocket:validation, a .jsonl or .parquet file, or a folder of a data set"


@dataclass(frozen=True)
class Example:
    """A question about pictures.

    Attributes:
        key: unique in the data set and stable: the row's id, or its number from 0.
        images: the pictures, hashable and not loaded (`pictures.Picture`); () for text alone.
        cluster: what stands or falls together, the picture as a rule.
        category: the column of a table; "" for none.
        question: what is asked.
        answers: what is accepted.
        metric: a name of `metrics.METRICS`.
    """

    key: str
    images: tuple[Any, ...]
    cluster: str
    category: str
    question: str
    answers: tuple[str, ...]
    metric: str


@dataclass(frozen=True)
class Dataset:
    """Examples in order.

    Attributes:
        name: what it was opened as.
        examples: without their pictures' pixels.
        fingerprint: SHA-256, in hex digits, of every field of the examples and of the content of
            their pictures.
    """

    name: str
    examples: list[Example]
    fingerprint: str

    def pictures(self, example: Example) -> list[Any]:
        """Load an example's pictures.

        Returns:
            PIL images or arrays, as `LVLM.generate` takes them, in order.

        Raises:
            CallError: a picture beyond the limits.
            RunError: a picture that cannot be read, or has changed in its table.
        """
        return [each.load() if isinstance(each, Picture) else each for each in example.images]


def open_dataset(name_or_path: str, limit: int | None = None) -> Dataset:
    """Open a data set; its pictures stay where they are.

    Every row is checked, and every picture's content is read once, for the fingerprint.

    Args:
        name_or_path: "pocket:test" or "pocket:validation"; a .jsonl or .parquet file; a folder of
            the `datasets` library (`save_to_disk`) or of Parquet shards. One split of several:
            "FOLDER:SPLIT".
        limit: of the first so many examples alone.

    Raises:
        CallError: nothing that can be opened, no row, or a row that cannot be used: without a
            question, an answer or its picture, of an unknown metric or another's id.
        RunError: a file that is broken or cannot be read.
    """
    if limit is not None and limit < 1:
        raise CallError(f"limit={limit} leaves no example: give a number from 1 on, or none")
    if name_or_path.startswith(POCKET):
        examples, name = _pocket(name_or_path.removeprefix(POCKET), limit), name_or_path
    else:
        path, split = _place(name_or_path)
        examples = _examples(_rows(path, split), limit)
        name = str(path.resolve()) + (f":{split}" if split else "")
        if not examples:
            raise CallError(f"{path} holds no row: an empty data set cannot be asked")
        if not any(example.images for example in examples):
            say_once(
                f"no pictures {name}", f"{path} has no picture in any row: text alone is asked"
            )
    return Dataset(name, examples, fingerprint(examples))


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of all that decides what examples ask, show and accept, in hex digits."""
    total = hashlib.sha256()
    known: dict[Any, str] = {}
    for example in examples:
        shows = []
        for image in example.images:
            if image not in known:
                known[image] = image.digest()
            shows.append(known[image])
        told = [
            example.key, example.cluster, example.category, example.question, example.answers,
            example.metric, shows,
        ]  # fmt: skip
        total.update(json.dumps(told).encode() + b"\n")
    return total.hexdigest()


def _pocket(split: str, limit: int | None) -> list[Example]:
    # Here, because the scenes stand on this module.
    from resprune_jax.experiments.data.scenes import SPLITS, scene_examples

    if split not in SPLITS:
        names = " or ".join(POCKET + each for each in SPLITS)
        raise CallError(f"unknown data set {shown(POCKET + split)}: give {names}")
    return list(islice(scene_examples(split), limit))


def _place(text: str) -> tuple[Path, str | None]:
    """The file or folder that is meant, and the split of a folder."""
    if not text:
        raise CallError(f"a data set has no empty name: give {_KINDS}")
    path, split = Path(text), None
    status = status_of(path, "data set")
    if status is None and (found := re.fullmatch(r"(.+):([^:/\\]+)", text)):
        above = status_of(Path(found[1]), "data set")
        if above is not None and stat.S_ISDIR(above.st_mode):
            path, split, status = Path(found[1]), found[2], above
    if status is not None and stat.S_ISDIR(status.st_mode):
        return path, split
    if status is None and not path.suffix and ":/" not in text:
        raise CallError(f"unknown data set {shown(text)}: give {_KINDS}")
    check_file(path, "data set")
    if path.suffix.lower() not in (".jsonl", ".parquet"):
        raise CallError(
            f"data set {path} has another ending than .jsonl and .parquet: give {_KINDS}"
        )
    return path, split


@dataclass(frozen=True)
class _Row:
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


def _rows(path: Path, split: str | None) -> Iterator[_Row]:
    """The rows of whatever a path leads to."""
    if path.is_dir():
        desk = Desk()
        for file in files_of(path, split):
            check_file(file, "data set")
            yield from _table_rows(
                (ArrowTable if file.suffix == ".arrow" else ParquetTable)(file, desk)
            )
    elif path.suffix.lower() == ".parquet":
        yield from _table_rows(ParquetTable(path, Desk()))
    else:
        for where, values in read_lines(path):
            yield _Row(where, path.parent, values)


def _table_rows(table: Table) -> Iterator[_Row]:
    used = [name for name in table.schema.names if name in columns.COLUMNS]
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
                yield _Row(where, table.path.parent, named, table, first + i)
            del batch, shown_as  # before the next window is read: never two


def _labelled(value: Any, names: Sequence[str]) -> Any:
    """The name behind a class label; what is no label stays as it is."""
    fits = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if fits else value


@dataclass
class _Seen:
    """The rows so far: who has a key, whose picture is missing, what is known of each file."""

    keys: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    files: dict[Path, str | None] = field(default_factory=dict)


def _examples(rows: Iterator[_Row], limit: int | None) -> list[Example]:
    """Rows as examples.

    Raises:
        CallError: of the first row that cannot be used; where pictures are missing, all are
            counted.
    """
    seen = _Seen()
    examples = []
    for number, row in enumerate(islice(rows, limit)):
        try:
            examples.append(_example(row, number, seen))
        except RowError as fault:
            raise CallError(f"{row.where}: {fault}") from None
    if seen.missing:
        others = len(seen.missing) - 1
        more = f" (and {others} more row{'s' * (others > 1)} without a picture)" if others else ""
        raise CallError(f"{seen.missing[0]}{more}")
    return examples


def _example(row: _Row, number: int, seen: _Seen) -> Example:
    values = row.values
    question, answers = columns.question_of(values), columns.answers_of(values)
    key = columns.name_of(values, "id")
    own = str(number) if key is None else key
    if own in seen.keys:
        hint = "give every row another id" if key is not None else "give all rows an id, or none"
        raise RowError(f"its id {shown(own)} is that of {seen.keys[own]} too: {hint}")
    seen.keys[own] = row.where
    images, shows = _pictures(row, seen)
    cluster = columns.name_of(values, "cluster")
    return Example(
        key=own,
        images=images,
        cluster=" ".join(shows) or own if cluster is None else cluster,
        category=columns.name_of(values, "category") or "",
        question=question,
        answers=answers,
        metric=columns.metric_of(values, answers),
    )


def _pictures(row: _Row, seen: _Seen) -> tuple[tuple[Picture, ...], list[str]]:
    """A row's pictures, and what each is called as a cluster."""
    images: list[Picture] = []
    shows = []
    for place, picture in enumerate(columns.pictures_of(row.values)):
        if isinstance(picture, bytes):
            content = digest_of(picture)
            fetch = partial(_fetch, row.table, row.number, place)
            images.append(StoredPicture(content, f"the picture of {row.where}", fetch))
            shows.append(f"sha256:{content[:16]}")
            continue
        path = row.folder / picture
        if path not in seen.files:
            seen.files[path] = _trouble(path, row.where)
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


def _trouble(path: Path, where: str) -> str | None:
    """Why a picture's file cannot be read, None where it can."""
    try:
        check_file(path, f"{where}: image")
    except ResPruneError as error:
        return str(error)
    return None
