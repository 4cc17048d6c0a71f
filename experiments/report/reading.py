"""Results folders of a sweep as arrays: several hosts' parts joined, nothing lost or doubled."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.experiments.common import status_of
from resprune_jax.experiments.sweep.shards import MANIFEST, read_manifest

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = "examples.parquet"
NEEDED = (
    "model", "data", "code", "model_fingerprint", "data_fingerprint", "precision", "tagger",
    "visual_tokens", "examples", "configurations",
)  # fmt: skip
"""What `sweep.json` must say."""

OF_A_HOST = ("model", "data", "clip", "configurations")
"""What may differ between parts of one run, where files lie, and what is compared by name."""

MEASURES = (
    "visual_tokens", "kept", "average", "residual", "effective_rank", "select_ms", "answer_ms",
)  # fmt: skip
"""Columns of numbers that are read, beside the score."""

_PART = re.compile(r"\d+\.parquet")  # what is still being written has another name


@dataclass(frozen=True)
class Failed:
    """One row without an answer: which, and why."""

    configuration: str
    example: str
    error: str


@dataclass(frozen=True)
class Results:
    """A finished run.

    Attributes:
        run: what `sweep.json` says of it.
        configurations: as recorded there, C of them.
        keys: (E,) of the examples, in the order of the data set.
        clusters: (E,) int, which examples stand or fall together, numbered from 0.
        categories: (E,) the category of each, "" for none.
        scores: (C, E) float64 in [0, 1]; a failed row counts as wrong, 0.
        measures: name of a column -> (C, E) float32, NaN where a row has none.
        failed: the failed rows, in the order of configurations and examples.
        folders: where it was read from.
    """

    run: Mapping[str, Any]
    configurations: tuple[Mapping[str, Any], ...]
    keys: np.ndarray
    clusters: np.ndarray
    categories: np.ndarray
    scores: np.ndarray
    measures: Mapping[str, np.ndarray]
    failed: tuple[Failed, ...]
    folders: tuple[Path, ...]

    @cached_property
    def category_names(self) -> tuple[str, ...]:
        """The categories in the order in which they first appear."""
        return tuple(dict.fromkeys(self.categories.tolist()))


def read_results(folders: Sequence[Path]) -> Results:
    """Read a run.

    Args:
        folders: results folders of one sweep; several where hosts wrote apart.

    Raises:
        CallError: a folder that is missing, named twice, or of another run than the first.
        RunError: a broken file, or a run that is not finished or has rows twice.
    """
    if not folders:
        raise CallError("no results folder: give one or more that `resprune sweep` wrote")
    places: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place in places:
            raise CallError(f"{folder} is given twice: name each results folder once")
        places[place] = folder
    runs = [_run_of(folder) for folder in folders]
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        _check_same(folders[0], runs[0], folder, run)
    # The first host alone writes the examples, where each has a folder of its own.
    holders = [folder for folder in folders if (folder / EXAMPLES).is_file()] or [folders[0]]
    examples = _examples(holders[0], runs[0])
    for folder in holders[1:]:
        if not _examples(folder, runs[0]).equals(examples):
            raise CallError(f"{folder} and {holders[0]} hold different examples: two runs")
    return _assemble(folders, runs[0], examples)


def parts_of(folders: Sequence[Path]) -> list[Path]:
    """The files of rows of some results folders, in order."""
    rooms = [folder / "rows" for folder in folders]
    found = [sorted(room.iterdir()) for room in rooms if room.is_dir()]
    return [path for own in found for path in own if _PART.fullmatch(path.name)]


def answers_of(
    results: Results, configurations: Sequence[str], keys: Sequence[str]
) -> dict[tuple[str, str], str]:
    """What was answered.

    Args:
        results: the run.
        configurations: names of some.
        keys: of some examples.

    Returns:
        (configuration, key) -> answer, an error in parentheses where the row failed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = {
        "configuration": pa.array(configurations, "string"),
        "example": pa.array(keys, "string"),
    }
    found = {}
    for path in parts_of(results.folders):
        part = _table(
            path, dict.fromkeys(("configuration", "example", "answer", "error"), "string")
        )
        for column, values in wanted.items():
            part = part.filter(pc.is_in(part[column], value_set=values))
        for row in part.to_pylist():
            said = row["answer"] if row["error"] is None else f"({row['error']})"
            found[row["configuration"], row["example"]] = said or ""
    return found


def questions_of(results: Results) -> list[tuple[str, list[str]]]:
    """The question and the accepted answers of every example, in order."""
    import pyarrow as pa
    from pyarrow import parquet

    path = next(folder for folder in results.folders if (folder / EXAMPLES).is_file()) / EXAMPLES
    try:
        rows = parquet.read_table(
            path, columns=["question", "answers"], partitioning=None
        ).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    return [(row["question"] or "", list(row["answers"] or [])) for row in rows]


def _run_of(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says."""
    if status_of(folder, "the results folder") is None:
        raise CallError(f"{folder} does not exist: give a folder that `resprune sweep` wrote")
    run, path = read_manifest(folder), folder / MANIFEST
    missing = [name for name in NEEDED if name not in run]
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)}: it is not what `resprune sweep` writes")
    names = []
    for one in run["configurations"]:
        if not isinstance(one, dict) or not {"name", "method", "keep"} <= one.keys():
            raise RunError(f"{path}: a configuration has no name, method or keep: {shown(one)}")
        names.append(one["name"])
    if twice := [name for n, name in enumerate(names) if name in names[:n]]:
        raise RunError(f"{path}: two configurations are called {shown(twice[0])}")
    return run


def _check_same(
    first: Path, one: Mapping[str, Any], folder: Path, other: Mapping[str, Any]
) -> None:
    """Refuse a part of another run: paths may differ between hosts, nothing else."""
    differ = [
        f"{name} {shown(other.get(name), 40)} and {shown(one.get(name), 40)}"
        for name in sorted({*one, *other} - {*OF_A_HOST})
        if other.get(name) != one.get(name)
    ]
    ours, theirs = ({c["name"]: c for c in run["configurations"]} for run in (one, other))
    if ours != theirs:
        apart = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        differ.append(f"{len(apart)} configurations, the first {shown(apart[0])}")
    if differ:
        raise CallError(f"{folder} is of another run than {first}: {'; '.join(differ)}")


def _table(path: Path, columns: Mapping[str, str]) -> "pa.Table":
    """Columns of a Parquet file, of the types that are named."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        there = parquet.read_schema(path).names
        if missing := [name for name in columns if name not in there]:
            raise RunError(f"{path} has no column {', '.join(missing)}")
        table = parquet.read_table(path, columns=list(columns), partitioning=None)
        return table.cast(
            pa.schema([(name, pa.type_for_alias(of)) for name, of in columns.items()])
        )
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def _examples(folder: Path, run: Mapping[str, Any]) -> "pa.Table":
    path = folder / EXAMPLES
    table = _table(path, {"key": "string", "cluster": "string", "category": "string"})
    if len(table) != run["examples"]:
        raise RunError(f"{path} holds {len(table)} examples, sweep.json says {run['examples']}")
    if not len(table):
        raise RunError(f"{path} holds no example: there is nothing to report")
    return table


def _assemble(folders: Sequence[Path], run: Mapping[str, Any], examples: "pa.Table") -> Results:
    import pyarrow as pa

    names = pa.array([one["name"] for one in run["configurations"]], "string")
    keys = examples["key"].combine_chunks()
    shape = len(names), len(keys)
    if len(keys.unique()) < len(keys):
        raise RunError(f"{folders[0] / 'examples.parquet'} holds a key twice")
    types = {"configuration": "string", "example": "string", "score": "float64", "error": "string"}
    types |= dict.fromkeys(MEASURES, "float32")
    seen = np.zeros(shape, np.int32)
    scores = np.zeros(shape)
    measures = {name: np.full(shape, np.nan, np.float32) for name in MEASURES}
    errors: list[tuple[int, int, str]] = []
    for path in parts_of(folders):
        part = _table(path, types)
        at = _places(path, part, names, keys)
        np.add.at(seen, at, 1)
        scores[at], wrong = _scores(path, part)
        errors += [(int(at[0][i]), int(at[1][i]), why) for i, why in wrong]
        for name, values in measures.items():
            values[at] = part[name].to_numpy()
    _check_whole(seen, names, keys)
    clusters = examples["cluster"].combine_chunks().dictionary_encode().indices
    return Results(
        run,
        tuple(run["configurations"]),
        np.array(keys.to_pylist(), object),
        clusters.to_numpy(),
        np.array(examples["category"].to_pylist(), object),
        scores,
        measures,
        tuple(Failed(names[c].as_py(), keys[e].as_py(), why) for c, e, why in sorted(errors)),
        tuple(folders),
    )


def _places(path: Path, part: "pa.Table", names: Any, keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """The configuration and the example of each row, as numbers."""
    import pyarrow.compute as pc

    found = []
    for column, known in (("configuration", names), ("example", keys)):
        at = pc.index_in(part[column], value_set=known).combine_chunks()
        if at.null_count:
            odd = part[column].filter(pc.is_null(at))[0].as_py()
            raise RunError(f"{path} has rows of {shown(odd)}, which is no {column} of this run")
        found.append(at.to_numpy())
    return found[0], found[1]


def _scores(path: Path, part: "pa.Table") -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Scores with 0 for failed rows, and which rows failed, with the reason."""
    scores = part["score"].to_numpy()
    said = part["error"].to_pylist()
    bad = np.isnan(scores)
    for row in np.flatnonzero(bad):
        if said[row] is None:
            one = part.slice(row, 1).to_pylist()[0]
            raise RunError(
                f"{path}: {shown(one['configuration'])}, {shown(one['example'])} has neither"
                " a score nor an error: rows without an accepted answer (a test split, MM-Vet) are"
                " in no report"
            )
    outside = ~bad & ~((scores >= 0) & (scores <= 1))
    if outside.any():
        raise RunError(f"{path} holds a score of {scores[outside][0]:g}: scores lie in 0 to 1")
    return np.where(bad, 0.0, scores), [(int(row), said[row]) for row in np.flatnonzero(bad)]


def _check_whole(seen: np.ndarray, names: Any, keys: Any) -> None:
    """Refuse rows that are missing or twice."""
    for wrong, word, way_out in (
        (seen > 1, "are there twice", "name every part of the run once"),
        (seen < 1, "are missing", "finish the sweep, or name the folders of all its hosts"),
    ):
        if count := int(wrong.sum()):
            c, e = (int(i) for i in np.argwhere(wrong)[0])
            raise RunError(
                f"{count} of {wrong.size} (configuration, example) rows {word}, the first"
                f" ({shown(names[c].as_py(), 60)}, {shown(keys[e].as_py(), 60)}): {way_out}"
            )
