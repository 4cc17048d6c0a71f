"""`resprune info`: counts and costs against known figures, from a configuration without weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors import safe_open

from resprune_jax.experiments import cli
from resprune_jax.experiments.info import bytes_text, flops_text
from tests.models.checkpoint.hub_server import StandInHub

MIB = 2**20

# As the published LLaVA-1.5-7B's file: it leaves most sizes to the class defaults.
LLAVA_7B: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 32000,
    "torch_dtype": "bfloat16",
    "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": 32064,
                    "max_position_embeddings": 4096},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                      "intermediate_size": 4096, "num_attention_heads": 16,
                      "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
}  # fmt: skip


def info(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["info", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_published_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = info(capsys, "--model", write(tmp_path / "7b", LLAVA_7B))
    millions = {part: round(count / 1e6, 1) for part, count in facts["parameters"].items()}
    # The last vision block never runs, nor does the norm of the class token: 10.5 of 303.5 million.
    # Its queries and keys, 2.1 million, are there for methods that read them.
    assert millions == {
        "vision_tower": 293.0, "multi_modal_projector": 21.0, "embed_tokens": 131.3,
        "layers": 6476.3, "lm_head": 131.3, "total": 7052.9,
    }  # fmt: skip
    assert facts["dtype"] == "bfloat16" and facts["visual_tokens"] == 576
    assert facts["answers"] == facts["sampling"] == {}
    assert facts["parameter_bytes"] == 2 * facts["parameters"]["total"]
    rows = facts["budgets"]
    assert [row["kept"] for row in rows] == [576, 192, 128, 64]
    assert [row["kv_bytes"] / MIB for row in rows] == [288, 96, 64, 32]
    for row in rows:
        n, d, m = row["kept"], 4096, 11008
        assert row["llm_flops"] == 2 * 32 * (4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m)
        assert row["llm_flops_share"] == row["llm_flops"] / rows[0]["llm_flops"]


def test_the_count_is_that_of_the_files(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = info(capsys, "--model", str(checkpoint))
    with safe_open(checkpoint / "model.safetensors", "numpy") as file:
        sizes = {key: int(file.get_tensor(key).size) for key in file.keys()}  # noqa: SIM118
    config = json.loads((checkpoint / "config.json").read_text())
    last = config["vision_config"]["num_hidden_layers"] - 1
    behind = f"vision_tower.encoder.layers.{last}."
    parts = ("mlp", "layer_norm2", "self_attn.v_proj", "self_attn.out_proj")
    never_run = ("post_layernorm", *(behind + part for part in parts))
    used = {key: n for key, n in sizes.items() if not any(part in key for part in never_run)}
    assert len(used) == len(sizes) - 10 - 2
    assert facts["parameters"]["total"] == sum(used.values())
    projector = [n for key, n in used.items() if "projector" in key]
    assert facts["parameters"]["multi_modal_projector"] == sum(projector)
    print(f"{len(used)} tensors, {sum(used.values())} parameters")


def test_budgets_resolve_to_the_images_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = LLAVA_7B["text_config"] | {"num_hidden_layers": 8}
    folder = write(tmp_path / "short", LLAVA_7B | {"text_config": text})
    facts = info(capsys, "--model", folder, "--keep", "10", "0.5", "9999", "--dtype", "float32")
    assert [row["kept"] for row in facts["budgets"]] == [576, 10, 288, 576]
    assert facts["budgets"][1]["kv_bytes"] == 2 * 8 * 10 * 4096 * 4
    assert [row["selection_flops"] for row in facts["budgets"]] == [
        0, 2 * 576 * 10 * 4096, 2 * 576 * 288 * 4096, 0,
    ]  # fmt: skip


def test_tied_and_grouped_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = LLAVA_7B["text_config"] | {"num_key_value_heads": 8, "num_hidden_layers": 8}
    config = LLAVA_7B | {"text_config": text, "tie_word_embeddings": True}
    folder = write(tmp_path / "tied", config)
    facts = info(capsys, "--model", folder)
    assert facts["parameters"]["lm_head"] == 0
    assert facts["budgets"][0]["kv_bytes"] == 288 * MIB / 4 / 4
    assert cli.main(["info", "--model", folder]) == 0
    said = capsys.readouterr().out
    for word in ("576", "192", "18.0 MiB", "the embeddings", "24x24", "33.3%"):
        assert word in said, said


@pytest.mark.parametrize(
    ("config", "words", "status", "expected"),
    [
        (LLAVA_7B, ["--keep", "0"], 2, "--keep 0"),
        (LLAVA_7B, ["--keep", "nan"], 2, "--keep nan"),
        (LLAVA_7B, ["--keep", "1.5"], 2, "--keep 1.5"),
        (LLAVA_7B, ["--dtype", "int8"], 2, "int8"),
        (LLAVA_7B | {"model_type": "blip"}, [], 2, "blip"),
        (LLAVA_7B, ["--revision", "main"], 2, "revision"),
        ([1], [], 1, "config.json"),
    ],
)
def test_what_cannot_be_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    config: Any, words: list[str], status: int, expected: str,
) -> None:  # fmt: skip
    assert cli.main(["info", "--model", write(tmp_path / "m", config), *words]) == status
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert expected in line and said.out == ""


def test_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--model", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


def test_of_a_hub_id_only_the_configuration_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = StandInHub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    files = {"config.json": json.dumps(LLAVA_7B).encode(), "tokenizer.json": b"{}"}
    hub.repositories["owner/llava"] = {"main": files | {"model.safetensors": b"x" * 1000}}
    try:
        facts = info(capsys, "--model", "owner/llava")
        assert cli.main(["info", "--model", "owner/other"]) == 2
    finally:
        hub.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "owner/other" in line
    assert facts["model"] == "owner/llava" and facts["visual_tokens"] == 576
    assert hub.fetched == ["config.json"]


def test_units() -> None:
    assert [flops_text(x) for x in (5, 1234, 30.6e12, 999.6e9)] == [
        "5",
        "1.23 k",
        "30.6 T",
        "1000 G",
    ]
    assert [bytes_text(x) for x in (5, 288 * MIB, 1.5 * 2**30)] == ["5 B", "288 MiB", "1.50 GiB"]


def test_settings_of_answers_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = write(tmp_path / "7b", LLAVA_7B), tmp_path / "7b" / "generation_config.json"
    file.write_text('{"num_beams": 4}')
    assert cli.main(["info", "--model", folder]) == 2
    assert "7b/generation_config.json asks for num_beams=4" in capsys.readouterr().err
    own = {"repetition_penalty": 1.05, "temperature": 0.2, "do_sample": True, "eos_token_id": 2}
    file.write_text(json.dumps(own))
    assert cli.main(["info", "--model", folder]) == 0
    said = capsys.readouterr().out
    assert "Answers are shaped by the checkpoint's repetition_penalty 1.05." in said
    assert "--sample they are drawn by the checkpoint's do_sample True, temperature 0.2." in said
