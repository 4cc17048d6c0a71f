"""`resprune info` and `resprune answer` on LLaVA-NeXT and Qwen2.5-VL, several images and videos."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments import cli
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.answer.rows import read_rows
from resprune_jax.experiments.info import parse_size
from resprune_jax.experiments.memory.large_image import PROCESSOR, main
from resprune_jax.models import LVLM, load_model
from tests.models.families.test_config import INTERLEAVE
from tests.models.families.test_onevision_tiles import HUB as ONEVISION
from tests.parity.llava.next_pairs import picture
from tests.parity.qwen import pairs as qwen_pairs
from tests.prompt_data import lexicon

CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
        "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
        "patch_size": 14, "projection_dim": 768}  # fmt: skip
MISTRAL = {"model_type": "mistral", "intermediate_size": 14336, "num_key_value_heads": 8,
           "max_position_embeddings": 32768, "rope_theta": 1e6, "vocab_size": 32064,
           "sliding_window": None}  # fmt: skip
NEXT_7B: dict[str, Any] = {
    "model_type": "llava_next", "image_token_index": 32000, "torch_dtype": "bfloat16",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "text_config": MISTRAL, "vision_config": CLIP,
}  # fmt: skip
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                      "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31],
                      "tokens_per_second": 2},
}  # fmt: skip


HALF = {"torch_dtype": "float16"}


def info(capsys: pytest.CaptureFixture[str], folder: Path, config: Any, *words: str) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    assert cli.main(["info", "--model", str(folder), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.deep
def test_info_of_llava_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, tmp_path / "m", NEXT_7B, "--keep", "0.222", "128")
    assert facts["family"] == "LLaVA-NeXT"
    # 7.567 billion less what is not read of the tower's last block and a norm, 10.5 million.
    assert round(facts["parameters"]["total"] / 1e6) == 7556
    counts = {tuple(image["size"]): image["visual_tokens"] for image in facts["images"]}
    assert counts[640, 480] == 2340 and counts[336, 336] == 1176 and counts[1920, 1080] == 1948
    assert facts["images"][0]["kept"] == [round(0.222 * 2340), 128]
    assert [row["kept"] for row in facts["budgets"]] == [2340, 519, 128]
    assert facts["tiles"] == 5 and facts["images"][0]["newlines"] == 36
    one = info(capsys, tmp_path / "m", NEXT_7B, "--size", "300x1000")
    assert one["visual_tokens"] == 2232 and len(one["images"]) == 1  # 1000 rows of 300
    assert facts["vision_tower_flops"] / 5 == one["vision_tower_flops"] / 4
    assert cli.main(["info", "--model", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    for word in ("LLaVA-NeXT", "2340", "5 tiles of 24x24", "36 newlines", "1920x1080", "1948"):
        assert word in said, said


def test_info_of_qwen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    assert cli.main(["info", "--model", str(folder)]) == 2  # limits of sizes lie in this file:
    assert "preprocessor_config.json" in capsys.readouterr().err
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    facts = info(capsys, folder, QWEN_7B, "--size", "640x480", "3840x2160", "336x336")
    assert facts["family"] == "Qwen2.5-VL"
    assert round(facts["parameters"]["total"] / 1e6) == 8292
    assert [image["visual_tokens"] for image in facts["images"]] == [391, 10549, 144]
    assert facts["grid"] == [17, 23] and facts["images"][1]["kept"][-1] == round(10549 / 9)
    patches, width = 4 * 391, 1280
    linear = 32 * (4 * width**2 + 3 * width * 3420) + 1176 * width
    seen = 4 * patches + 28 * 64
    assert facts["vision_tower_flops"] == 2 * patches * (linear + 2 * width * seen)


def test_info_of_onevision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, tmp_path / "m", ONEVISION | HALF, "--keep", "0.222", "128")
    assert facts["family"] == "LLaVA-OneVision"
    # Embeddings and head 1090 million, layers 6526, 26 blocks of the tower 398, projector 17.
    assert round(facts["parameters"]["total"] / 1e6) == 8030
    counts = {tuple(image["size"]): image["visual_tokens"] for image in facts["images"]}
    assert list(counts.values()) == [2929, 1485, 4725, 7269]
    assert facts["tiles"] == 5 and facts["images"][0]["newlines"] == 40
    assert facts["images"][0]["kept"] == [round(0.222 * 2929), 128]
    # Every patch of every tile passes the projector.
    assert facts["projector_flops"] == 2 * 5 * 729 * (1152 * 3584 + 3584**2)


@pytest.mark.deep
def test_info_of_interleave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, tmp_path / "m", INTERLEAVE | HALF)
    assert facts["visual_tokens"] == 729 and facts["grid"] == [27, 27]
    assert facts["parameters"]["lm_head"] == 0  # tied
    patches, width = 729, 1152
    block = 4 * patches * width**2 + 2 * patches**2 * width + 2 * patches * width * 4304
    assert facts["vision_tower_flops"] == 2 * (patches * 588 * width + 26 * block)


def test_sizes_that_are_none() -> None:
    assert parse_size("1920x1080") == (1920, 1080)
    for text in ("1920", "0x5", "axb", "1e3x5", "-5x5", "99999999x9"):
        with pytest.raises(CallError, match="--size"):
            parse_size(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    picture(150, 190).save("a.png")
    picture(90, 200).save("b.png")
    (tmp_path / "film").mkdir()
    for number in range(5):
        picture(60 + number, 90).resize((90, 60)).save(tmp_path / "film" / f"{number}.png")
    return tmp_path


def qwen() -> LVLM:
    model = load_model(qwen_pairs.pair("untied").directory, dtype="float32")
    model._extractor = lexicon()
    return model


def test_several_images_and_a_video_in_one_prompt(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = qwen()
    monkeypatch.setattr(answer, "load_asked", lambda _: model)
    words = ["answer", "--model", "m", "--prompt", "What is on the table?"]
    words += ["--max-new-tokens", "3", "--keep", "0.3", "--budget", "per_image"]
    both = ["--image", "a.png", "b.png", "--together", "--video", "film", "--fps", "4"]
    assert cli.main([*words, *both, "--json", "--overlay", "out.png"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["image"] == ["a.png", "b.png"] and result["video"] == "film"
    counts = [model.family.layout(150, 190).tokens, model.family.layout(90, 200).tokens]
    counts.append(result["visual_tokens"] - sum(counts))
    kept = sum(max(1, round(0.3 * count)) for count in counts)
    assert result["kept"] == kept and counts[2] % 3 == 0
    (line,) = [line for line in said.err.splitlines() if "visual tokens" in line]
    sums = " + ".join(map(str, counts))
    assert line == f"note: a.png, b.png, film: {sums} = {sum(counts)} visual tokens, {kept} kept"
    with Image.open("out.png") as drawn:
        assert drawn.width > 800
    # The same as a row of a file.
    row = {"image": ["a.png", "b.png"], "video": "film", "fps": 4, "prompt": words[4]}
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.main([*words[:3], "--rows", "rows.jsonl", *words[5:], "--output", "o.jsonl"]) == 0
    stored = json.loads((place / "o.jsonl").read_text())
    assert stored["answer"] == result["answer"] and stored["kept"] == kept
    assert stored["fps"] == 4 and stored["settings"]["budget"] == "per_image"


def test_rows_of_several_images_and_videos(place: Path) -> None:
    lines = [
        {"image": ["a.png", "b.png"], "prompt": "?"},
        {"video": "film", "fps": 2.5, "prompt": "?"},
        {"image": "a.png", "video": "film", "prompt": "?"},
        {"image": [], "prompt": "?"},
        {"image": ["a.png", 3], "prompt": "?"},
        {"video": 7, "prompt": "?"},
        {"video": "film", "fps": 0, "prompt": "?"},
        {"video": "film", "fps": True, "prompt": "?"},
        {"prompt": "?"},
    ]
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_rows(path, keep=None)
    # An empty list of images is a question without one.
    assert [row.error is None for row in rows] == [True] * 4 + [False] * 5
    assert rows[3].pictures() == []
    assert rows[0].pictures() == [place / "a.png", place / "b.png"]
    (film,) = rows[1].pictures()
    assert (film.frames, film.fps) == (place / "film", 2.5)
    assert rows[2].pictures()[0] == place / "a.png" and rows[2].name == "a.png, film"
    assert [word in str(row.error) for row, word in zip(rows[4:], (
        '"image" is neither', '"video" is no path', '"fps"', '"fps"',
        'no "image"'), strict=True)] == [True] * 5  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--video", "none"], "--video none does not exist"),
        (["--video", "film", "--fps", "0"], "--fps"),
        (["--image", "a.png", "--fps", "2"], "--fps is the speed of a --video"),
        (["--video", "film", "--image", "a.png", "b.png"], "add --together"),
        (["--image", "a.png", "b.png", "--overlay", "o.png"], "draws one prompt"),
    ],
)
def test_calls_that_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(["answer", "--model", "m", "--prompt", "w", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.deep
def test_the_check_of_a_large_image_notices(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--height", "280", "--width", "420", "--keep", "20"]
    assert main([*small, "--limit-gib", "0.01"]) == 1
    said = capsys.readouterr().out
    assert "150 visual tokens" in said and "more memory than the limit" in said
    assert "too large arrays" not in said
    print(said)


def test_info_of_qwen2_vl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    shallow = {**QWEN_7B, "num_hidden_layers": 1}
    config = {**shallow, "model_type": "qwen2_vl",
              "vision_config": {"depth": 1, "embed_dim": 1280, "hidden_size": 3584}}  # fmt: skip
    facts = info(capsys, folder, config, "--size", "640x480", "--keep", "0.222", "128")
    assert facts["family"] == "Qwen2-VL"
    # The published 8,291,375,616 less 27 decoder layers and 31 blocks.
    assert facts["parameters"]["total"] == 8_291_375_616 - 27 * 233_057_792 - 31 * 19_677_440
    assert facts["images"][0]["visual_tokens"] == 391 and facts["images"][0]["kept"] == [87, 128]
    patches, width = 4 * 391, 1280
    block = 4 * width**2 + 2 * width * 5120 + 2 * width * patches
    assert facts["vision_tower_flops"] == 2 * patches * (block + 1176 * width)


def test_another_family_is_refused_with_those_that_are_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(CallError, match=r"'blip'.* supported: llava, llava_next, qwen2_5_vl"):
        load_model(tmp_path)
