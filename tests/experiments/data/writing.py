"""The same rows in every format that is read, written as other programs write them."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = Mapping[str, Any]

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES = {
    "images": pa.list_(IMAGE), "image": IMAGE, "answers": pa.list_(pa.string()),
    "extra": pa.int64(),
}  # fmt: skip


def png(shade: int, size: int = 3) -> bytes:
    """The bytes of a grey picture."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def table(rows: Sequence[Row], types: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Rows as a table; a picture is its bytes, or a path."""
    known = TYPES | dict(types or {})
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = []
    for name in names:
        kind = known.get(name, pa.string())
        values = [row.get(name) for row in rows]
        if kind == TYPES["images"]:
            values = [value and [_struct(each) for each in value] for value in values]
        elif kind == IMAGE:
            values = [_struct(value) for value in values]
        arrays.append(pa.array(values, kind))
    return pa.table(arrays, names=names)


def _struct(picture: bytes | str | None) -> dict[str, Any] | None:
    if picture is None:
        return None
    data = picture if isinstance(picture, bytes) else None
    return {"bytes": data, "path": "original.png" if data else picture}


def jsonl(folder: Path, rows: Sequence[Row], ascii_only: bool = False) -> Path:
    """JSON lines; a picture's bytes become a file."""
    lines = []
    for number, row in enumerate(rows):
        told = dict(row)
        for name in ("image", "images"):
            value = told.get(name)
            if isinstance(value, bytes | list):
                listed = value if isinstance(value, list) else [value]
                paths = [_file(folder, f"{number}-{i}.png", each) for i, each in enumerate(listed)]
                told[name] = paths if isinstance(value, list) else paths[0]
        lines.append(json.dumps(told, ensure_ascii=ascii_only))
    (folder / "rows.jsonl").write_bytes("\n".join(lines).encode("utf-8") + b"\n")
    return folder / "rows.jsonl"


def _file(folder: Path, name: str, picture: bytes | str) -> str:
    if isinstance(picture, str):
        return picture
    (folder / name).write_bytes(picture)
    return name


def parquet(folder: Path, rows: Sequence[Row]) -> Path:
    """One Parquet file of small row groups."""
    pq.write_table(table(rows), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def shards(folder: Path, rows: Sequence[Row]) -> Path:
    """Parquet shards as the Hub stores them."""
    (folder / "hub" / "data").mkdir(parents=True)
    (folder / "hub" / "README.md").write_text("a data set")
    parts = _parts(rows)
    for i, part in enumerate(parts):
        name = f"test-{i:05}-of-{len(parts):05}-0123456789abcdef.parquet"
        pq.write_table(table(part), folder / "hub" / "data" / name, row_group_size=3)
    return folder / "hub"


def saved(folder: Path, rows: Sequence[Row], features: Mapping[str, Any] | None = None) -> Path:
    """A folder as `datasets` saves it: Arrow streams, and JSON that names them."""
    home = folder / "saved"
    home.mkdir()
    parts = _parts(rows)
    names = [f"data-{i:05}-of-{len(parts):05}.arrow" for i in range(len(parts))]
    whole = table(rows, {name: pa.int64() for name in features or ()})
    start = 0
    for name, part in zip(names, parts, strict=True):
        with pa.ipc.new_stream(home / name, whole.schema) as stream:
            stream.write_table(whole.slice(start, len(part)), max_chunksize=2)
        start += len(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "test"}
    (home / "state.json").write_text(json.dumps(state))
    (home / "dataset_info.json").write_text(json.dumps({"features": features or {}}))
    return home


def _parts(rows: Sequence[Row]) -> list[Sequence[Row]]:
    half = (len(rows) + 1) // 2
    return [part for part in (rows[:half], rows[half:]) if part]


WRITERS: dict[str, Callable[[Path, Sequence[Row]], Path]] = {
    "jsonl": jsonl,
    "ascii": lambda folder, rows: jsonl(folder, rows, ascii_only=True),
    "parquet": parquet,
    "shards": shards,
    "saved": saved,
}
