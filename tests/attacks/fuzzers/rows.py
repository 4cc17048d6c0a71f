"""Data sets and files of sweeps: rows, tables and grids that nobody would write.

A case changes the rows of a JSON-lines file or its bytes, the bytes of a Parquet file, or the
options and grids of a sweep's file, and opens it as the commands do.
"""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from resprune_jax.experiments.data.examples import open_dataset
from resprune_jax.experiments.data.metrics import score
from resprune_jax.experiments.sweep.command import SweepOptions
from resprune_jax.experiments.sweep.config import read_config
from resprune_jax.experiments.sweep.grid import configurations
from tests.attacks.harness import WRONG, Fault, Fuzzer, draw
from tests.attacks.inputs.mutations import damage, hostile, mutate, text

DATA, GRIDS = "data sets", "sweep files"
ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "question": "Is it red?", "answer": "yes", "metric": "yesno"},
    {"image": "a.png", "question": "How many?", "answers": ["2", "two"], "category": "counting"},
    {"images": ["a.png", "a.png"], "question": "Which?\nA. x\nB. y", "answer": "B", "id": "q",
     "metric": "choice"},
    {"question": "Name it.", "answers": ["cat"] * 10, "metric": "vqa", "cluster": "c"},
]  # fmt: skip
OPTIONS: dict[str, Any] = {
    "data": "pocket:validation", "examples": 10, "block": 5, "batch": 8, "dtype": "float32",
    "keep": ["1/9", 16], "draws": 2, "max_new_tokens": 4,
    "grids": [
        {"methods": ["none", "resprune", "random"], "alpha": [0.25, 1], "tolerance": ["off", 0.1]},
        {"methods": ["resprune:relevance_sign=-1", "fastv"], "seed_rule": ["text", "center"],
         "aggregate": ["max"], "text": ["prompt"], "positions": ["original"], "keep": ["0.5"]},
    ],
}  # fmt: skip


@functools.cache
def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def table() -> bytes:
    """The rows as a Parquet file that holds its pictures."""
    rows = [
        {
            "question": row["question"],
            "answers": row.get("answers", [row.get("answer")]),
            "image": {"bytes": picture(), "path": None} if "image" in row else None,
        }
        for row in ROWS
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def prepare() -> None:
    with tempfile.TemporaryDirectory() as own:
        _open(Path(own), "rows.jsonl", _lines(ROWS))
        _open(Path(own), "rows.parquet", table())
        _grids(Path(own), json.dumps(OPTIONS).encode())


def run_rows(seed: int) -> None:
    numbers = draw(DATA, seed)
    kind = int(numbers.integers(10))
    with tempfile.TemporaryDirectory() as own:
        if kind < 5:
            rows = mutate(ROWS, numbers)
            content = _lines(rows if isinstance(rows, list) else [rows])
            _open(Path(own), "rows.jsonl", content)
        elif kind < 7:
            _open(Path(own), "rows.jsonl", damage(_lines(ROWS), numbers))
        else:
            _open(Path(own), "rows.parquet", damage(table(), numbers))


def run_grids(seed: int) -> None:
    numbers = draw(GRIDS, seed)
    options: Any = mutate(OPTIONS, numbers)
    if numbers.random() < 0.3 and isinstance(options, dict):
        names = [*OPTIONS, "alpha", "output", "config", "model", "tagger", "report"]
        options[names[numbers.integers(len(names))]] = hostile(numbers)
    content = text(options)
    if numbers.random() < 0.2:
        content = damage(content, numbers)
    with tempfile.TemporaryDirectory() as own:
        _grids(Path(own), content)


def _lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(text, rows))


def _open(folder: Path, name: str, content: bytes) -> None:
    """Open a data set, load every picture and judge every answer."""
    (folder / "a.png").write_bytes(picture())
    (folder / name).write_bytes(content)
    data = open_dataset(str(folder / name))
    if len({one.key for one in data.examples}) != len(data.examples):
        raise Fault(WRONG, "two examples have one key")
    for one in data.examples:
        data.pictures(one)
        for answer in (*one.answers[:3], "", "yes"):
            if not 0 <= score(one.metric, answer, one.answers) <= 1:
                raise Fault(WRONG, f"{one.metric} scores {answer[:50]!r} outside 0 to 1")


def _grids(folder: Path, content: bytes) -> None:
    """Read a sweep's file and span its grids."""
    path = folder / "sweep.json"
    path.write_bytes(content)
    _, grids = read_config(SweepOptions(output=folder / "out", config=path))
    found = configurations(grids)
    if len({one.name for one in found}) != len(found):
        raise Fault(WRONG, "two configurations have one name")
    json.dumps([one.record() for one in found])


FUZZERS = [
    Fuzzer(DATA, run_rows, cases=3000, quick=60, prepare=prepare),
    Fuzzer(GRIDS, run_grids, cases=3000, quick=60, prepare=prepare),
]
