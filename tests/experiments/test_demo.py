"""`resprune demo`: what it prints and draws is what the model answered."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli, demo
from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
from tests.experiments.pocket.pocket_export import SMALL, small_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export(tmp_path_factory.mktemp("demo") / "small")


def test_selection_is_not_limited_by_rank() -> None:
    ratio = max(ratio for ratio in demo.RATIOS if ratio is not None)
    assert SMALL.width >= 2 * ratio * SMALL.scenes.grid**2


def test_the_whole_demo(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(demo, "use_compilation_cache", lambda: None)
    monkeypatch.setattr(demo, "WARM_RUNS", 1)
    monkeypatch.setenv("COLUMNS", "220")
    given: list[Any] = []
    plain = demo.answer

    def answer(*args: Any) -> Any:
        made = plain(*args)
        if not given:  # an answer that is right, and one that holds markup
            asked = args[1]
            made.made.texts[0] = asked[0].question.answer
            made.made.texts[1] = "[red]nine[/red]"
        given.append(made)
        return made

    monkeypatch.setattr(demo, "answer", answer)
    out = tmp_path / "out"
    assert cli.main(["demo", "--model", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "a test bench, not a claim about 7B models" in said
    # Every question of the first scenes, with its right answer, and what was said at each budget.
    items = frozen_set("cpu", demo.SCENES)
    questions = [question for _, questions in items for question in questions]
    lines = [line for line in said.splitlines() if "✓" in line or "✗" in line]
    assert len(lines) == len(questions) == 15
    for row, (line, question) in enumerate(zip(lines, questions, strict=True)):
        assert line.strip().startswith(question.question), line
        rest = line.split(question.question, 1)[1]
        assert rest.split()[0] == question.answer
        marks = re.findall("[✓✗]", rest)
        told = [one.made.texts[row] for one in given]
        assert marks == ["✓" if text == question.answer else "✗" for text in told]
        for text in told:
            assert text[:8] in rest  # cut where it does not fit
    assert lines[0].count("✓") == 1
    counts = re.search(r"right answers +15 +(\d+) +(\d+) +(\d+) +(\d+)", said)
    assert counts and int(counts[1]) >= 1
    # Costs and energies.
    rows = re.findall(r"^ +(144|48|32|16) +([\d.]+)% +(\d+) +(\d+) +(\d+)", said, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [144, 48, 32, 16]
    energy = [float(row[1]) for row in rows]
    assert energy == sorted(energy, reverse=True) and energy[0] == 100.0 and energy[-1] > 50
    for one, (_, shown, *_) in zip(given[1:], rows[1:], strict=True):
        left = np.asarray(one.made.selections.energy)
        spanned = [1 - left[i, kept] / left[i, 0] for i, kept in enumerate(one.made.kept)]
        assert abs(100 * np.mean(spanned) - float(shown)) < 0.06
    # The greedy order does not depend on the budget: each picture is a part of the one before.
    kept = [np.asarray(one.made.selections.indices) for one in given[1:]]
    assert (kept[0][:, :32] == kept[1][:, :32]).all() and (kept[1][:, :16] == kept[2][:, :16]).all()
    for number in (1, 2, 3):
        path = out / f"kept_tokens_{number}.png"
        assert str(path) in said
        with Image.open(path) as picture:
            assert picture.width > 1600 and picture.height > 500


def test_the_pictures_show_one_question_of_each_scene(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resprune_jax.experiments.answer import overlay
    from resprune_jax.models import load_model

    drawn: list[Any] = []
    monkeypatch.setattr(
        overlay, "overlay",
        lambda image, panels, grid, **more: drawn.append((panels, more)) or more["path"],
    )  # fmt: skip
    lvlm = load_model(folder, dtype="float32")
    asked = [demo.Asked(s, q) for s, own in frozen_set("cpu", demo.SCENES) for q in own]
    monkeypatch.setattr(demo, "WARM_RUNS", 1)
    answered = [demo.answer(lvlm, asked, ratio) for ratio in (None, demo.RATIOS[-1])]
    demo.pictures(lvlm, asked, answered, tmp_path)
    families = []
    for panels, more in drawn:
        row, one = next(
            (i, one) for i, one in enumerate(asked)
            if more["question"] == f"{one.question.question}  Answer: {one.question.answer}"
        )  # fmt: skip
        families.append(one.question.family)
        made = answered[1].made
        (first, everything), (second, kept) = panels
        assert everything is None and first.startswith(
            "all 144:  " + answered[0].made.texts[row][:11]
        )
        assert second.startswith(f"16 of 144:  {made.texts[row][:11]}")
        assert (np.asarray(kept) == np.asarray(made.selections.indices[row])[:16]).all()
    assert families == list(demo.PICTURED)


def test_a_folder_that_cannot_be_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "demo")
    assert cli.main(["demo", "--model", str(folder), "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--out" in line
