"""`resprune compare`: one question by many methods."""

import json
from pathlib import Path

import pytest
from PIL import Image

from resprune_jax.experiments import cli, compare
from resprune_jax.models import LVLM


@pytest.fixture
def photograph(tmp_path: Path, photographs: list[Image.Image]) -> Path:
    photographs[0].save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.deep
def test_answers_times_and_a_picture(
    lvlm: LVLM, photograph: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(compare, "use_compilation_cache", lambda: None)
    monkeypatch.setattr("resprune_jax.models.load.load_model", lambda *_, **__: lvlm)
    drawn = photograph.parent / "out.png"
    words = ["compare", "--model", str(checkpoint), "--image", str(photograph), "--keep", "4"]
    words += ["--prompt", "What colour is the dog?", "--repeats", "1", "--max-new-tokens", "3"]
    methods = ["resprune", "scope:combine=add,alpha=0.5", "random"]
    assert cli.main([*words, "--method", *methods, "--output", str(drawn), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["none", *methods]
    assert [row["kept"] for row in rows] == [16, 4, 4, 4]
    alone = lvlm.generate(photograph, words[8], keep=4, method="random", max_new_tokens=3)
    assert rows[-1]["answer"] == alone.texts[0]
    assert all(row["select_s"] >= 0 < row["prefill_s"] and row["error"] is None for row in rows)
    with Image.open(drawn) as picture:
        assert picture.width > 1500
    # Inside the LLM: the average over the layers, and a budget that cannot be met.
    # What the tower must give on request, and what takes the picture itself, run as others do.
    inside = ["fastv", "visionzip", "downsample", "pdrop:layers=1,2,depth=0"]
    assert cli.main([*words, "--method", *inside, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("layer_average") for row in rows] == [16, 12, 4, 4, None]
    assert rows[1]["kept"] == 4 and "cannot average 4 of 16" in rows[-1]["error"]
    # On a tower without a class token, what reads its attention is named and left out.
    monkeypatch.setattr(type(lvlm.family), "gives", frozenset({"features", "coords"}))
    assert cli.main([*words, "--method", "fastervlm", "random"]) == 0
    said = capsys.readouterr().out
    assert "not here: FasterVLM" in said and "fastervlm" in said
    assert cli.main([*words, "--method", "fastervlm", "random", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fastervlm"]["error"].startswith("FasterVLM reads saliency, which LLaVA-1.5 does")
    assert rows["random"]["kept"] == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keep", "full"], "compares nothing"),
        (["--keep", "4", "--method", "scopp"], "unknown method"),
        (["--keep", "4", "--method", "scope:combine=maybe"], "combine"),
        (["--keep", "4", "--method", "agilepruner"], "average, most"),
        (["--keep", "4", "--repeats", "0"], "--repeats"),
        (["--keep", "4", "--output", "x.txt"], "--output"),
    ],
)
def test_wrong_calls(
    photograph: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--model", "m", "--image", str(photograph), "--prompt", "w", *more]
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
