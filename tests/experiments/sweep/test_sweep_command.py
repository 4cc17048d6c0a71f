"""`resprune sweep` as a user calls it: bad input in one line, and runs that were killed."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from resprune_jax.experiments import cli
from resprune_jax.experiments.sweep.shards import Shards, read_manifest
from tests.experiments.sweep import kills


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four questions about two pictures."""
    for number in range(2):
        Image.new("RGB", (50, 40), ("red", "blue")[number]).save(tmp_path / f"{number}.png")
    asked = [
        {"image": f"{n % 2}.png", "question": f"Is it {c}?", "answer": "yes", "metric": "yesno"}
        for n, c in enumerate(("red", "blue", "a car", "a dog"))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    return path


def sweep(*words: str) -> int:
    return cli.main(["sweep", *words])


def test_a_sweep_of_a_checkpoint_and_its_resumption(
    checkpoint: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = {"--model": str(checkpoint), "--data": str(rows), "--output": str(out), "--block": "3",
            "--keep": "1/3", "--max-new-tokens": "2", "--batch": "8"}  # fmt: skip

    def again(changes: dict[str, str]) -> list[str]:
        own = {**told, **changes}
        return ["--methods", "none", "resprune", *(word for pair in own.items() for word in pair)]

    words = again({})
    assert sweep(*words) == 0
    said = capsys.readouterr().out
    assert "2 configurations on 4 examples: 2 of 2 blocks answered now" in said
    files = {path: path.read_bytes() for path in sorted((out / "rows").iterdir())}
    assert [path.name for path in files] == ["00000.parquet", "00001.parquet"]
    found = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len(found) == 8 and all(row["score"] in (0.0, 1.0) for row in found)
    manifest = read_manifest(out)
    assert [one["name"] for one in manifest["configurations"]] == ["none", "resprune keep=1/3"]
    assert manifest["examples"] == 4 and len(manifest["model_fingerprint"]) == 64
    assert pq.read_table(out / "examples.parquet").num_rows == 4

    last = out / "rows" / "00001.parquet"
    last.unlink()
    assert sweep(*words) == 0
    assert "1 of 2 blocks answered now" in capsys.readouterr().out
    times = ["select_ms", "answer_ms"]
    there = pq.read_table(last).drop_columns(times)
    (tmp_path / "before.parquet").write_bytes(files[last])
    assert there.equals(pq.read_table(tmp_path / "before.parquet").drop_columns(times))

    # Another question in the file, another option: neither goes on with these rows.
    for change in ({"--keep": "1/9"}, {"--dtype": "bfloat16"}, {"--block": "2"}):
        assert sweep(*again(change)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "holds another sweep" in line and len(line) < 600, line
    rows.write_text(rows.read_text().replace("a dog", "a cat"))
    assert sweep(*words) == 2
    assert "data_fingerprint" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (out / "rows").iterdir()} == {
        **files, last: last.read_bytes(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alfa", "0.5"], "--alfa"),
        (["--alpha", "strong"], "--alpha"),
        (["--seed-rule", "centre"], "centre"),
        (["--methods", "respune"], "unknown method 'respune'"),
        (["--methods", "resprune", "resprune"], "methods names 'resprune' twice"),
        (["--keep", "1/9", "1/9"], "keep names '1/9' twice"),
        (["--keep", "7/3"], "write a share between 0 and 1"),
        (["--batch", "12"], "give a multiple of 8"),
        (["--block", "0"], "--block"),
        (["--examples", "0"], "--examples"),
        (["--data", "pocket:train"], "pocket:train"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
        (["--process-id", "1"], "--num-processes"),
        (["--num-processes", "2"], "--process-id"),
        (["--num-processes", "2", "--process-id", "2"], "--process-id"),
        (["--model", "nowhere/at-all", "--methods", "none"], "nowhere/at-all"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert sweep("--output", "out", *words) in (1, 2)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("resprune: ")]
    assert len(lines) == 1 and said in lines[0] and len(lines[0]) < 500, captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ('{"image": "no.png", "question": "?", "answer": "a"}', "no.png"),
        ('{"question": "?"}', "answer"),
        ('{"answer": "a"}', "question"),
        ('{"question": "?", "answer": "a", "metric": "bleu"}', "bleu"),
        ('{"question": ', "line 1"),
    ],
)
def test_a_data_set_that_cannot_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    status = sweep("--output", str(tmp_path / "out"), "--data", str(tmp_path / "rows.jsonl"))
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("resprune: ")]
    assert status in (1, 2) and len(lines) == 1 and said in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_and_one_that_cannot_be(
    checkpoint: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(checkpoint), "--data", str(rows), "--methods", "none",
             "--max-new-tokens", "1", "--batch", "8"]  # fmt: skip
    assert sweep(*words, "--output", str(rows)) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
    held: dict[str, Any] = {"format": 1}
    with Shards(tmp_path / "out", held):
        assert sweep(*words, "--output", str(tmp_path / "out")) == 2
    assert "another run writes to" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(
    checkpoint: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(checkpoint), "--data", str(rows), "--output", str(tmp_path / "out"),
             "--methods", "none", "resprune", "--keep", "1/3", "--max-new-tokens", "2",
             "--batch", "8", "--dry-run"]  # fmt: skip
    assert sweep(*words) == 0
    said = capsys.readouterr().out
    assert "2 configurations on 4 examples are 8 rows in 1 blocks" in said
    assert "distinct keep lists" in said and "minutes" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.deep
def test_one_command_makes_the_tables_too(tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "out"), "--report", str(tmp_path / "report"),
             "--data", "pocket:validation", "--examples", "10", "--keep", "1/3", "1/9",
             "--methods", "none", "resprune", "random", "downsample"]  # fmt: skip
    assert sweep(*words) == 0
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "resprune" in page and "Rel. Perf." in page
    assert list((tmp_path / "report" / "figures").glob("*.pdf"))
    assert sweep(*words[:4], "--num-processes", "2", "--process-id", "0") == 2


@pytest.mark.deep
def test_killed_and_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.killed(2, seed=1) >= 1
