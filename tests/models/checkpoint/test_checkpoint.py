"""Loading and saving checkpoints: every dialect, every dtype, here and in torch."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file
from transformers import LlavaForConditionalGeneration

from resprune_jax import errors
from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.reading import CheckpointError, load_parameters, resolve_dtype
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.registry import read_config, save_checkpoint
from tests.checkpoints.joined import LAYERS, joined
from tests.checkpoints.llava import DIALECTS, rename_dialect
from tests.models.checkpoint.checkpoints import QUERY, Tensors, abstract, edit, flat, load


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
    return lambda change, name="edited": edit(checkpoint, tmp_path / name, change)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_torchs_tensors(
    checkpoint: Path, reference: Any, tmp_path: Path, dialect: str, shards: int
) -> None:
    folder = rename_dialect(checkpoint, tmp_path / "renamed", dialect, shards=shards)
    got, wanted = flat(load(folder)), expected(reference)
    theirs = {k.removeprefix("model."): v.numpy() for k, v in reference.state_dict().items()}
    for path in [path for path in got if path[-2] in LAYERS]:
        wanted[path] = joined(theirs, path, got[path].shape)
        leaf = "kernel" if path[-1] == "weight" else "bias"
        for name in LAYERS[path[-2]]:
            del wanted[(*path[:-2], name, leaf)]
    unused = {path for path in wanted if path not in got}
    # Block 3 of 4 is behind the feature layer -2.
    assert all(path[1] == "post_layernorm" or path[:4] == (*path[:3], 3) for path in unused)
    assert len(unused) == 16 - 6 + 2  # its queries and keys are read
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
    both = flat(load(folder, asked))[
        "language_model", "layers", 1, "self_attn", "qkv_proj", "weight"
    ]
    raw = load_file(folder / "model.safetensors")[QUERY]
    queries = both[:, :-2].reshape(raw.shape)
    if stored == np.float64:  # JAX itself has no float64 here
        raw = raw.astype(np.float32)
    np.testing.assert_array_equal(queries, np.asarray(jnp.asarray(raw).astype(asked)), strict=True)


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
    # A number or an array is no dtype, though it has one.
    numbers = (np.float32(-2), np.zeros(3, np.float32), jnp.float32(1), np.zeros(()))
    for wrong in ("int8", "fp16", jnp.int32, 3, *numbers):
        with pytest.raises(CallError, match="expected one of float32, bfloat16, float16"):
            resolve_dtype(wrong, folder, silent)  # type: ignore[arg-type]
    with pytest.raises(CallError, match=r"config\.json is 'float8'"):
        resolve_dtype(None, folder, silent | {"dtype": "float8"})
