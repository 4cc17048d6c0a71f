"""`resprune demo`: its checkpoint is deterministic, and what it prints is what was measured."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli, demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.write_checkpoint(tmp_path_factory.mktemp("demo") / "checkpoint")


def test_the_checkpoint_is_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    again = demo.write_checkpoint(tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_selection_is_not_limited_by_rank() -> None:
    largest = max(budget for budget in demo.BUDGETS if budget is not None)
    assert demo.CONFIG["text_config"]["hidden_size"] >= 2 * largest


def test_the_whole_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "use_compilation_cache", lambda: None)
    asked: list[Any] = []

    def ask_once(lvlm: Any, photograph: Path, keep: int | None) -> Any:
        asked.append(
            lvlm.generate(photograph, demo.QUESTION, keep=keep, max_new_tokens=demo.NEW_TOKENS)
        )
        return asked[-1]

    monkeypatch.setattr(demo, "_ask", ask_once)
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "noise" in said and "grace_hopper.jpg" in said and str(out / "kept_tokens.png") in said
    rows = re.findall(r"^ +(576|192|128|64) +([\d.]+)% +(\d+) ms +(\d+) ms", said, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [576, 192, 128, 64]
    energy = [float(row[1]) for row in rows]
    assert energy == sorted(energy, reverse=True) and energy[0] == 100.0 and energy[-1] > 50
    for made, (_, shown, *_) in zip(asked[1:], rows[1:], strict=True):
        left = np.asarray(made.selections.energy[0])
        assert abs(100 * (1 - left[made.kept[0]] / left[0]) - float(shown)) < 0.06
    assert [made.nouns[0] for made in asked] == [["woman", "photograph", "head"]] * 4
    for made in asked:
        assert made.texts[0] and all(word.isalpha() for word in made.texts[0].split())
        assert made.texts[0] in said
    # The greedy order does not depend on the budget: each picture is a part of the one before.
    kept = [list(np.asarray(made.selections.indices[0])[: made.kept[0]]) for made in asked[1:]]
    assert kept[0][:128] == kept[1] and kept[1][:64] == kept[2]
    with Image.open(out / "kept_tokens.png") as picture:
        assert picture.width > 1600 and picture.height > 500


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file" / "demo")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out" in line
