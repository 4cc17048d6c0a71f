"""What cannot be used is one line that names the file, the row and what to do."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import LONGEST, CallError, ResPruneError, RunError
from resprune_jax.experiments.data.examples import open_dataset
from tests.experiments.data.writing import WRITERS, jsonl, parquet, png, saved, shards, table

GOOD = {"question": "what?", "answer": "cat"}


def refusal(path: Path | str, kind: type[ResPruneError] = CallError) -> str:
    with pytest.raises(kind) as caught:
        open_dataset(str(path))
    text = str(caught.value)
    assert text.isprintable() and len(text) <= LONGEST
    return text


# Rows of JSON lines that cannot be used, and what is said of them.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "no question": ({"answer": "cat", "prompt": "x"}, 'no question: .*"question".*answer, prompt'),
    "null question": (GOOD | {"question": None}, "no question"),
    "blank question": (GOOD | {"question": " \u2028"}, "question is empty"),
    "question of a number": (GOOD | {"question": 3}, '"question" is 3: write it as text'),
    "half a pair": (GOOD | {"question": "a\ud83d"}, "half of a surrogate pair"),
    "no answer": ({"question": "what?"}, 'no answer: give the column "answer"'),
    "no answers": ({"question": "what?", "answers": []}, "no answer"),
    "empty answer": (GOOD | {"answer": ""}, '"answer" is empty'),
    "blank answers": (GOOD | {"answers": ["", " "]}, '"answers" is empty'),
    "null in the answers": (GOOD | {"answers": ["a", None]}, '"answers" is None'),
    "answer of a fraction": (GOOD | {"answer": 0.5}, '"answer" is 0.5: write it as text'),
    "answer of a truth": (GOOD | {"answer": True}, '"answer" is True: write it as text'),
    "half a pair in answers": (GOOD | {"answers": ["a", "\udc00"]}, '"answers" holds half of'),
    "annotators without answers": (GOOD | {"answers": [{"text": "a"}]}, '"answers" is None'),
    "unknown metric": (GOOD | {"metric": "bleu"}, "unknown metric 'bleu': choose one of exact, "),
    "metric of a number": (GOOD | {"metric": 3}, "unknown metric 3"),
    "metric of a list": (GOOD | {"metric": ["vqa"]}, "unknown metric"),
    "vqa of one": (GOOD | {"metric": "vqa"}, "'vqa' counts annotators, of which there are 1"),
    "yesno of another": (GOOD | {"metric": "yesno"}, "'yesno' takes the answers yes and no alone"),
    "choice without letter": (GOOD | {"metric": "choice"}, "'choice' needs an option's letter"),
    "id of a fraction": (GOOD | {"id": 1.5}, '"id" is 1.5: write it as text'),
    "id NaN": (GOOD | {"id": float("nan")}, '"id" is nan'),
    "empty id": (GOOD | {"id": ""}, '"id" is empty'),
    "empty cluster": (GOOD | {"cluster": ""}, '"cluster" is empty'),
    "category of a list": (GOOD | {"category": []}, '"category" is '),
    "image of a number": (GOOD | {"image": 3}, '"image" is 3: give a path'),
    "empty image": (GOOD | {"image": ""}, "an empty path"),
    "null in images": (GOOD | {"images": [None]}, '"images" is None'),
    "image of nothing": (GOOD | {"image": {"path": None}}, "neither bytes nor a path"),
    "image as text": (GOOD | {"image": {"bytes": "iVBO"}}, "bytes as text"),
    "half a pair in image": (GOOD | {"image": "\ud83d.png"}, "no file can have the name"),
    "missing image": (GOOD | {"image": "gone.png"}, r"image .*/gone\.png does not exist"),
    "missing image of two": (GOOD | {"images": ["a.png", "b.png"]}, r"image .*/b\.png does not"),
    "a folder as image": (GOOD | {"image": "."}, "is not a file"),
    "a link as image": (GOOD | {"image": "https://a.b/c.png"}, "does not exist"),
    "NUL in image": (GOOD | {"image": "a\0.png"}, "is no path"),
    "a name too long": (GOOD | {"image": "a" * 5000}, "cannot be used: File name too long"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    row, said = ROWS[name]
    (tmp_path / "a.png").write_bytes(png(1))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["", json.dumps(GOOD), json.dumps(row), json.dumps(GOOD)]))
    text = refusal(path)
    assert text.startswith(f"{path}, row 1 (line 3): ")
    assert re.search(said, text), text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"question": "what?", "answer":', "is not JSON"),
        (b"what?\tcat", "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b"null", "is no JSON object"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b'{"question": "caf\xe9"}', "is not UTF-8 text"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_broken_line(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\n" + line + b"\n")
    text = refusal(path, RunError)
    assert text.startswith(f"{path}, row 1 (line 3)") and said in text


def test_missing_pictures_are_counted(tmp_path: Path) -> None:
    rows = [GOOD | {"image": "a.png"}, GOOD, GOOD | {"image": "b.png"}, GOOD | {"image": "a.png"}]
    text = refusal(jsonl(tmp_path, rows))
    assert "row 0 (line 1): image" in text and "a.png does not exist" in text
    assert text.endswith("(and 2 more rows without a picture)")


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (("a", "b", "a"), "another id"),
        ((None, "b", "0"), "another id"),
        (("1", None, "c"), "all rows"),
    ],
)
def test_two_rows_of_one_id(
    tmp_path: Path, kind: str, ids: tuple[str | None, ...], said: str
) -> None:
    path = WRITERS[kind](tmp_path, [GOOD | {"id": name} for name in ids])
    text = refusal(path)
    assert "is that of" in text and said in text and text.count("row ") >= 2


@pytest.mark.parametrize("kind", WRITERS)
@settings(deadline=None)
@given(broken=st.sampled_from(["question", "answer"]), at=st.integers(0, 4))
def test_the_row_is_named_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, kind: str, broken: str, at: int
) -> None:
    rows = [GOOD | ({broken: None} if i == at else {}) for i in range(5)]
    text = refusal(WRITERS[kind](tmp_path_factory.mktemp("rows"), rows))
    # Shards hold three rows and two.
    row = at % 3 if kind in ("shards", "saved") else at
    assert f", row {row}" in text and f"no {broken}" in text


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_data_set(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert "rows.jsonl holds no row" in refusal(tmp_path / "rows.jsonl")
    pq.write_table(table([GOOD]).slice(0, 0), tmp_path / "r.parquet")
    assert "r.parquet holds no row" in refusal(tmp_path / "r.parquet")
    (tmp_path / "nothing").mkdir()
    assert "holds no data set: expected" in refusal(tmp_path / "nothing")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for name, content in (
        ("text", b"hello"), ("empty", b""), ("magic", b"PAR1" * 4), ("arrow", b"ARROW1\0\0"),
    ):  # fmt: skip
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        text = refusal(path, RunError)
        assert text.startswith(f"{path} is no Parquet file, or a broken one: get it again")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "run git lfs pull" in refusal(path, RunError)


def test_a_parquet_file_cut_or_turned_anywhere(tmp_path: Path) -> None:
    """Every cut and many changed bytes: a clear line, or rows, never another exception."""
    rows = [GOOD | {"image": png(i), "id": f"r{i}"} for i in range(6)]
    for path in (parquet(tmp_path, rows), saved(tmp_path, rows) / "data-00000-of-00002.arrow"):
        content = path.read_bytes()
        home = path if path.suffix == ".parquet" else path.parent
        for end in range(0, len(content), 97):
            path.write_bytes(content[:end])
            text = refusal(home, RunError) if path.suffix == ".parquet" else _opened(home)
            assert path.name in text
        for at in range(0, len(content), 61):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
            _opened(home)
        path.write_bytes(content.replace(b"question", b"\xe1uestion"))  # no text
        assert "or a broken one" in refusal(home, RunError)


def _opened(path: Path) -> str:
    """What is said where a data set cannot be opened; the file's name where it can."""
    try:
        data = open_dataset(str(path))
        for each in data.examples:
            data.pictures(each)
    except ResPruneError as error:
        return str(error)
    return str(list(path.iterdir())) if path.is_dir() else path.name


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    made = pa.table([pa.array(["a"]), pa.array(["b"])], names=["question", "question"])
    pq.write_table(made, tmp_path / "r.parquet")
    assert "two columns 'question'" in refusal(tmp_path / "r.parquet", RunError)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the system as it answers somebody who is not root."""
    rows = jsonl(tmp_path, [GOOD | {"image": png(1)}])
    files = [rows, parquet(tmp_path, [GOOD]), tmp_path / "0-0.png"]
    access = os.access
    for closed in files:
        monkeypatch.setattr(
            os, "access", lambda path, mode, no=closed: path != no and access(path, mode)
        )
        opened = rows if closed.suffix == ".png" else closed
        text = refusal(opened)
        assert f"{closed} cannot be read: permission denied" in text
    assert "row 0 (line 1): image" in text


def test_names_that_are_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    for name, said in {
        "": "no empty name", "pocket:train": "unknown data set 'pocket:train': give pocket:test or",
        "pocket:": "unknown data set", "vqav2": "unknown data set 'vqav2': give pocket:test, ",
        str(tmp_path / "gone.jsonl"): "does not exist",
        str(tmp_path / "rows.csv"): "another ending", str(tmp_path / "a:b"): "unknown data set",
        "https://a.b/c.jsonl": "not fetched", "a\0b": "is no path", f"{tmp_path}:b": "no data set",
        "/dev/null": "is not a file",
    }.items():  # fmt: skip
        assert said in refusal(name), name
    for limit in (0, -3):
        with pytest.raises(CallError, match="leaves no example"):
            open_dataset("pocket:test", limit)


def _two_sets(home: Path) -> None:
    for name in ("one", "two"):
        (home / name).mkdir()
        pq.write_table(table([GOOD]), home / name / "test-00000-of-00001.parquet")


def _two_splits(home: Path) -> None:
    for name in ("train", "test"):
        pq.write_table(table([GOOD]), home / f"{name}-00000-of-00001.parquet")


def _a_shard_gone(home: Path) -> None:
    pq.write_table(table([GOOD]), home / "test-00000-of-00002.parquet")


def _text(name: str, content: str) -> Callable[[Path], None]:
    return lambda home: (home / name).write_text(content) and None  # type: ignore[func-returns-value]


FOLDERS: dict[str, tuple[Callable[[Path], None], type[ResPruneError], str]] = {
    "two sets": (_two_sets, CallError, "several data sets: give the folder of one (one, two)"),
    "two splits": (_two_splits, CallError, "has the splits test, train: choose one, as"),
    "a shard gone": (_a_shard_gone, RunError, "has 1 of 00002 shards"),
    "state that is no JSON": (_text("state.json", "{"), RunError, "is not JSON"),
    "state that is a list": (_text("state.json", "[]"), RunError, "is no JSON object"),
    "state without files": (_text("state.json", "{}"), RunError, "names no data files"),
    "a file gone": (
        _text("state.json", '{"_data_files": [{"filename": "a.arrow"}]}'), RunError, "is missing",
    ),
    "an index": (
        _text("state.json", '{"_indices_data_files": [{"filename": "i"}]}'), CallError, "index",
    ),
    "splits that are none": (_text("dataset_dict.json", "{}"), RunError, "names no splits"),
    "a split gone": (
        _text("dataset_dict.json", '{"splits": ["test"]}'), CallError, "holds no data set",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    make, kind, said = FOLDERS[name]
    make(tmp_path)
    text = refusal(tmp_path, kind)
    assert str(tmp_path) in text and said in text


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    home = shards(tmp_path, [GOOD])
    assert "has no split 'train': it has test" in refusal(f"{home}:train")
    assert "has no splits: leave :train away" in refusal(f"{saved(tmp_path, [GOOD])}:train")


def test_a_picture_that_is_none_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    for kind in WRITERS:
        (tmp_path / kind).mkdir()
        rows = [GOOD | {"image": png(4)}, GOOD | {"image": b"no picture"}]
        data = open_dataset(str(WRITERS[kind](tmp_path / kind, rows)))
        assert len(data.pictures(data.examples[0])) == 1
        with pytest.raises(RunError, match=r"row \d|1-0\.png"):
            data.pictures(data.examples[1])


def test_a_data_set_without_pictures_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_dataset(str(jsonl(tmp_path, [GOOD | {"img": "a.png"}])))
    assert "has no picture in any row: text alone is asked" in caplog.text
