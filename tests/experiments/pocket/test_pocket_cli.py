"""`resprune pocket`: wrong calls, training that goes on, exports, scenes, and the name `pocket`."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli, common
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.pocket.model import recipe
from resprune_jax.experiments.pocket.training import command as train
from resprune_jax.experiments.pocket.training import figures, plans, stages, trainer
from resprune_jax.models import load_model
from resprune_jax.models.checkpoint import shipped
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from tests.experiments.pocket.pocket_export import SMALL

EVAL = ["pocket", "eval"]
TRAIN = ["pocket", "train"]

# (words, what the line must say)
WRONG: list[tuple[list[str], list[str]]] = [
    (["pocket"], ["train", "eval", "export", "scenes"]),
    (["pocket", "trian"], ["trian", "--help"]),
    ([*TRAIN, "--preset", "tpu"], ["tpu", "cpu", "gpu"]),
    ([*TRAIN, "--presets", "cpu"], ["--presets", "--help"]),
    ([*TRAIN, "--steps", "see=0"], ["--steps see=0", "see=100"]),
    ([*TRAIN, "--steps", "see=2", "see=3"], ["--steps see=3", "once"]),
    ([*TRAIN, "--steps", "sea=2"], ["'sea'", "see, "]),
    ([*TRAIN, "--workers", "-1"], ["--workers", "at least 0"]),
    ([*TRAIN, "--save-every", "0"], ["--save-every", "at least 1"]),
    ([*TRAIN, "--out", "file/run"], ["--out", "file/run", "folder"]),
    ([*TRAIN, "--out", "other"], ["--out other", "another run", "see 7 not"]),
    ([*EVAL, "--questions", "0"], ["--questions", "at least 5"]),
    ([*EVAL, "--questions", "2505"], ["--questions", "at most 2500"]),
    ([*EVAL, "--questions", "12"], ["--questions 12", "multiple of 5"]),
    ([*EVAL, "--questions", "some"], ["--questions", "some"]),
    ([*EVAL, "--ratios", "1/0"], ["--ratios 1/0", "2/9"]),
    ([*EVAL, "--ratios", "1/3", "9/9"], ["--ratios 9/9"]),
    ([*EVAL, "--ratios", "1/3", "3/9"], ["--ratios 3/9"]),
    ([*EVAL, "--figure", "a.txt"], ["a.txt", ".png"]),
    ([*EVAL, "--rng-seed", "-1"], ["--rng-seed"]),
    ([*EVAL, "--split", "train"], ["train", "validation"]),
    ([*EVAL, "--methods", "magic"], ["magic", "oracle"]),
    ([*EVAL, "--output", "a.txt"], ["a.txt", ".json"]),
    ([*EVAL, "--output", "no/a.json"], ["no/a.json", "does not exist"]),
    ([*EVAL, "--card", "a.json"], ["a.json", ".md"]),
    ([*EVAL, "--results", "none.json"], ["none.json", "does not exist"]),
    ([*EVAL, "--model", "./nothing"], ["./nothing"]),
    (["pocket", "export"], ["RUN_DIR"]),
    (["pocket", "export", "file"], ["file", "no checkpoint"]),
    (["pocket", "scenes", "--count", "0"], ["--count", "at least 1"]),
    (["pocket", "scenes", "--out", "a.svg"], ["a.svg", ".png"]),
    (["pocket", "scenes", "--split", "all"], ["all", "test"]),
    (["demo", "--model", "./nothing"], ["./nothing"]),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "other" / "see" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "run.json").write_text('{"preset": "cpu", "see": 7}')
    return tmp_path


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_call_gives_one_line_and_status_2(
    place: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    words, expected = WRONG[number]
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("resprune: ") and len(line) < 300, line
    for word in expected:
        assert word in line, line


def test_the_help_that_is_named_is_the_commands_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*TRAIN, "--preset", "tpu"]) == 2
    assert "(try: resprune pocket train --help)" in capsys.readouterr().err


# --- the model that comes with the package --------------------------------------------------------


@pytest.mark.parametrize("has", [True, False])
def test_pocket_is_a_name_for_the_packages_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has: bool
) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", place / "package")
    weights = place / "package" / shipped.SHIPPED["pocket"]
    weights.mkdir(parents=True)
    if has:
        (weights / "config.json").write_text(json.dumps(recipe.RECIPES["cpu"].hf_config()))
    (place / "pocket").mkdir()  # a folder of that name is another thing
    status = cli.main(["info", "--model", "pocket", "--dtype", "float32", "--json"])
    captured = capsys.readouterr()
    if has:
        facts = json.loads(captured.out)
        assert status == 0 and facts["model"] == "pocket" and facts["visual_tokens"] == 144
        loaded: list[Any] = []
        monkeypatch.setattr("resprune_jax.models.load.load_model", lambda *a, **_: loaded.append(a))
        monkeypatch.setattr(common, "use_compilation_cache", lambda: None)
        common.load_asked(answer.AnswerOptions(model="pocket"))
        assert loaded == [("pocket",)]
        assert resolve_checkpoint("pocket") == weights
    else:
        assert status == 2 and "resprune pocket train" in captured.err
        assert len(captured.err.splitlines()) == 1
    assert resolve_checkpoint("./pocket") == resolve_checkpoint(Path("pocket")) == Path("pocket")
    assert common.model_name("./pocket") == str((place / "pocket").resolve())


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stages that only count: training itself has tests of its own."""
    import orbax.checkpoint as ocp

    stages_run: list[Any] = []

    def stage(folder: Path, params: Any, loss: Any, make: Any, schedule: Any, **more: Any) -> Any:
        stages_run.append((folder.name, make, schedule, more["workers"]))
        kernel = params["model"]["multi_modal_projector"]["linear_1"]["bias"]
        kernel[...] = kernel[...] + len(stages_run)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.jsonl").open("a") as log:
            for step, loss_value in ((2, 3.0), (4, 2.0), (2, 2.5)):
                row = {"step": step, "seconds": 0.1, "loss": loss_value, "shape": 0.5, "none": None}
                log.write(json.dumps(row) + "\n")
        with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
            state = {"params": params, "optimizer": {"count": np.zeros(())}}
            manager.save(schedule.steps, args=ocp.args.StandardSave(state))
        return params

    monkeypatch.setattr(trainer, "train", stage)
    monkeypatch.setattr(train, "use_compilation_cache", lambda: None)
    monkeypatch.setitem(recipe.RECIPES, "cpu", SMALL)
    return stages_run


@pytest.mark.deep
def test_a_run_trains_every_stage_and_exports(
    place: Path, fake: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(plans.SIZES["cpu"])
    words = [*TRAIN, "--out", "run", "--workers", "0", "--steps", "see=5", "refine=9"]
    assert cli.main(words) == 0
    assert [stage[0] for stage in fake] == names and {stage[3] for stage in fake} == {0}
    steps = {name: schedule.steps for name, _, schedule, _ in fake}
    assert steps["see"] == 5 and steps["refine"] == 9
    # Each stage begins with scenes that none before it has drawn.
    begun = 0
    for name, make, _, _ in fake:
        assert make.steps == steps[name] and getattr(make, "start", 0) == begun
        begun += make.steps * make.images
    assert json.loads((place / "run" / "run.json").read_text()) == {"preset": "cpu", **steps}
    with Image.open(place / "run" / "loss.png") as picture:
        assert picture.width > 800
    assert [row["loss"] for row in figures.rows(place / "run" / "see" / "log.jsonl")] == [2.5, 2.0]
    exported = load_model(place / "run" / "export")
    bias = exported.state["multi_modal_projector"]["linear_1"]["bias"][...]
    total = len(names) * (len(names) + 1) / 2  # the stages add 1, 2, 3, ...
    assert (np.asarray(bias) == total).all(), "what is exported is not what the last stage gave"
    # Another run does not go on in this folder; a stage that has not begun may change.
    assert cli.main([*words[:-1], "refine=10"]) == 2
    assert "refine 9 not 10" in capsys.readouterr().err.splitlines()[-1]
    assert len(fake) == len(names)
    shutil.move(place / "run" / "refine" / "checkpoints", place / "kept")
    train._claim(place / "run", "cpu", steps | {"refine": 10})
    train._claim(place / "run", "cpu", steps)
    shutil.move(place / "kept", place / "run" / "refine" / "checkpoints")

    # The newest checkpoint can be exported at any time; its stage and step are told.
    shutil.move(place / "run" / "export", place / "first")
    for words in (["run", "--out", "again"], ["run"]):
        assert cli.main(["pocket", "export", *words]) == 0
        assert ": step 9 of stage refine" in capsys.readouterr().out
    same = [(place / name).iterdir() for name in ("first", "again", "run/export")]
    one, two, three = ({path.name: path.read_bytes() for path in folder} for folder in same)
    assert one == two == three and len(one) >= 6


def test_an_export_of_another_model_is_refused(
    place: Path, fake: list[Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, params = stages.initial("cpu", 0)
    trainer.train(place / "run" / "see", params, None, None, trainer.Schedule(3, 1.0), workers=0)
    monkeypatch.setitem(recipe.RECIPES, "cpu", dataclasses.replace(SMALL, width=2 * SMALL.width))
    assert cli.main(["pocket", "export", "run", "--out", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "preset cpu" in line and "differs" in line
    assert not (place / "out").exists()


# --- scenes ---------------------------------------------------------------------------------------


def test_scenes_are_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pocket", "scenes", "--count", "3", "--out", "s.png", "--patches"]) == 0
    assert "s.png: 3 scenes, 15 questions" in capsys.readouterr().out
    with Image.open("s.png") as picture:
        assert picture.width > 1000
