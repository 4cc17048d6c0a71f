"""The results folder of a sweep: one Parquet file a block, written aside and renamed.

A killed run leaves whole blocks or nothing of them; the folder says by itself what it is of, and a
run of something else is refused. docs/how_to/sweeps.md describes the files.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.experiments import stopping
from resprune_jax.experiments.common import make_folder

FORMAT = 1
MANIFEST = "sweep.json"
EXAMPLES = "examples.parquet"

ROWS = pa.schema([
    ("configuration", pa.dictionary(pa.int32(), pa.string())),
    ("example", pa.string()),
    ("answer", pa.string()),
    ("score", pa.float64()),
    ("error", pa.string()),
    ("visual_tokens", pa.int32()),
    ("kept", pa.int32()),
    ("average", pa.float32()),
    ("residual", pa.float32()),
    ("effective_rank", pa.float32()),
    ("nouns", pa.list_(pa.string())),
    ("noun_backend", pa.string()),
    ("distinct", pa.int32()),
    ("select_ms", pa.float32()),
    ("answer_ms", pa.float32()),
])  # fmt: skip
"""The columns of a block's file, see docs/how_to/sweeps.md."""

TIMES = ("select_ms", "answer_ms")
"""The columns that differ between two runs of the same sweep."""


class Shards:
    """The folder of one sweep, open for one process of it.

    Attributes:
        path: the folder.
        done: numbers of the blocks that are there.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], *, number: int = 0, count: int = 1
    ) -> None:
        """Open a folder, or start one.

        Args:
            path: the folder; made if missing.
            manifest: what the sweep is of, all that must not change between its runs.
            number: of this process among those of the sweep.
            count: of these processes.

        Raises:
            CallError: a folder of another sweep or another run's, or one that cannot be written.
        """
        self.path = path
        make_folder(path, "--output")
        make_folder(path / "rows", "--output")
        if not os.access(path, os.W_OK) or not os.access(path / "rows", os.W_OK):
            raise CallError(f"--output {path}: no permission to write to it")
        self._number, self._count = number, count
        self._held = contextlib.ExitStack()
        self._held.enter_context(hold(path / ".lock", shared=count > 1))
        if count > 1:
            self._held.enter_context(hold(path / f".lock-{number}", shared=False))
        try:
            self._compare(json.loads(json.dumps(dict(manifest), default=str)))
        except BaseException:
            self._held.close()
            raise
        for torn in (path / "rows").glob(f".*-{number}.part"):
            torn.unlink(missing_ok=True)
        self.done = {int(one.stem) for one in (path / "rows").glob("*.parquet")}

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _compare(self, manifest: dict[str, Any]) -> None:
        path = self.path / MANIFEST
        if not path.exists():
            if any((self.path / "rows").glob("*.parquet")):
                raise CallError(f"{self.path} holds rows but no {MANIFEST}: give another --output")
            text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
            replace(path, text.encode("utf-8", "backslashreplace"), self._number)
            if self._count == 1:
                return
        found = read_manifest(self.path)
        if other := differences(found, manifest):
            raise CallError(
                f"{self.path} holds another sweep: {other}; give another --output, or the same"
                " options, model and data"
            )

    def write_examples(self, examples: Sequence[Any]) -> None:
        """Write the examples that the rows are about, once."""
        path = self.path / EXAMPLES
        if path.exists():
            return
        table = pa.table({
            "key": pa.array([one.key for one in examples], pa.string()),
            "cluster": pa.array([one.cluster for one in examples], pa.string()),
            "category": pa.array([one.category for one in examples], pa.string()),
            "question": pa.array([_utf8(one.question) for one in examples], pa.string()),
            "answers": pa.array(
                [[_utf8(each) for each in one.answers] for one in examples],
                pa.list_(pa.string()),
            ),
            "metric": pa.array([one.metric for one in examples], pa.string()),
        })  # fmt: skip
        replace(path, _parquet(table), self._number)

    def write(self, block: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a block, all of them or none.

        Raises:
            RunError: they cannot be written; blocks that are there stay.
        """
        columns = {
            name: [_utf8(row[name]) if isinstance(row[name], str) else row[name] for row in rows]
            for name in ROWS.names
        }
        arrays = []
        for own in ROWS:
            if pa.types.is_dictionary(own.type):
                arrays.append(pa.array(columns[own.name], pa.string()).dictionary_encode())
            else:
                arrays.append(pa.array(columns[own.name], own.type))
        table = pa.Table.from_arrays(arrays, schema=ROWS)
        replace(self.path / "rows" / f"{block:05}.parquet", _parquet(table), self._number)
        self.done.add(block)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a results folder is of.

    Raises:
        CallError: no such folder, or none of a sweep.
        RunError: a broken file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CallError(f"{folder} holds no {MANIFEST}: give a folder that `resprune sweep` wrote")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        own = shown(found.get("format")) if isinstance(found, dict) else "no object"
        raise RunError(f"{path} has format {own}: this version reads format {FORMAT}")
    return found


def differences(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What differs between two sweeps, in words; "" for nothing."""
    said = []
    for name in sorted({*theirs, *own}):
        one, other = theirs.get(name), own.get(name)
        if one == other:
            continue
        if name == "configurations":
            before = {each["name"] for each in one or ()}
            here = {each["name"] for each in other or ()}
            gone, new = sorted(before - here), sorted(here - before)
            words = [f"{len(gone)} configurations are not asked here ({gone[0]})"] if gone else []
            words += [f"{len(new)} are new here ({new[0]})"] if new else []
            said += words or ["the configurations differ"]
        elif isinstance(one, Mapping) and isinstance(other, Mapping):
            said.append(differences(one, other))
        else:
            said.append(f"{name} {shown(one)} there, {shown(other)} here")
    return "; ".join(said)


def _utf8(text: str) -> str:
    """Text as Parquet holds it: halves of surrogate pairs are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def replace(path: Path, content: bytes, number: int = 0) -> None:
    """Give a file its content in one step.

    Args:
        path: of the file.
        content: all of it.
        number: of the process among those that may write it.

    Raises:
        RunError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}-{number}.part")
    try:
        with stopping.whole():
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def hold(path: Path, *, shared: bool, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, where the system can; a kill lets go of it.

    Args:
        path: of the file, in the folder that is held.
        shared: with others that share it.
        wait: until nobody else holds it, in place of refusing.

    Raises:
        CallError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = path.open("ab")
    except OSError as error:
        raise CallError(f"--output {path.parent} cannot be written: {error.strerror}") from None
    with file:
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file, how | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CallError(
                f"another run writes to {path.parent}: wait for it, or give another --output"
            ) from None
        yield
