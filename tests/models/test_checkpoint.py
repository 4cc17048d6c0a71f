"""Loading and saving checkpoints: every dialect, both ways strict, one error that names all."""

import functools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import LlavaForConditionalGeneration

from resprune_jax import errors
from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint import (
    CheckpointError,
    load_parameters,
    read_config,
    resolve_dtype,
    save_checkpoint,
)
from resprune_jax.models.config import LlavaConfig
from resprune_jax.models.llava import Llava
from tests.fixtures import DIALECTS, rename_dialect, tiny_llava

Tensors = dict[str, np.ndarray]
NORM = "language_model.model.norm.weight"
QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
TABLE = "language_model.model.embed_tokens.weight"


@functools.cache
def shapes(config: LlavaConfig, dtype: np.dtype) -> Llava:
    return nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=dtype))


def abstract(directory: Path, dtype: Any = jnp.float32) -> Llava:
    return shapes(LlavaConfig.from_hf(read_config(directory)), jnp.dtype(dtype))


def load(directory: Path, dtype: Any = jnp.float32) -> nnx.State:
    return load_parameters(directory, abstract(directory, dtype), dtype=dtype)


def flat(state: nnx.State) -> dict[tuple[Any, ...], np.ndarray]:
    return {tuple(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def expected(model: Any) -> dict[tuple[Any, ...], np.ndarray]:
    """The parameters as torch holds them, in our layout; a rule of this test's own."""
    result: dict[tuple[Any, ...], np.ndarray] = {}
    for name, value in model.state_dict().items():
        parts = [int(p) if p.isdigit() else p for p in name.removeprefix("model.").split(".")]
        array = value.numpy()
        if parts[-1] == "weight":
            if "norm" in name.split(".")[-2]:
                parts[-1] = "scale"
            elif parts[-2] in ("embed_tokens", "position_embedding"):
                parts[-1] = "embedding"
            else:
                parts[-1] = "kernel"
                array = array.reshape(len(array), -1).T
        result[tuple(parts)] = array
    return result


@pytest.fixture
def edited(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the checkpoint with its tensors changed by a function."""

    def make(change: Callable[[Tensors], None], name: str = "edited") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(checkpoint / "config.json", folder)
        tensors = load_file(checkpoint / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


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


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_torchs_tensors(
    checkpoint: Path, reference: Any, tmp_path: Path, dialect: str, shards: int
) -> None:
    folder = rename_dialect(checkpoint, tmp_path / "renamed", dialect, shards=shards)
    got, wanted = flat(load(folder)), expected(reference)
    unused = {path for path in wanted if path not in got}
    # Block 3 of 4 is behind the feature layer -2.
    assert all(path[1] == "post_layernorm" or path[:4] == (*path[:3], 3) for path in unused)
    assert len(unused) == 16 + 2
    assert set(got) <= set(wanted)
    for path, array in got.items():
        np.testing.assert_array_equal(array, wanted[path], err_msg=str(path), strict=True)
    print(f"dialect {dialect}, {shards} files: {len(got)} parameters bit-equal")


def test_merges_into_a_module_that_runs(checkpoint: Path) -> None:
    module = abstract(checkpoint)
    model = nnx.merge(nnx.split(module)[0], load(checkpoint))
    assert isinstance(model, Llava)
    assert bool(jnp.isfinite(model.embed(jnp.arange(5))).all())


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("asked", ["float32", jnp.bfloat16, np.float16])
def test_casts_on_the_host_round_as_jax_does(
    edited: Callable[..., Path], stored: Any, asked: Any
) -> None:
    def change(tensors: Tensors) -> None:
        for key in tensors:
            tensors[key] = tensors[key].astype(stored)

    folder = edited(change)
    kernel = flat(load(folder, asked))[
        "language_model", "layers", 1, "self_attn", "q_proj", "kernel"
    ]
    raw = load_file(folder / "model.safetensors")[QUERY].T
    if stored == np.float64:  # JAX itself has no float64 here
        raw = raw.astype(np.float32)
    np.testing.assert_array_equal(kernel, np.asarray(jnp.asarray(raw).astype(asked)), strict=True)


def test_no_dtype_keeps_the_modules(checkpoint: Path) -> None:
    state = load_parameters(checkpoint, abstract(checkpoint, jnp.bfloat16), dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.bfloat16)}


def test_values_beyond_float16_are_refused(edited: Callable[..., Path]) -> None:
    def change(tensors: Tensors) -> None:
        tensors[QUERY][3, 4] = 1e6

    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj.*float16"):
        load(edited(change), "float16")


@pytest.mark.parametrize(
    ("dialect", "most"), [("hub", None), ("hub", 100_000), ("v4.52", None), ("v5-memory", 1)]
)
def test_saved_checkpoints_load_here_and_in_torch(
    checkpoint: Path, reference: Any, tmp_path: Path, dialect: str, most: int | None
) -> None:
    state = load(checkpoint)
    folder = save_checkpoint(
        tmp_path / "saved", read_config(checkpoint), state, max_shard_bytes=most, dialect=dialect
    )
    files = list(folder.glob("*.safetensors"))
    assert (len(files) == 1) == (most is None)
    for file in files:
        tensors = load_file(file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert most is None or size <= most or len(tensors) == 1
    again = flat(load(folder))
    for path, array in flat(state).items():
        np.testing.assert_array_equal(array, again[path], strict=True)

    model, report = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert {name: list(keys) for name, keys in report.items() if keys} == {}
    ids = torch.tensor([[1] + [4] * 16 + [20, 30, 40]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=ids, pixel_values=pixels).logits
        theirs = reference(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(ours, theirs)
    print(f"{len(files)} files, {len(again)} parameters bit-equal, logits of torch equal")


def test_hub_dialect_has_the_published_names(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, read_config(checkpoint), load(checkpoint))
    keys = load_file(folder / "model.safetensors").keys()
    starts = {".".join(key.split(".")[:2]) for key in keys}
    assert starts == {
        "language_model.model",
        "language_model.lm_head",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "vision_tower.vision_model",
    }
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_saving_again_leaves_no_stale_files(checkpoint: Path, tmp_path: Path) -> None:
    config, state = read_config(checkpoint), load(checkpoint)
    (tmp_path / "notes.safetensors").write_bytes(b"not ours")
    save_checkpoint(tmp_path, config, state, max_shard_bytes=100_000)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    save_checkpoint(tmp_path, config, half)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["config.json", "model.safetensors", "notes.safetensors"]
    assert resolve_dtype(None, tmp_path, read_config(tmp_path)) == jnp.bfloat16
    save_checkpoint(tmp_path, config, half, max_shard_bytes=100_000)
    again = flat(load(tmp_path, jnp.bfloat16))
    assert all(np.array_equal(x, again[path]) for path, x in flat(half).items())


def test_saving_refuses_what_it_cannot_write(checkpoint: Path, tmp_path: Path) -> None:
    config, state = read_config(checkpoint), load(checkpoint)
    with pytest.raises(CallError, match="dialect is 'mine', expected one of hub"):
        save_checkpoint(tmp_path, config, state, dialect="mine")
    with pytest.raises(CallError, match="max_shard_bytes is 0"):
        save_checkpoint(tmp_path, config, state, max_shard_bytes=0)
    with pytest.raises(CallError, match="has no value"):
        save_checkpoint(tmp_path, config, abstract(checkpoint))
    with pytest.raises(CallError, match="hold 3 vision blocks, but the configuration runs 2"):
        save_checkpoint(tmp_path, config | {"vision_feature_layer": -3}, state)
    with pytest.raises(CallError, match="dtype int32"):
        save_checkpoint(tmp_path, config, jax.tree.map(lambda x: x.astype(jnp.int32), state))
    assert list(tmp_path.iterdir()) == []


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
            if "encoder.layers.3." in key or "post_layernorm" in key:
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
    assert f"{here} is not in {third}, where {name} places it" in found
    assert f"language_model.model.ghost is not in {third}, where {name} places it" in found
    assert f"{leftover} in {third} is not in {name}" in found
    assert any(p.startswith("duplicate: ") and f"{twice} in {third}" in p for p in found)
    assert len(found) == 5


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
    with pytest.raises(CheckpointError, match="not readable JSON"):
        read_config(tmp_path)
    config.write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_config(tmp_path)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(CallError, match="model_type 'bert', which is not supported; supported: ll"):
        read_config(tmp_path)
    config.write_text('{"model_type": "llava", "quantization_config": {"bits": 4}}')
    with pytest.raises(CallError, match="quantised"):
        read_config(tmp_path)
    with pytest.raises(CallError, match="a file, not a folder"):
        read_config(config)


def test_default_dtype(
    edited: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())

    def change(tensors: Tensors) -> None:
        for key in tensors:
            if "norm" not in key:
                tensors[key] = tensors[key].astype(np.float16)

    folder = edited(change)
    half, brain, full = np.dtype(np.float16), jnp.dtype(jnp.bfloat16), np.dtype(np.float32)
    silent: dict[str, Any] = {"model_type": "llava"}
    # The file's own dtype: named at the top, with the text model, in either spelling, or not.
    assert resolve_dtype(None, folder, silent | {"dtype": "bfloat16"}) == brain
    assert resolve_dtype(None, folder, silent | {"torch_dtype": "float32"}) == full
    nested = {"text_config": {"torch_dtype": "bfloat16"}}
    assert resolve_dtype(None, folder, silent | nested) == brain
    assert resolve_dtype(None, folder, silent, platform="gpu") == half
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        for platform in ("cpu", "tpu", "cpu"):
            assert resolve_dtype(None, folder, silent, platform=platform) == brain
    assert len(caplog.messages) == 1
    assert "float16" in caplog.messages[0]
    # What is asked for is given.
    assert resolve_dtype("float16", folder, silent, platform="cpu") == half
    assert resolve_dtype(jnp.float32, folder, silent) == full
    for wrong in ("int8", "fp16", jnp.int32, 3):
        with pytest.raises(CallError, match="expected one of float32, bfloat16, float16"):
            resolve_dtype(wrong, folder, silent)  # type: ignore[arg-type]
    with pytest.raises(CallError, match=r"config\.json is 'float8'"):
        resolve_dtype(None, folder, silent | {"dtype": "float8"})
