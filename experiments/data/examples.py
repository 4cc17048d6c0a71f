"""A data set as the commands see it: examples in order, and their pictures on request."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from resprune_jax.errors import CallError, say_once, shown
from resprune_jax.experiments.data import columns
from resprune_jax.experiments.data.columns import RowError
from resprune_jax.experiments.data.metrics import score
from resprune_jax.experiments.data.pictures import Picture
from resprune_jax.experiments.data.rows import KINDS, Row, Seen, pictures, place, rows_of

POCKET = "pocket:"
_KINDS = f"pocket:test, pocket:validation, {KINDS}"


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

    def score(self, example: Example, answer: str) -> float | None:
        """How far an answer is right, from 0 to 1; None where nothing says what is."""
        return score(example.metric, answer, example.answers)


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
        path, split = place(name_or_path, _KINDS)
        examples = _examples(rows_of(path, split), limit)
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


def _examples(rows: Iterator[Row], limit: int | None) -> list[Example]:
    """Rows as examples.

    Raises:
        CallError: of the first row that cannot be used; where pictures are missing, all are
            counted.
    """
    seen = Seen()
    examples = []
    for number, row in enumerate(islice(rows, limit)):
        try:
            examples.append(_example(row, number, seen))
        except RowError as fault:
            raise CallError(f"{row.where}: {fault}") from None
    seen.check()
    return examples


def _example(row: Row, number: int, seen: Seen) -> Example:
    values = row.values
    question, answers = columns.question_of(values), columns.answers_of(values)
    key = columns.name_of(values, "id")
    own = str(number) if key is None else key
    hint = "give every row another id" if key is not None else "give all rows an id, or none"
    seen.claim(own, row.where, hint)
    images, shows = pictures(row, seen)
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
