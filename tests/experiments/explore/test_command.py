"""`resprune explore` before a model is loaded: what is refused, and how rows become pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import cli
from resprune_jax.experiments.explore import command
from resprune_jax.experiments.explore.command import ExploreOptions


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 16), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def refuse(_: Any) -> None:
    pytest.fail("a model was loaded")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "--image or --rows: neither was given"),
        (["--image", "a.png", "--rows", "r.jsonl"], "--image or --rows: both were given"),
        (["--image", "a.png"], "no question was given: add --prompt TEXT"),
        (["--image", "a.png", "--prompt", "?", " "], "--prompt is empty"),
        (["--image", "a.png", "--prompt", "?", "?"], "--prompt holds the same one twice"),
        (["--image", "b.png", "--prompt", "?"], "--image b.png does not exist"),
        (["--rows", "r.jsonl", "--prompt", "?", "!"], "--prompt with --rows"),
        (["--image", "a.png", "--prompt", "?", "--keep", "0"], "--keep 0 keeps no visual token"),
        (["--image", "a.png", "--prompt", "?", "--keep", "48", "x"], "--keep 'x' is not a number"),
        (["--image", "a.png", "--prompt", "?", "--method", "none"], "--method none keeps every"),
        (["--image", "a.png", "--prompt", "?", "--method", "tome"], "tome cannot be shown"),
        (["--image", "a.png", "--prompt", "?", "--method", "noe"], "unknown method 'noe'"),
        (["--image", "a.png", "--prompt", "?", "--method", "resprune:beta=1"], "no setting beta"),
        (["--image", "a.png", "--prompt", "?", "--batch-size", "0"], "--batch-size is 0"),
        (["--image", "a.png", "--prompt", "?", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
    ],
)
def test_wrong_calls_end_before_a_model_is_loaded(
    words: list[str], why: str, picture: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(picture.parent)
    monkeypatch.setattr(command, "load_asked", refuse)
    Path("r.jsonl").write_text("{}")
    assert cli.main(["explore", "--model", "m", "--out", "p.html", *words]) == 2
    said = capsys.readouterr().err
    assert why in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("out", "why"),
    [("p.png", "must end in one of .html, .htm"), ("no/p.html", "the folder no does not exist"),
     ("r.html", "is the --rows itself"), (".", "is not a regular file")],
)  # fmt: skip
def test_targets_that_cannot_be(
    out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.html").write_text("{}")
    options = ExploreOptions(model="m", rows=Path("r.html"), out=Path(out))
    with pytest.raises(CallError, match=why):
        command.run(options, load=refuse)


def test_rows_about_one_picture_stand_together(picture: Path) -> None:
    lines = [
        {"image": "a.png", "prompt": "one", "keep": 9},
        {"image": ["a.png", "a.png"], "prompt": "two"},
        {"image": "a.png"},
        {"image": [], "prompt": "none"},
        {"video": "film", "prompt": "a film"},
        {"image": 3, "prompt": "a number"},
    ]
    path = picture.parent / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    options = ExploreOptions(model="m", rows=path, prompt=("usual",), out=picture.parent / "p.html")
    rows = command._rows(options)
    found = command._by_picture(rows)
    assert [[row.prompt for row in own] for own in found.values()] == [["one", "usual"], ["two"]]
    assert [len(paths) for paths in found] == [1, 2]
    assert [row.error is None for row in rows] == [True] * 3 + [False] * 3
    assert "has none" in str(rows[3].error) and "not videos" in str(rows[4].error)
    path.write_text("\n".join(map(json.dumps, lines[3:])))
    with pytest.raises(CallError, match="holds no row to show: a page shows images"):
        command._rows(options)


def test_no_folder_of_this_machine_is_told(tmp_path: Path) -> None:
    assert command._short("pocket") == "pocket" and command._short("a/b") == "a/b"
    (tmp_path / "llava").mkdir()
    assert command._short(str(tmp_path / "llava")) == "llava"
    assert command._label(f"{tmp_path}/mine.py:Mine") == "mine.py:Mine"
    assert command._label("resprune:alpha=0") == "resprune:alpha=0"


def test_a_page_is_made_with_the_tagger_that_is_named(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def note(lvlm: object, asked_: object, methods: dict[str, Any], **_: object) -> None:
        asked.extend(options.tagger for options in methods.values())
        raise RunError("enough")

    monkeypatch.setattr("resprune_jax.experiments.explore.build.make_card", note)
    for more in ({}, {"tagger": "lexicon"}):
        options = ExploreOptions(
            model="m", image=picture, prompt=("?",), out=picture.with_name("p.html"), **more
        )
        with pytest.raises(RunError, match="enough"):
            command.run(options, load=lambda _: None)
    assert asked == ["auto", "lexicon"]
