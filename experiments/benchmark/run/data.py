"""A benchmark's files as a data set of the sweeps: prompts for questions, pictures beside them."""

import dataclasses
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, say_once, shown
from resprune_jax.experiments.benchmark.prompts import PROMPTS, optional, textvqa
from resprune_jax.experiments.benchmark.run.catalogue import Facts, facts_of
from resprune_jax.experiments.benchmark.scoring import Verdict, judge, truth_of
from resprune_jax.experiments.common import status_of
from resprune_jax.experiments.data import columns, vqa
from resprune_jax.experiments.data.columns import RowError
from resprune_jax.experiments.data.examples import Dataset, Example, fingerprint
from resprune_jax.experiments.data.pictures import FilePicture, Picture
from resprune_jax.experiments.data.rows import Row, Seen, pictures, place, rows_of, trouble

_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Benchmark(Dataset):
    """Examples grouped by picture, and the rows that they are of.

    Attributes:
        benchmark: its name.
        rows: by key, in the order of the file: the columns that scorers and submissions read.
    """

    benchmark: str
    rows: Mapping[str, Mapping[str, Any]]

    def score(self, example: Example, answer: str) -> float | None:
        """How far an answer is right by the benchmark's rule; None where the row does not say."""
        return judge(self.benchmark, self.rows[example.key], answer).score

    def verdict(self, key: str, answer: str | None) -> Verdict:
        """What the scorer makes of an answer; None for a row that failed."""
        return judge(self.benchmark, self.rows[key], answer)


def open_benchmark(
    name: str,
    data: str,
    *,
    images: Path | None = None,
    limit: int | None = None,
    ocr_line: bool = True,
) -> Benchmark:
    """Open a benchmark's data; its pictures stay where they are.

    Every row is checked and every picture's content read once. Rows about one picture are put
    together, so that it is encoded once, each picture where its first row stands.

    Args:
        name: of the benchmark.
        data: a .parquet or .jsonl file, or a folder of Parquet files, with lmms-lab's columns.
        images: where the pictures lie, of data that only name them: a folder of picture files, or
            Parquet files with the columns id and image (GQA).
        limit: of the first so many rows alone.
        ocr_line: TextVQA's prompts have the line of OCR words.

    Raises:
        CallError: an unknown benchmark, no such data, a column that is missing, a row or picture
            that cannot be used.
        RunError: a file that is broken or cannot be read.
    """
    facts = facts_of(name)
    if name == "textvqa" and not ocr_line:
        facts = dataclasses.replace(facts, needed=facts.needed[:2])
    path, split = place(data)
    seen, album = Seen(), _album(name, images)
    examples: list[Example] = []
    rows: dict[str, Mapping[str, Any]] = {}
    bare = 0
    for number, row in enumerate(rows_of(path, split, ("image", *facts.needed, *facts.more))):
        if len(examples) == limit:
            break
        if number == 0:
            _check_columns(name, facts, row, path)
        if name == "sqa-img" and row.values.get("image") is None:
            bare += 1
            continue
        try:
            values = {column: row.values.get(column) for column in (*facts.needed, *facts.more)}
            if "answers" in values:
                values["answers"] = list(truth_of(name, values)) or None
            key = _key(name, facts, values, number, seen)
            seen.claim(key, row.where, "take the row out, or mend the file")
            example = _example(name, key, row, values, album, seen, ocr_line)
        except RowError as fault:
            raise CallError(f"{row.where}: {fault}") from None
        examples.append(example)
        rows[key] = values
    seen.check()
    if name == "mme":
        _check_pairs(rows, path, limit)
    if not examples:
        what = "row with a picture" if bare else "row"
        raise CallError(f"{path} holds no {what}: there is nothing to ask")
    if bare:
        say_once(
            f"bare {path}",
            f"{path}: {bare} of {bare + len(examples)} rows have no picture and are left out, as"
            " ScienceQA-IMG does",
        )
    few = sum(0 < len(row.get("answers") or ()) < vqa.FEWEST for row in rows.values())
    if few:
        say_once(
            f"annotators {path}",
            f"{path}: {few} of {len(rows)} rows have fewer than {vqa.FEWEST} answers: VQA accuracy"
            " counts annotators, of whom three others must agree, and nothing scores 1 there",
        )
    first: dict[Any, int] = {}
    examples.sort(key=lambda example: first.setdefault(example.images, len(first)))
    where = str(path.resolve()) + (f":{split}" if split else "")
    return Benchmark(where, examples, fingerprint(examples), name, rows)


def _check_columns(name: str, facts: Facts, row: Row, path: Path) -> None:
    """Refuse another table than the benchmark's by its first row."""
    if missing := [column for column in facts.needed if column not in row.values]:
        there = ", ".join(str(column) for column in list(row.values)[:16]) or "none"
        raise CallError(
            f"{path} has no column {', '.join(map(repr, missing))}, which {name} needs: is it"
            f" lmms-lab's file of {facts.title}? (columns here: {there})"
        )


def _check_pairs(rows: Mapping[str, Mapping[str, Any]], path: Path, limit: int | None) -> None:
    """Refuse pictures of MME without both their questions: its score is of pairs."""
    found = Counter((row["category"], row["question_id"]) for row in rows.values())
    torn = [f"{picture} of {category}" for (category, picture), n in found.items() if n != 2]
    if torn:
        count = f"{len(torn)} pictures do" if len(torn) > 1 else "1 picture does"
        hint = f"--examples {limit} parts a pair" if limit == len(rows) else "mend the file"
        raise CallError(
            f"{path}: {count} not have two questions, such as {torn[0]}: MME scores pairs, {hint}"
        )


def _key(name: str, facts: Facts, values: Mapping[str, Any], number: int, seen: Seen) -> str:
    """What a row is called: unique, and the same wherever the file lies.

    Raises:
        RowError: its name is no text or whole number.
    """
    value = values.get(facts.key) if facts.key else None
    own = None if value is None else columns.name_of({"id": value}, "id")
    if own is None:
        return str(number)
    if name == "pope" and (split := optional(values, "category")):
        return f"{split}/{own}"  # every split counts its questions anew
    if name == "mme":  # the two questions about a picture have one name
        own = f"{optional(values, 'category')}/{own.removeprefix(str(values['category']) + '/')}"
        return next(key for n in range(1, 10**6) if (key := f"{own}#{n}") not in seen.keys)
    return own


def _example(
    name: str,
    key: str,
    row: Row,
    values: Mapping[str, Any],
    album: "_Album | None",
    seen: Seen,
    ocr_line: bool,
) -> Example:
    """A row as the sweeps ask it.

    Raises:
        RowError: it cannot be used.
    """
    prompt = PROMPTS[name](values) if name != "textvqa" else textvqa(values, ocr_line=ocr_line)
    verdict = judge(name, values, None)  # what is accepted is checked here
    for column in ("image_id", "split"):  # no scorer reads these, submissions do
        optional(values, column)
    if name == "gqa" and album is not None and row.values.get("image") is None:
        named = columns.name_of(values, "imageId")
        if named is None:
            raise RowError('no "imageId": --images is looked through by it')
        images, cluster = album.find(named, row.where, seen)
    else:
        if album is not None and album.folder is not None:
            row = dataclasses.replace(row, folder=album.folder)
        shows: list[str]
        images, shows = pictures(row, seen)
        cluster = " ".join(shows)
    if not images:
        hint = " (or name the file or folder of pictures with --images)" if name == "gqa" else ""
        raise RowError(f'no picture in the column "image"{hint}')
    return Example(
        key=key,
        images=images,
        cluster=cluster,
        category=verdict.category,
        question=prompt,
        answers=truth_of(name, values),
        metric=f"benchmark {name}",
    )


@dataclass(frozen=True)
class _Album:
    """Pictures that rows name: files of a folder, or rows of a table.

    Attributes:
        folder: of picture files; None for a table.
        known: by name, with what they are called as a cluster.
    """

    folder: Path | None
    known: dict[str, tuple[tuple[Picture, ...], str]]

    def find(self, name: str, where: str, seen: Seen) -> tuple[tuple[Picture, ...], str]:
        """A picture by its name.

        Raises:
            RowError: there is none.
        """
        if name not in self.known and self.folder is not None:
            paths = [self.folder / f"{name}{ending}" for ending in _ENDINGS]
            path = next((each for each in paths if trouble(each, where) is None), paths[0])
            if path not in seen.files:
                seen.files[path] = trouble(path, where)
            if why := seen.files[path]:
                seen.missing.append(why)
            self.known[name] = (FilePicture(path),), path.name
        if name not in self.known:
            raise RowError(f"--images has no picture {shown(name)}: get the pictures of this split")
        return self.known[name]


def _album(name: str, images: Path | None) -> _Album | None:
    """Where pictures are looked for that lie apart from the rows."""
    if images is None:
        return None
    status = status_of(images, "--images")
    if status is None:
        raise CallError(f"--images {images} does not exist: check the path")
    tables = ("*.parquet", "state.json", "dataset_dict.json")
    if stat.S_ISDIR(status.st_mode) and not any(
        next(images.rglob(pattern), None) for pattern in tables
    ):
        return _Album(images, {})
    if name != "gqa":
        raise CallError(f"--images {images} is no folder of picture files, which {name} takes")
    known: dict[str, tuple[tuple[Picture, ...], str]] = {}
    for key, found in _stored(images):
        if known.setdefault(key, found) != found:
            raise CallError(f"--images {images} has two pictures {shown(key)}: take one out")
    return _Album(None, known)


def _stored(images: Path) -> Iterator[tuple[str, tuple[tuple[Picture, ...], str]]]:
    """The pictures of Parquet files by their id."""
    path, split = place(str(images))
    seen = Seen()
    for row in rows_of(path, split, ("id", "image")):
        try:
            key = columns.name_of(row.values, "id")
            images_of_row, shows = pictures(row, seen)
        except RowError as fault:
            raise CallError(f"{row.where}: {fault}") from None
        if key is None or not images_of_row:
            raise CallError(f"{row.where}: --images takes rows of an id and an image")
        yield key, (images_of_row, " ".join(shows))
    seen.check()
