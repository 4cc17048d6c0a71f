"""Rows read back as they were written, in every format; pictures read when they are asked for."""

import json
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resprune_jax.errors import RunError
from resprune_jax.experiments.data import pictures as pictures_module
from resprune_jax.experiments.data import tables as tables_module
from resprune_jax.experiments.data.examples import Dataset, Example, open_dataset
from tests.experiments.data.writing import IMAGE, WRITERS, jsonl, parquet, png, saved, table

ODD = [
    "a\u2028b",
    "\u2029",
    "\x85",
    "\x0b\x0c\x1c\x1d\x1e",
    "\r\n",
    "\x00",
    "\ufeff",
    '"\\',
    "😀é",
    " ",
    "",
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(ODD)
FULL = st.builds(lambda a, b: f"{a}x{b}", TEXT, TEXT)  # a text that is not blank
ROW = st.fixed_dictionaries(
    {
        "question": FULL,
        "answers": st.lists(TEXT, max_size=3).flatmap(
            lambda some: st.builds(
                lambda text, at: [*some[:at], text, *some[at:]], FULL, st.integers(0, 3)
            )
        ),
    },
    optional={
        "images": st.none() | st.lists(st.integers(0, 255).map(png), max_size=2),
        "metric": st.sampled_from([None, "exact", "contains", "gqa"]),
        "category": st.none() | TEXT,
        "cluster": st.none() | FULL,
        "extra": st.integers(0, 9),
    },
)
# Some rows of one data set have an id, others their number: ids are no numbers here.
ROWS = st.lists(ROW, min_size=1, max_size=5).flatmap(
    lambda rows: st.lists(
        st.none() | FULL.map(lambda text: f"id {text}"),
        min_size=len(rows),
        max_size=len(rows),
        unique_by=lambda name: object() if name is None else name,
    ).map(lambda names: [row | {"id": name} for row, name in zip(rows, names, strict=True)])
)
LONG = [
    {"question": "why? " * 20_000, "answers": ["x" * 10**5], "id": None, "images": [png(7)] * 2}
]


@pytest.fixture
def fresh() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=25, deadline=None)
@given(rows=ROWS)
@example(rows=LONG)
def test_rows_are_read_back_as_they_were_written(kind: str, rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = open_dataset(str(WRITERS[kind](Path(folder), rows)))
        again = open_dataset(str(Path(data.name)))
        assert again.examples == data.examples and again.fingerprint == data.fingerprint
        assert len(data.examples) == len(rows)
        for number, (row, found) in enumerate(zip(rows, data.examples, strict=True)):
            assert found.key == (row["id"] or str(number))
            assert found.question == row["question"] and found.answers == tuple(row["answers"])
            assert found.metric == (row.get("metric") or "exact")
            assert found.category == (row.get("category") or "")
            images = row.get("images") or []
            shades = [np.asarray(image).flat[0] for image in data.pictures(found)]
            assert [png(int(shade)) for shade in shades] == images
            if row.get("cluster") or not images:
                assert found.cluster == (row.get("cluster") or found.key)
        for first, second in zip(data.examples, rows, strict=True):
            for other, row in zip(data.examples, rows, strict=True):
                if kind not in ("jsonl", "ascii"):  # there every picture has a file of its own
                    same = (second.get("images") or []) == (row.get("images") or [])
                    assert (first.images == other.images) == same


ROWS_OF_TWO = [
    {"image": png(9), "question": "what?", "answer": "cat", "id": 7, "cluster": 3, "category": 1},
    {"image": png(8), "question": "what?", "answer": 12},
]


def test_numbers_name_and_answer(fresh: Path) -> None:
    data = open_dataset(str(jsonl(fresh, ROWS_OF_TWO)))
    first, second = data.examples
    assert (first.key, first.cluster, first.category, first.answers) == ("7", "3", "1", ("cat",))
    assert (second.key, second.cluster, second.answers) == ("1", "1-0.png", ("12",))


def test_a_null_is_a_column_that_is_not_there(fresh: Path) -> None:
    nulls = {"answers": None, "images": None, "metric": None, "id": None, "cluster": None}
    row = {"image": png(9), "question": "what?", "answer": "cat"}
    for kind, write in WRITERS.items():
        (fresh / kind).mkdir()
        data = open_dataset(str(write(fresh / kind, [row | nulls, row | nulls])))
        for number, found in enumerate(data.examples):
            assert found.answers == ("cat",) and found.key == str(number)
            assert np.asarray(*data.pictures(found)).flat[0] == 9
            assert (
                found.cluster == found.images[0].path.name if kind in ("jsonl", "ascii") else True
            )


def test_pictures_in_every_column_type(fresh: Path) -> None:
    (fresh / "a.png").write_bytes(png(5))
    kinds = {
        "paths": (pa.string(), "a.png"),
        "large": (pa.large_string(), "./a.png"),
        "bytes": (pa.binary(), png(5)),
        "struct of a path": (IMAGE, {"bytes": None, "path": "a.png"}),
        "list": (pa.large_list(pa.binary()), [png(5)]),
        "absolute": (pa.string(), str(fresh / "a.png")),
    }
    for name, (kind, value) in kinds.items():
        arrays = [pa.array([value] * 3, kind), pa.array(["what?"] * 3), pa.array(["cat"] * 3)]
        pq.write_table(pa.table(arrays, names=["image", "question", "answer"]), fresh / "r.parquet")
        data = open_dataset(str(fresh / "r.parquet"))
        (picture,) = data.pictures(data.examples[2])
        assert np.asarray(picture).flat[0] == 5, name
        assert len({example.images for example in data.examples}) == 1, name
        assert len({example.cluster for example in data.examples}) == 1, name


def test_a_file_whose_name_is_no_text(fresh: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (fresh / name).write_bytes(png(3))
    rows = [{"image": name, "question": "what?", "answer": "cat"}]
    data = open_dataset(str(jsonl(fresh, rows, ascii_only=True)))
    assert data.examples[0].cluster.encode() == b"caf\\udce9.png"
    assert np.asarray(*data.pictures(data.examples[0])).flat[0] == 3


def test_annotators_as_vqav2_lists_them(fresh: Path) -> None:
    kind = pa.list_(pa.struct([("answer", pa.string()), ("answer_id", pa.int64())]))
    answers = [[{"answer": f"cat {i // 3}", "answer_id": i} for i in range(10)]]
    arrays = [pa.array(["what?"]), pa.array(answers, kind), pa.array(["vqa"])]
    pq.write_table(pa.table(arrays, names=["question", "answers", "metric"]), fresh / "r.parquet")
    (found,) = open_dataset(str(fresh / "r.parquet")).examples
    assert found.answers == tuple(f"cat {i // 3}" for i in range(10)) and found.images == ()


def test_class_labels_are_their_names(fresh: Path) -> None:
    rows = [{"question": "what?", "answer": value} for value in (1, 0, None)]
    features = {"answer": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    home = saved(fresh, rows[:2], features)
    assert [each.answers for each in open_dataset(str(home)).examples] == [("dog",), ("cat",)]
    told = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    made = table(rows[:2], {"answer": pa.int64()}).replace_schema_metadata(told)
    pq.write_table(made, fresh / "r.parquet")
    assert open_dataset(str(fresh / "r.parquet")).examples[0].answers == ("dog",)


def test_splits_of_a_folder_are_chosen_by_name(fresh: Path) -> None:
    home = fresh / "both"
    for split, shade in (("train", 1), ("test", 2)):
        (fresh / split).mkdir()
        row = {"image": png(shade), "question": f"{split}?", "answer": "cat"}
        saved(fresh / split, [row]).rename(fresh / split / "moved")
        shutil.copytree(fresh / split / "moved", home / split)
    (home / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for name in (f"{home}:test", f"{home}/test"):
        assert [each.question for each in open_dataset(name).examples] == ["test?"]
    shards = fresh / "hub"
    shards.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"{split}?", "answer": "cat"}]
        pq.write_table(table(rows), shards / f"{split}-00000-of-00001.parquet")
    assert [each.question for each in open_dataset(f"{shards}:train").examples] == ["train?"]


def test_a_limit_reads_no_further(fresh: Path) -> None:
    path = jsonl(fresh, ROWS_OF_TWO)
    whole = open_dataset(str(path))
    with path.open("ab") as file:
        file.write(b"not JSON\n")
    data = open_dataset(str(path), limit=2)
    assert data.examples == whole.examples and data.fingerprint == whole.fingerprint
    assert len(open_dataset(str(path), limit=1).examples) == 1
    for kind in ("parquet", "shards", "saved"):
        (fresh / kind).mkdir()
        rows = [{"question": str(i), "answer": "cat"} for i in range(7)]
        data = open_dataset(str(WRITERS[kind](fresh / kind, rows)), limit=5)
        assert [each.question for each in data.examples] == ["0", "1", "2", "3", "4"]


def test_the_fingerprint_is_of_the_content(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(fresh, ROWS_OF_TWO)
    first = open_dataset(str(path)).fingerprint
    # Not of blanks, other columns, or where the folder lies.
    lines = [json.loads(line) | {"more": 1} for line in path.read_bytes().splitlines()]
    path.write_text("\n\n".join(json.dumps(line, indent=None) for line in lines))
    shutil.copytree(fresh, fresh / "copy")
    assert open_dataset(str(path)).fingerprint == first
    assert open_dataset(str(fresh / "copy" / "rows.jsonl")).fingerprint == first
    known = {first}
    for name, value in (
        ("question", "who?"), ("answer", "dog"), ("metric", "gqa"), ("id", 8), ("category", 2),
        ("cluster", 4), ("image", "1-0.png"),
    ):  # fmt: skip
        path.write_text("\n".join(map(json.dumps, [lines[0] | {name: value}, lines[1]])))
        known.add(open_dataset(str(path)).fingerprint)
    path.write_text("\n".join(map(json.dumps, lines[::-1])))
    known.add(open_dataset(str(path)).fingerprint)
    assert len(known) == 9
    # A picture of the same size and time that shows something else.
    path.write_text("\n".join(map(json.dumps, lines)))
    picture = fresh / "1-0.png"
    status = picture.stat()
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert picture.stat().st_mtime_ns == status.st_mtime_ns
    assert open_dataset(str(path)).fingerprint not in known
    # Of a large one, its size and time count.
    monkeypatch.setattr(pictures_module, "WHOLLY", 10)
    known.add(open_dataset(str(path)).fingerprint)
    (fresh / "1-0.png").write_bytes(png(200, size=30))
    assert open_dataset(str(path)).fingerprint not in known


def heavy(folder: Path, kind: str, groups: int) -> tuple[Dataset, list[bytes]]:
    """64 rows of 256 KiB each, which no compression makes smaller, in so many parts."""
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(2**18) for _ in range(64)]
    rows = [{"image": data, "question": "what?", "answer": "cat"} for data in pictures]
    whole = table(rows)
    if kind == "parquet":
        # Pages of two pictures: a page is the least that can be read.
        pq.write_table(whole, folder / "r.parquet", row_group_size=64 // groups, write_batch_size=2)
        return open_dataset(str(folder / "r.parquet")), pictures
    home = saved(folder, rows[:1])
    with pa.ipc.new_stream(home / "data-00000-of-00001.arrow", whole.schema) as stream:
        stream.write_table(whole, max_chunksize=64 // groups)
    return open_dataset(str(home)), pictures


def fetched(example: Example) -> bytes:
    return example.images[0].fetch()


@pytest.mark.parametrize(("kind", "groups"), [("parquet", 1), ("parquet", 16), ("saved", 4)])
def test_pictures_are_never_all_in_memory(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, kind: str, groups: int
) -> None:
    """16 MiB of pictures, opened and read within 7 of Arrow's (a window is 4) and 3 of Python's."""
    monkeypatch.setattr(tables_module, "WINDOW", 2**22)
    monkeypatch.setattr(tables_module, "_BUFFER", 2**16)
    heavy(fresh, kind, groups)
    path = fresh / ("r.parquet" if kind == "parquet" else "saved")
    before, most = pa.total_allocated_bytes(), 0
    for cls in (tables_module.ParquetTable, tables_module.ArrowTable):
        whole = cls._parts

        def parts(self: Any, *given: Any, whole: Any = whole) -> Iterator[Any]:
            nonlocal most
            for found in whole(self, *given):
                most = max(most, pa.total_allocated_bytes() - before)
                yield found
                del found

        monkeypatch.setattr(cls, "_parts", parts)
    tracemalloc.start()
    try:
        data = open_dataset(str(path))
        opening = most
        assert sum(len(fetched(each)) for each in data.examples) == 2**24
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**20
        assert (opening > 0 and most < 7 * 2**20) or kind == "saved"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_going_forward_reads_every_window_once(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tables_module, "WINDOW", 2**20)
    data, pictures = heavy(fresh, kind, 4)
    read: list[int] = []
    for cls in (tables_module.ParquetTable, tables_module.ArrowTable):
        whole = cls.windows

        def windows(self: Any, *given: Any, whole: Any = whole) -> Iterator[Any]:
            for at, batch in whole(self, *given):
                read.append(at)
                yield at, batch

        monkeypatch.setattr(cls, "windows", windows)
    assert [fetched(each) for each in data.examples] == pictures
    forward = list(read)
    assert forward == sorted(set(forward)) and len(forward) >= 4
    read.clear()
    for number in (63, 0, 40, 41, 3, 3, 62):
        assert fetched(data.examples[number]) == pictures[number]
    assert len(read) < 30


def test_shards_share_one_window(fresh: Path) -> None:
    rows = [{"image": png(i), "question": "what?", "answer": "cat"} for i in range(6)]
    data = open_dataset(str(WRITERS["shards"](fresh, rows)))
    tables = {each.images[0].fetch.args[0] for each in data.examples}
    assert len(tables) == 2
    for number in (0, 5, 1, 4, 4, 2):
        (picture,) = data.pictures(data.examples[number])
        assert np.asarray(picture).flat[0] == number
        assert sum(len(each._values) > 0 for each in tables) == 1


def test_a_table_that_changes_meanwhile_is_noticed(fresh: Path) -> None:
    rows = [{"image": png(i), "question": "what?", "answer": "cat"} for i in range(6)]
    data = open_dataset(str(parquet(fresh, rows)))
    parquet(fresh, [*rows[:3], rows[4], rows[3]])
    with pytest.raises(RunError, match="row 3 has changed since"):
        data.pictures(data.examples[3])
    with pytest.raises(RunError, match="has no row 5 any more"):
        data.pictures(data.examples[5])
    (fresh / "rows.parquet").unlink()
    with pytest.raises(RunError, match=r"rows\.parquet"):
        data.pictures(data.examples[0])
