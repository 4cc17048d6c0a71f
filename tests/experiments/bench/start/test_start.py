"""`resprune bench start`: its table, wrong calls, and that the second process compiles nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import RunError
from resprune_jax.experiments import cli
from resprune_jax.experiments.bench.start import command
from resprune_jax.models.running.compiling import Program


def found(factor: float, *, cached: bool) -> dict[str, Any]:
    """What a process could have said."""
    parts = ["python, imports", "devices", "weights", "tagger", "first answer", "second answer"]
    programs = [
        vars(Program(name, 2 * factor, factor, done=True, found=cached))
        for name in ("encode", "prune", "decode")
    ]
    made = {
        "seconds": 6.0 * factor, "programs": programs, "found": 3 * cached,
        "compiled": 3 * (not cached),
    }  # fmt: skip
    return {
        "machine": {"device": "a card", "cores": 2, "jax": "0.10.2"},
        "parts": {name: factor * (at + 1) for at, name in enumerate(parts)},
        "compiled": {"first answer": made}, "cache_bytes": 2_500_000,
    }  # fmt: skip


def test_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders: list[str] = []

    def process(options: command.StartOptions, folder: str) -> dict[str, Any]:
        folders.append(folder)
        return found(2.0 / len(folders), cached=len(folders) > 1)

    monkeypatch.setattr(command, "_process", process)
    out = tmp_path / "out"
    assert cli.main(["bench", "start", "--out", str(out), "--keep", "32"]) == 0
    assert folders[0] == folders[1] and not Path(folders[0]).exists()
    words = (out / "start.md").read_text()
    assert words in capsys.readouterr().out
    for row in (
        "| first answer | 10.00 | 5.00 |",
        "| of it tracing and lowering | 6.00 | 3.00 |",
        "| of it XLA, or reading the cache | 6.00 | 3.00 |",
        "| programs compiled | 3 | 0 |",
        "| programs found | 0 | 3 |",
        "| start to the first answer | **30.00** | **15.00** |",
        "| cache, MB | 2.5 | 2.5 |",
    ):
        assert row in words
    report = json.loads((out / "start.json").read_text())
    assert list(report["runs"]) == ["cold", "with the cache"] and report["model"] == "pocket"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "0"], "--keep 0"),
        (["--new-tokens", "0"], "--new-tokens"),
        (["--shapes", "small", "--dtype", "float32"], "--dtype is of a checkpoint"),
        (["--cache", "full"], "--cache full is not empty"),
        (["--cache", "full/file"], "--cache full/file cannot be made a folder"),
        (["--out", "full/file"], "--out full/file cannot be made a folder"),
    ],
)
def test_a_wrong_call_starts_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    monkeypatch.setattr(command, "_process", lambda *_: pytest.fail("a process was started"))
    assert cli.main(["bench", "start", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.deep
def test_a_process_that_fails_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = command.StartOptions(model=str(tmp_path), out=tmp_path)
    with pytest.raises(RunError, match="ended with status 1"):
        command._process(options, str(tmp_path / "cache"))
    assert "config.json" in capfd.readouterr().err


@pytest.mark.deep
@pytest.mark.parametrize("words", [["--model", "pocket"], ["--shapes", "small"]])
def test_the_second_process_compiles_nothing(tmp_path: Path, words: list[str]) -> None:
    cache = tmp_path / "cache"
    asked = ["bench", "start", *words, "--new-tokens", "4", "--cache", str(cache)]
    assert cli.main([*asked, "--out", str(tmp_path)]) == 0
    runs = json.loads((tmp_path / "start.json").read_text())["runs"]
    cold, cached = (runs[name]["compiled"] for name in command.RUNS)
    decided = 0
    for part in ("weights", "first answer"):
        assert cold[part]["found"] == 0 and cached[part]["compiled"] == 0
        assert cached[part]["found"] == cold[part]["compiled"]
        decided += cached[part]["found"]
    names = {program["name"] for program in cold["first answer"]["programs"]}
    assert names >= {"encode", "prune", "lay_out", "prefill", "decode"}
    # Nor does a second answer, in either.
    assert [run["second answer"]["programs"] for run in (cold, cached)] == [[], []]
    assert runs["cold"]["cache_bytes"] == runs["with the cache"]["cache_bytes"] > 0
    assert any(cache.iterdir()) and decided >= 5
    print(f"{decided} programs were found by the second process, none was compiled")
