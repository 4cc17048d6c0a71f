"""What was answered: the rows of a finished run, by configuration and example."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError
from resprune_jax.experiments.sweep.shards import read_manifest


@dataclass(frozen=True)
class Said:
    """One row.

    Attributes:
        answer: the model's, "" where the row failed.
        error: why it failed, else None.
        kept: visual tokens behind the last drop.
        total: visual tokens of the picture.
    """

    answer: str
    error: str | None
    kept: int
    total: int

    @property
    def given(self) -> str | None:
        """The answer as scorers take it: None where the row failed."""
        return None if self.error is not None else self.answer


Rows = dict[str, dict[str, Said]]
"""Configuration -> key of the example -> what was said."""


def missing_blocks(folder: Path) -> int:
    """How many blocks of a run are not there yet."""
    run = read_manifest(folder)
    blocks = -(-int(run["examples"]) // int(run["block"]))
    there = {path.stem for path in (folder / "rows").glob("*.parquet")}
    return sum(f"{block:05}" not in there for block in range(blocks))


def read_answers(folder: Path) -> Rows:
    """The rows of a run.

    Args:
        folder: of its results; see `missing_blocks`.

    Returns:
        Configurations in the order of the run.

    Raises:
        RunError: a broken file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    found: Rows = {one["name"]: {} for one in read_manifest(folder)["configurations"]}
    for path in sorted((folder / "rows").glob("*.parquet")):
        try:
            rows: list[dict[str, Any]] = parquet.read_table(
                path,
                columns=["configuration", "example", "answer", "error", "kept", "visual_tokens"],
                partitioning=None,
            ).to_pylist()
            for row in rows:
                found[row["configuration"]][row["example"]] = Said(
                    row["answer"], row["error"], row["kept"], row["visual_tokens"]
                )
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(
                f"{path} is no block of this run, or a broken one: remove it and start again"
                f" ({error})"
            ) from None
    return found


def check_all(rows: Rows, keys: Collection[str], folder: Path) -> None:
    """Refuse a run whose blocks are there, and not every row in them.

    Raises:
        RunError: rows are missing.
    """
    missing = sum(key not in own for own in rows.values() for key in keys)
    if missing:
        raise RunError(
            f"{folder / 'rows'} lacks {missing} rows of this run: files there are of another one;"
            " remove them and start again"
        )
