"""Which files of a folder are a data set: one of the `datasets` library, or Parquet as on the Hub.

The library is not needed: its folders say in JSON which Arrow files they consist of.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError

STATE, PARTS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
"""Files that `save_to_disk` writes: of a data set, of several splits, of what columns mean."""

_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")


def files_of(folder: Path, split: str | None) -> list[Path]:
    """The files of a data set, in the order of its rows.

    Args:
        folder: as `datasets` saves it, or one that holds Parquet files.
        split: which of its splits, where it has several.

    Raises:
        CallError: no data set, several of them, or no such split.
        RunError: a file of the folder is broken or missing.
    """
    if (folder / PARTS).is_file():
        names = _json(folder / PARTS).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f"{folder / PARTS} names no splits: save the data set again")
        return files_of(folder / _chosen(folder, {name: name for name in names}, split), None)
    if (folder / STATE).is_file():
        if split is not None:
            raise CallError(f"{folder} has no splits: leave :{split} away")
        return _saved(folder)
    return _shards(folder, split)


def labels_of(file: Path, metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names behind columns of whole numbers that `datasets` calls class labels.

    Args:
        file: an Arrow or Parquet file.
        metadata: of its schema.
    """
    try:
        told = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        info = file.parent / INFO
        told = _json(info).get("features") if file.suffix == ".arrow" and info.is_file() else None
    return {
        column: [str(name) for name in kind["names"]]
        for column, kind in (told.items() if isinstance(told, dict) else ())
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
    }


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder of `save_to_disk`."""
    state = _json(folder / STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise CallError(f"{folder} keeps its rows behind an index: save it again with datasets 2+")
    listed = state.get("_data_files")
    names = [each.get("filename") if isinstance(each, dict) else None for each in listed or ()]
    if not names or not all(isinstance(name, str) for name in names):
        raise RunError(f"{folder / STATE} names no data files: save the data set again")
    files = [folder / str(name) for name in names]
    for file in files:
        if not file.is_file():
            raise RunError(f"{file}, which {STATE} names, is missing: copy the whole folder again")
    return files


def _shards(folder: Path, split: str | None) -> list[Path]:
    """The Parquet files of a folder or of the one folder below it that has any."""
    try:
        found = sorted(path for path in folder.rglob("*.parquet") if path.is_file())
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error.strerror}") from error
    if not found:
        raise CallError(
            f"{folder} holds no data set: expected Parquet files, or what save_to_disk writes"
        )
    homes = sorted({path.parent for path in found})
    if len(homes) > 1:
        names = ", ".join(str(home.relative_to(folder)) for home in homes[:8])
        raise CallError(f"{folder} holds several data sets: give the folder of one ({names})")
    by_split: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        shard = _SHARD.fullmatch(path.name)
        by_split[shard["split"] if shard else ""].append(path)
    if set(by_split) == {""} and split is None:
        return found
    files = _chosen(folder, dict(by_split), split)
    counts = {match["count"] for path in files if (match := _SHARD.fullmatch(path.name))}
    if counts and counts != {f"{len(files):05}"}:
        raise RunError(
            f"{folder} has {len(files)} of {' or '.join(sorted(counts))} shards of its split: "
            "get the others"
        )
    return files


def _chosen(folder: Path, splits: dict[str, Any], split: str | None) -> Any:
    names = ", ".join(name or "(files without a split's name)" for name in splits)
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None:
        raise CallError(f"{folder} has the splits {names}: choose one, as {folder}:NAME")
    if split not in splits:
        raise CallError(f"{folder} has no split {split!r}: it has {names}")
    return splits[split]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not JSON ({error}): save the data set again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is no JSON object: save the data set again")
    return value
