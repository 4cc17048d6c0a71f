"""Broken checkpoints: all that is wrong is named in one error, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint.reading import CheckpointError
from resprune_jax.models.families.registry import read_config
from tests.checkpoints.llava import rename_dialect, tiny_llava
from tests.models.checkpoint.checkpoints import NORM, QUERY, TABLE, Tensors, edit, flat, load


@pytest.fixture
def edited(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the checkpoint with its tensors changed by a function."""
    return lambda change, name="edited": edit(checkpoint, tmp_path / name, change)


@pytest.fixture
def sharded(checkpoint: Path, tmp_path: Path) -> Path:
    return rename_dialect(checkpoint, tmp_path / "sharded", "A", shards=3)


def problems(directory: Path) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, RunError)
    return caught.value.problems


def test_one_error_names_everything(edited: Callable[..., Path]) -> None:
    def change(tensors: Tensors) -> None:
        del tensors[NORM]
        for layer in range(3):
            del tensors[f"language_model.model.layers.{layer}.mlp.up_proj.weight"]
        tensors["language_model.model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        tensors["adapter.lora_A"] = np.zeros(2, np.float32)
        tensors["model.language_model.embed_tokens.weight"] = tensors[TABLE].copy()
        tensors[QUERY] = tensors[QUERY][:-1].copy()
        patches = "vision_tower.embeddings.patch_embedding.weight"
        tensors[patches] = np.ascontiguousarray(tensors[patches].transpose(0, 2, 3, 1))
        tensors["multi_modal_projector.linear_1.bias"] = np.zeros(64, np.int8)

    found = problems(edited(change))
    assert found == (
        "4 missing: language_model.layers.{0-2}.mlp.up_proj.weight, language_model.norm.weight",
        "2 unknown: adapter.lora_A, language_model.model.layers.7.mlp.up_proj.weight",
        f"duplicate: language_model.embed_tokens.weight (as {TABLE} in model.safetensors, "
        "model.language_model.embed_tokens.weight in model.safetensors)",
        f"misshapen: {QUERY} is (63, 64), expected (64, 64)",
        "misshapen: vision_tower.embeddings.patch_embedding.weight is (48, 14, 14, 3), expected "
        "(48, C, p, p) with C*p*p = 588",
        "not plain floats (quantised?): multi_modal_projector.linear_1.bias (I8)",
    )


def test_transposed_squares_cannot_hide_but_rectangles_are_seen(
    edited: Callable[..., Path],
) -> None:
    key = "language_model.model.layers.0.mlp.gate_proj.weight"

    def change(tensors: Tensors) -> None:
        tensors[key] = np.ascontiguousarray(tensors[key].T)

    assert problems(edited(change)) == (f"misshapen: {key} is (64, 112), expected (112, 64)",)


def test_buffers_and_unused_vision_parts_are_ignored(edited: Callable[..., Path]) -> None:
    def with_buffers(tensors: Tensors) -> None:
        tensors["vision_tower.vision_model.embeddings.position_ids"] = np.zeros((1, 17), np.int64)
        for layer in range(3):
            key = f"language_model.model.layers.{layer}.self_attn.rotary_emb.inv_freq"
            tensors[key] = np.zeros(8, np.float32)

    def without_unused(tensors: Tensors) -> None:
        for key in list(tensors):
            behind = "encoder.layers.3." in key
            read = "layer_norm1" in key or "q_proj" in key or "k_proj" in key
            if (behind and not read) or "post_layernorm" in key:
                del tensors[key]

    plain = flat(load(edited(lambda tensors: None, "plain")))
    for change in (with_buffers, without_unused):
        again = flat(load(edited(change, change.__name__)))
        assert all(np.array_equal(x, again[path]) for path, x in plain.items())


def test_unused_vision_parts_are_ignored_by_name_not_by_prefix(
    edited: Callable[..., Path],
) -> None:
    wrong = [
        "vision_tower.encoder.layers.3.mlp.fc9.weight",  # no block has such a part
        "vision_tower.encoder.layers.4.mlp.fc1.weight",  # the configuration counts 4 blocks
        "vision_tower.post_layernorm.scale",
        "vision_tower.head.weight",
    ]

    def change(tensors: Tensors) -> None:
        tensors.update({key: np.zeros(2, np.float32) for key in wrong})

    assert problems(edited(change)) == (f"4 unknown: {', '.join(sorted(wrong))}",)


def test_tied_head_is_verified(tmp_path: Path) -> None:
    folder = tiny_llava(tmp_path / "tied", variant="tied")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    assert not any("lm_head" in key for key in tensors)
    table = flat(load(folder))["language_model", "embed_tokens", "embedding"]

    def with_head(head: np.ndarray) -> None:
        save_file(tensors | {"language_model.lm_head.weight": head}, file)

    with_head(tensors[TABLE].copy())
    np.testing.assert_array_equal(
        flat(load(folder))["language_model", "embed_tokens", "embedding"], table, strict=True
    )
    changed = tensors[TABLE].copy()
    changed[-1, -1] += 1e-3
    with_head(changed)
    assert problems(folder)[0].startswith("tied: language_model.lm_head.weight differs from")
    with_head(tensors[TABLE][:-1].copy())
    assert problems(folder)[0].startswith("tied: ")


def test_truncated_files_are_named_and_their_tensors_not_called_missing(sharded: Path) -> None:
    second = sharded / "model-00002-of-00003.safetensors"
    second.write_bytes(second.read_bytes()[:-100])
    found = problems(sharded)
    assert len(found) == 1
    assert found[0].startswith(f"{second.name} ({second.stat().st_size} bytes) is truncated")


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 64], ids=["empty", "zero", "ff"])
def test_corrupt_single_file(edited: Callable[..., Path], content: bytes) -> None:
    folder = edited(lambda tensors: None)
    (folder / "model.safetensors").write_bytes(content)
    found = problems(folder)
    assert len(found) == 1
    assert f"model.safetensors ({len(content)} bytes) is truncated or corrupt" in found[0]


def test_git_lfs_pointer(edited: Callable[..., Path]) -> None:
    folder = edited(lambda tensors: None)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4939116424\n"
    (folder / "model.safetensors").write_text(text)
    assert "git lfs pull" in problems(folder)[0]


def test_index_and_files_must_agree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    places = content["weight_map"]
    first, second, third = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    (sharded / second).unlink()
    lost = sum(file == second for file in places.values())
    # Misplaced, and in no file at all.
    here = next(key for key, file in places.items() if file == first)
    places[here] = third
    places["language_model.model.ghost"] = third
    # In a file but not in the index.
    leftover = next(key for key, file in places.items() if file == third and key != here)
    del places[leftover]
    # In two files.
    tensors = load_file(sharded / third)
    twice = next(key for key, file in places.items() if file == first)
    tensors[twice] = load_file(sharded / first)[twice]
    save_file(tensors, sharded / third)
    index.write_text(json.dumps(content))

    found = problems(sharded)
    name = "model.safetensors.index.json"
    assert f"{name} places {lost} tensors in {second}, which is not in the folder" in found[0]
    both = ", ".join(sorted([here, "language_model.model.ghost"]))
    assert f"{both} are not in {third}, where {name} places them" in found
    assert f"{leftover} in {third} is not in {name}" in found
    assert any(p.startswith("duplicate: ") and f"{twice} in {third}" in p for p in found)
    assert len(found) == 4


def test_index_may_not_leave_the_folder(sharded: Path) -> None:
    outside = sharded.parent / "outside.safetensors"
    shutil.copy(sharded / "model-00001-of-00003.safetensors", outside)
    index = sharded / "model.safetensors.index.json"
    index.write_text(
        index.read_text().replace("model-00001-of-00003.safetensors", "../outside.safetensors")
    )
    assert "../outside.safetensors, which is not in the folder" in problems(sharded)[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_broken_index(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    assert problems(sharded)[0].startswith("model.safetensors.index.json ")


def test_single_file_beside_an_index(checkpoint: Path, sharded: Path) -> None:
    single = sharded / "model.safetensors"
    shutil.copy(checkpoint / "model.safetensors", single)
    assert "both" in problems(sharded)[0]
    # An index of the single file itself is redundant, not wrong.
    places = dict.fromkeys(load_file(single), single.name)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert len(flat(load(sharded))) == len(flat(load(checkpoint)))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["pytorch_model-00001-of-00002.bin"],
            "no safetensors, the only format that is read here;",
        ),
        (
            ["model-00001-of-00002.safetensors"],
            "neither model.safetensors nor model.safetensors.in",
        ),
        ([], "no weights: expected model.safetensors"),
    ],
)
def test_folder_without_weights(
    checkpoint: Path, tmp_path: Path, names: list[str], said: str
) -> None:
    shutil.copy(checkpoint / "config.json", tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    found = problems(tmp_path)
    assert said in found[0]
    assert all(name in found[0] for name in names)


def test_read_config_says_what_is_wrong(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    with pytest.raises(CallError, match="nowhere is not there"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_config(tmp_path)
    config.write_text("{broken")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        read_config(tmp_path)
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not a text in UTF-8"):
        read_config(tmp_path)
    config.write_text("[1]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        read_config(tmp_path)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(CallError, match="model_type 'bert', which is not supported; supported: ll"):
        read_config(tmp_path)
    config.write_text('{"model_type": "llava", "quantization_config": {"bits": 4}}')
    with pytest.raises(CallError, match="quantised"):
        read_config(tmp_path)
    with pytest.raises(CallError, match="a file, not a folder"):
        read_config(config)
