"""The results folder: what is written is whole, and another sweep's folder is refused."""

import builtins
import errno
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.data.examples import Example
from resprune_jax.experiments.sweep.shards import ROWS, Shards, differences, hold, read_manifest

MANIFEST = {
    "format": 1, "code": "1", "model": "m", "model_fingerprint": "aa", "data_fingerprint": "bb",
    "precision": "float32", "block": 2,
    "configurations": [{"name": "none", "method": "none", "keep": None}],
}  # fmt: skip


def row(**more: Any) -> dict[str, Any]:
    return {
        "configuration": "none", "example": "0", "answer": "red", "score": 1.0, "error": None,
        "visual_tokens": 144, "kept": 16, "average": 16.0, "residual": 0.25,
        "effective_rank": None, "nouns": ["car"], "noun_backend": "lexicon", "distinct": 0,
        "select_ms": 1.0, "answer_ms": 2.0, **more,
    }  # fmt: skip


texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@given(st.lists(st.tuples(texts, texts, st.none() | st.floats(0, 1)), max_size=5))
@settings(max_examples=25, deadline=None)
def test_rows_are_read_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float | None]]
):
    folder = tmp_path_factory.mktemp("out")
    made = [row(example=str(n), answer=a, error=e, score=s) for n, (a, e, s) in enumerate(rows)]
    with Shards(folder, MANIFEST) as shards:
        shards.write(3, made)
    table = pq.read_table(folder / "rows" / "00003.parquet")
    assert table.schema.equals(ROWS)
    for own, found in zip(made, table.to_pylist(), strict=True):
        for name, value in found.items():
            expected = own[name]
            if isinstance(expected, str):  # halves of surrogate pairs are escaped
                expected = expected.encode("utf-8", "backslashreplace").decode()
            assert value == expected
    with Shards(folder, MANIFEST) as shards:
        assert shards.done == {3}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_fingerprint": "cc"}, "model_fingerprint 'aa' there, 'cc' here"),
        ({"block": 3}, "block 2 there, 3 here"),
        ({"code": "2", "precision": "bfloat16"}, "precision 'float32' there, 'bfloat16' here"),
        ({"data_fingerprint": None}, "data_fingerprint 'bb' there, None here"),
        (
            {"configurations": [{"name": "x", "method": "none", "keep": None}]},
            r"1 configurations are not asked here \(none\); 1 are new here \(x\)",
        ),
        (
            {"configurations": [{"name": "none", "method": "none", "keep": "3"}]},
            "the configurations differ",
        ),
    ],
)
def test_another_sweep_is_refused(tmp_path: Path, changed: dict[str, Any], said: str):
    with Shards(tmp_path, MANIFEST) as shards:
        shards.write(0, [row()])
    before = (tmp_path / "rows" / "00000.parquet").read_bytes()
    with pytest.raises(CallError, match=said) as error:
        Shards(tmp_path, {**MANIFEST, **changed})
    assert "\n" not in str(error.value) and "give another --output" in str(error.value)
    assert (tmp_path / "rows" / "00000.parquet").read_bytes() == before
    assert read_manifest(tmp_path)["model_fingerprint"] == "aa"


def test_two_runs_into_one_folder(tmp_path: Path):
    with Shards(tmp_path, MANIFEST), pytest.raises(CallError, match="another run writes to"):
        Shards(tmp_path, MANIFEST)
    with Shards(tmp_path, MANIFEST):
        pass
    # Processes of one sweep share the folder, two of one number do not, and none joins a lone run.
    with Shards(tmp_path, MANIFEST, number=0, count=2):
        with Shards(tmp_path, MANIFEST, number=1, count=2):
            pass
        for number, count in ((0, 2), (0, 1)):
            with pytest.raises(CallError, match="another run writes to"):
                Shards(tmp_path, MANIFEST, number=number, count=count)


@pytest.mark.parametrize("when", ["open", "write"])
def test_a_full_disk_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    with Shards(tmp_path, MANIFEST) as shards:
        shards.write(0, [row()])
        full = OSError(errno.ENOSPC, "No space left on device")

        class Full:
            """A file on a full disk."""

            def __enter__(self) -> "Full":
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def write(self, _: bytes) -> int:
                raise full

        original = Path.open

        def opened(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
            if "w" not in mode:
                return original(path, mode, *more, **named)
            if when == "open":
                raise full
            original(path, mode).close()
            return Full()

        monkeypatch.setattr(Path, "open", opened)
        with pytest.raises(RunError, match=r"00001.parquet cannot be written: No space left"):
            shards.write(1, [row()])
        monkeypatch.undo()
        assert [path.name for path in (tmp_path / "rows").iterdir()] == ["00000.parquet"]
        assert shards.done == {0}
        shards.write(1, [row()])
    assert builtins.sorted(p.name for p in (tmp_path / "rows").iterdir()) == [
        "00000.parquet", "00001.parquet",
    ]  # fmt: skip


READ_ONLY = """
import os, sys
from pathlib import Path
from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.sweep.shards import Shards
from tests.experiments.sweep.test_shards import MANIFEST, row

folder, before = (Path(sys.argv[1]) / name for name in ("results", "before"))
folder.mkdir()
with Shards(before, MANIFEST) as shards:  # imports what somebody else may not read
    shards.write(0, [row()])
if os.getuid() == 0:  # whom no permission stops
    os.chown(folder, 65534, -1)
    os.setuid(65534)
with Shards(folder, MANIFEST) as shards:
    shards.write(0, [row()])
    (folder / "rows").chmod(0o555)
    try:
        shards.write(1, [row()])
    except RunError as error:
        print(error)
try:
    Shards(folder, MANIFEST)
except CallError as error:
    print(error)
(folder / "rows").chmod(0o755)
"""


def test_a_folder_that_becomes_read_only_keeps_its_rows():
    with tempfile.TemporaryDirectory() as folder:  # below a folder that everybody may enter
        Path(folder).chmod(0o755)
        told = [sys.executable, "-c", READ_ONLY, folder]
        root = Path(__file__).parents[3]
        done = subprocess.run(told, capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert "00001.parquet cannot be written: Permission denied" in first
        assert second.endswith("no permission to write to it")
        rows = Path(folder) / "results" / "rows"
        assert [path.name for path in rows.iterdir()] == ["00000.parquet"]


def test_a_folder_that_is_none(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError, match="cannot be made a folder"):
        Shards(tmp_path / "file", MANIFEST)
    (tmp_path / "old" / "rows").mkdir(parents=True)
    (tmp_path / "old" / "rows" / "00000.parquet").write_bytes(b"")
    with pytest.raises(CallError, match=r"holds rows but no sweep\.json"):
        Shards(tmp_path / "old", MANIFEST)
    with pytest.raises(CallError, match="give a folder that `resprune sweep` wrote"):
        read_manifest(tmp_path)
    for text, error in (
        ("{", "cannot be read"),
        ("[]", "has format no object"),
        ('{"format": 9}', "has format 9"),
    ):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(RunError, match=error):
            read_manifest(tmp_path)


def test_what_a_kill_left_behind_is_removed(tmp_path: Path):
    with Shards(tmp_path, MANIFEST) as shards:
        shards.write(0, [row()])
    torn = tmp_path / "rows" / ".00001.parquet-0.part"
    others = tmp_path / "rows" / ".00002.parquet-1.part"
    torn.write_bytes(b"PAR1")
    others.write_bytes(b"PAR1")  # of a process that may still write it
    with Shards(tmp_path, MANIFEST, number=0, count=2) as shards:
        assert shards.done == {0}
    assert not torn.exists() and others.exists()


def test_examples_are_written_once(tmp_path: Path):
    examples = [Example(str(n), (), "c", "", "q\ud800", ("a", "b"), "exact") for n in range(3)]
    with Shards(tmp_path, MANIFEST) as shards:
        shards.write_examples(examples)
        before = (tmp_path / "examples.parquet").stat().st_mtime_ns
        shards.write_examples(examples)
    assert (tmp_path / "examples.parquet").stat().st_mtime_ns == before
    found = pq.read_table(tmp_path / "examples.parquet").to_pylist()
    assert [one["key"] for one in found] == ["0", "1", "2"]
    assert found[0]["answers"] == ["a", "b"] and found[0]["question"] == "q\\ud800"


def test_manifests_that_are_alike():
    assert differences(MANIFEST, json.loads(json.dumps(MANIFEST))) == ""


def test_who_waits_for_a_folder_gets_it_when_it_is_free(tmp_path: Path):
    order: list[str] = []

    def other() -> None:
        with hold(tmp_path / ".lock", shared=False, wait=True):
            order.append("other")

    with hold(tmp_path / ".lock", shared=False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]
