"""The command line on a real, tiny checkpoint: answers, bad input, pictures, runs that resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from resprune_jax.errors import RunError
from resprune_jax.experiments import cli, common
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.answer.overlay import overlay
from resprune_jax.models import load

N = 16  # visual tokens of the tiny checkpoint


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave the user's compilation cache, and that of this process, alone."""
    monkeypatch.setattr(common, "use_compilation_cache", lambda: None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: list[Image.Image]) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, image in zip("abcd", photographs, strict=True):
        image.save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def loaded(lvlm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's model in place of a new load, so that nothing is compiled twice."""
    monkeypatch.setattr(answer, "load_asked", lambda _: lvlm)


def rows_file(place: Path, rows: list[dict[str, Any]]) -> str:
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def read(path: Path) -> dict[int, dict[str, Any]]:
    return {r["row"]: r for r in map(json.loads, path.read_text().splitlines())}


QUESTION = "What is on the table?"
SHORT = ["--max-new-tokens", "6"]


def test_an_answer_is_that_of_the_python_interface(
    checkpoint: Path, place: Path, lvlm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["answer", "--model", str(checkpoint), "--image", "a.png", "--prompt", QUESTION]
    assert cli.main([*words, "--keep", "4", "--json", "--dtype", "float32", *SHORT]) == 0
    result = json.loads(capsys.readouterr().out)
    made = lvlm.generate(place / "a.png", QUESTION, keep=4, max_new_tokens=6)
    assert result["answer"] == made.texts[0] and result["new_tokens"] == len(made.tokens[0])
    assert (result["kept"], result["visual_tokens"]) == (4, N)
    assert result["nouns"] == made.nouns[0] == ["table"]
    assert result["noun_backend"] == made.noun_backend
    assert set(result["timings"]) == {
        "encode", "select", "prefill", "decode", "total", "compile"
    }  # fmt: skip


@pytest.mark.parametrize("aspect", ["processor", "pad"])
def test_the_picture_shows_the_selection(
    place: Path, lvlm: Any, loaded: None, capsys: pytest.CaptureFixture[str], aspect: Any
) -> None:
    words = ["answer", "--model", "m", "--image", "a.png", "--prompt", QUESTION, "--keep", "4"]
    assert cli.main([*words, "--image-aspect", aspect, "--overlay", "kept.png", *SHORT]) == 0
    assert "kept.png" in capsys.readouterr().out
    made = lvlm.generate("a.png", QUESTION, keep=4, max_new_tokens=6, image_aspect=aspect)
    kept = np.asarray(made.selections.indices[0])[:4]
    assert len(set(kept)) == 4 and (kept < N).all()
    expected = overlay(
        "a.png",
        [(f"all {N} visual tokens", None), ("4 visual tokens kept", kept)],
        (4, 4),
        question=QUESTION,
        answer=made.texts[0],
        image_aspect=aspect,
        image_size=56,
        path="expected.png",
    )
    with Image.open("kept.png") as seen, Image.open(expected) as wanted:
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(wanted))


def test_what_is_loaded_is_what_was_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def load_model(model: str, **options: Any) -> Any:
        asked.append((model, options))
        raise RunError("enough")

    monkeypatch.setattr(load, "load_model", load_model)
    words = ["answer", "--model", "owner/name", "--image", "a.png", "--prompt", QUESTION]
    assert cli.main([*words, "--revision", "v2", "--dtype", "bfloat16"]) == 1
    nothing = {"precision": None, "chat_template": None, "clip": None}
    assert asked == [("owner/name", {"revision": "v2", "dtype": "bfloat16", **nothing})]
    for option, given in (("clip", "some/clip"), ("precision", "tensorfloat32")):
        assert cli.main([*words, f"--{option}", given]) == 1
        assert asked.pop()[1][option] == given
    Path("mine.jinja").write_text("{{ messages }}")
    for path in ("mine.jinja", "./mine.jinja", str(place / "mine.jinja")):
        assert cli.main([*words, "--chat-template", path]) == 1
        assert asked.pop()[1]["chat_template"] == Path(path)


def test_a_full_and_an_unpruned_call_agree(
    place: Path, loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for more in (["--method", "none"], ["--keep", "full"], []):
        words = ["answer", "--model", "m", "--image", "b.png", "--prompt", QUESTION, "--json"]
        assert cli.main([*words, *more, *SHORT]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["kept"] == N
        answers.append(result["answer"])
    assert len(set(answers)) == 1


def images_of_every_kind(place: Path) -> dict[str, str | None]:
    """Files by name, with a word of the expected error or None where the image works."""
    rng = np.random.default_rng(1)
    rgb = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    Image.new("RGB", (1, 1), "red").save("1x1.png")
    Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16)).save("16bit.png")
    rgb.convert("L").save("grey.png")
    rgb.convert("CMYK").save("cmyk.jpg")
    rgb.convert("RGBA").save("rgba.png")
    rgb.convert("P").save("palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save("rotated.jpg", exif=exif)
    Image.new("RGB", (10000, 10), "blue").save("long.png")
    Image.new("1", (20000, 20000)).save("bomb.png")
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("no image at all")
    whole = Path("cmyk.jpg").read_bytes()
    Path("truncated.jpg").write_bytes(whole[: len(whole) // 2])
    bad = {"bomb.png": "pixels", "empty.png": "empty", "text.png": "not an image"}
    bad |= {"truncated.jpg": "truncated", "none.png": "exist"}
    good = ("long.png", "1x1.png", "16bit.png", "grey.png", "cmyk.jpg", "rgba.png", "palette.png")
    return {**dict.fromkeys(good), "rotated.jpg": None, **bad}


def test_every_kind_of_image_in_one_run(place: Path, loaded: None) -> None:
    kinds = images_of_every_kind(place)
    rows = rows_file(place, [{"image": name, "prompt": QUESTION} for name in kinds])
    words = ["answer", "--model", "m", "--rows", rows, "--output", "out.jsonl", "--keep", "4"]
    assert cli.main([*words, *SHORT]) == 1
    results = read(place / "out.jsonl")
    assert len(results) == len(kinds)
    for result, (name, word) in zip(
        (results[i] for i in range(len(kinds))), kinds.items(), strict=True
    ):
        if word is None:
            assert result.get("kept") == 4, (name, result)
        else:
            assert word in result["error"] and name in result["error"], (name, result)
    print(f"{len(kinds)} kinds of image, {sum(word is None for word in kinds.values())} work")


def test_questions_of_every_kind_in_one_run(
    place: Path, loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[dict[str, Any], str | None]] = [
        ({"prompt": QUESTION}, None),
        ({"prompt": "Why?"}, None),  # no noun
        ({"prompt": "图片里有什么东西？"}, None),
        ({"prompt": "Is there 🙂 on it?\x00\n\n"}, None),
        ({"prompt": "cup " * 3000}, "context"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": QUESTION, "keep": 5000}, None),
        ({"prompt": QUESTION, "keep": 0.3}, None),
        ({"prompt": QUESTION, "keep": None}, None),
        ({"prompt": QUESTION, "keep": -1}, "keep"),
    ]
    rows = rows_file(place, [{"image": "a.png", **row} for row, _ in asked])
    words = ["answer", "--model", "m", "--rows", rows, "--output", "out.jsonl", "--keep", "4"]
    assert cli.main([*words, *SHORT]) == 1
    results = read(place / "out.jsonl")
    for i, (row, word) in enumerate(asked):
        assert (word is None) == ("answer" in results[i]), (row, results[i])
        assert word is None or word in results[i]["error"]
    assert results[1]["nouns"] == []
    assert [results[i]["kept"] for i in (0, 1, 6, 7, 8)] == [4, 4, N, 5, N]


def test_a_budget_above_the_count_is_capped_and_said(
    place: Path, loaded: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["answer", "--model", "m", "--image", "a.png", "--prompt", QUESTION]
    assert cli.main([*words, "--keep", "4321", "--json", *SHORT]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["kept"] == N
    assert any("4321" in line and str(N) in line for line in said.err.splitlines())


def broken(kind: str, checkpoint: Path, place: Path) -> Path:
    """A copy of the checkpoint with one thing wrong."""
    folder = place / kind
    shutil.copytree(checkpoint, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "type":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "blip"}))
    elif kind == "weightless":
        weights.unlink()
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "unconfigured":
        config.unlink()
    elif kind in ("keys", "nan"):
        tensors = load_file(weights)
        bias = next(key for key in tensors if key.endswith("linear_2.bias"))
        if kind == "nan":
            tensors[bias] = np.full_like(tensors[bias], np.nan)
        else:
            head = next(key for key in tensors if key.endswith("lm_head.weight"))
            tensors["extra.weight"] = tensors.pop(bias)
            tensors[head] = tensors[head][:-1].copy()
        save_file(tensors, weights)
    return folder


@pytest.mark.parametrize(
    ("kind", "status", "expected"),
    [
        ("type", 2, ["blip"]),
        ("weightless", 1, ["safetensors"]),
        ("truncated", 1, ["model.safetensors"]),
        ("unconfigured", 1, ["config.json"]),
        ("keys", 1, ["linear_2.bias", "extra.weight", "lm_head.weight"]),
        ("nan", 1, ["a.png", "not finite"]),
    ],
)
def test_a_bad_checkpoint_gives_one_line(
    checkpoint: Path, place: Path, capsys: pytest.CaptureFixture[str],
    kind: str, status: int, expected: list[str],
) -> None:  # fmt: skip
    folder = broken(kind, checkpoint, place)
    words = ["answer", "--model", str(folder), "--image", "a.png", "--prompt", QUESTION]
    assert cli.main([*words, "--keep", "4", *SHORT]) == status
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(said) == 1 and said[0].startswith("resprune: "), said
    for word in expected:
        assert word in said[0], said


def test_a_missing_checkpoint_gives_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["answer", "--model", "./nothing", "--image", "a.png", "--prompt", QUESTION]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "./nothing" in line


def test_a_run_resumes_on_the_real_model(place: Path, loaded: None) -> None:
    rows = rows_file(place, [{"image": f"{n}.png", "prompt": QUESTION} for n in "abcdab"])
    words = ["answer", "--model", "m", "--rows", rows, "--output", "out.jsonl", "--keep", "0.25"]
    words += ["--batch-size", "2", *SHORT]
    assert cli.main(words) == 0
    whole = read(place / "out.jsonl")
    content = (place / "out.jsonl").read_bytes()
    (place / "out.jsonl").write_bytes(content[: len(content) // 2])
    assert cli.main(words) == 0
    resumed = read(place / "out.jsonl")
    assert sorted(resumed) == list(range(6))
    for i in range(6):
        assert resumed[i]["kept"] == 4 and resumed[i]["answer"] == whole[i]["answer"]
