"""What is compared with the weights before anything is built: layers, heads, foreign names."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resprune_jax.errors import CallError, RunError
from resprune_jax.models import load_model
from resprune_jax.models.checkpoint.reading import CheckpointError
from resprune_jax.models.families.registry import checkpoint_config
from tests.models.checkpoint.checkpoints import TABLE, Tensors, edit, load

HEAD = "language_model.lm_head.weight"


def change(folder: Path, section: str | None, **entries: Any) -> Path:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    (content if section is None else content[section]).update(entries)
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("layers", [6, 9, 200, 257, 10**6, 10**15])
def test_more_layers_than_the_weights_hold(
    checkpoint: Path, tmp_path: Path, section: str, layers: int
) -> None:
    folder = edit(checkpoint, tmp_path / "a", lambda tensors: None)
    change(folder, section, num_hidden_layers=layers)
    with pytest.raises((CallError, CheckpointError), match=f"{layers}|of {layers - 1} layers"):
        checkpoint_config(folder)


def test_names_of_peft(checkpoint: Path, tmp_path: Path) -> None:
    def prefixed(tensors: Tensors) -> None:
        for key in list(tensors):
            tensors["base_model.model." + key] = tensors.pop(key)

    def beside(tensors: Tensors) -> None:
        tensors["language_model.model.layers.0.mlp.up_proj.lora_A.weight"] = np.zeros((2, 2))

    def inside(tensors: Tensors) -> None:
        key = "language_model.model.layers.0.mlp.up_proj.weight"
        tensors[key.replace(".weight", ".base_layer.weight")] = tensors.pop(key)

    for number, damage in enumerate((prefixed, beside, inside)):
        with pytest.raises(CheckpointError, match=r"names are PEFT's, as .*merge_and_unload"):
            load(edit(checkpoint, tmp_path / str(number), damage))


@pytest.mark.parametrize("factor", [1.0, 1.5, -1.0, 1.0000001])
def test_a_head_that_is_stored_beside_tied_embeddings(
    checkpoint: Path, tmp_path: Path, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts where it differs, as transformers 5 has it, and that is said."""
    folder = edit(
        checkpoint,
        tmp_path / "tied",
        lambda tensors: tensors.update({HEAD: (tensors[TABLE] * np.float32(factor))}),
    )
    change(folder, None, tie_word_embeddings=True)
    with caplog.at_level("WARNING", logger="resprune_jax"):
        _, config = checkpoint_config(folder)
    tensors = load_file(folder / "model.safetensors")
    differs = not np.array_equal(tensors[HEAD], tensors[TABLE])
    assert config.tie_word_embeddings is not differs  # type: ignore[attr-defined]
    assert ("the stored one is used" in caplog.text) is differs


def test_long_lists_are_cut_and_names_escaped(checkpoint: Path, tmp_path: Path) -> None:
    def many(tensors: Tensors) -> None:
        for number in range(300):
            tensors[f"part{number}.\x1b[31mweight\n"] = np.zeros(1, np.float32)
        tensors["x" * 20_000] = np.zeros(1, np.float32)

    with pytest.raises(CheckpointError, match=r"301 unknown: .* and 295 more") as caught:
        load(edit(checkpoint, tmp_path / "many", many))
    assert len(str(caught.value)) <= 450 and str(caught.value).isprintable()


INDEX = "model.safetensors.index.json"


def misplaced(folder: Path, keys: list[str]) -> dict[str, str]:
    """Every tensor in a file that does not hold it."""
    save_file({"a": np.zeros(1, np.float32)}, folder / "other.safetensors")
    return dict.fromkeys(keys, "other.safetensors")


def unlisted(folder: Path, keys: list[str]) -> dict[str, str]:
    """Tensors that the index says nothing of."""
    return {keys[0]: "one.safetensors"}


def ghosts(folder: Path, keys: list[str]) -> dict[str, str]:
    """700 tensors of a file that is not there, under names of a kilobyte."""
    return {f"{number}" + "x" * 1000: "gone.safetensors" for number in range(700)}


def strange(folder: Path, keys: list[str]) -> dict[str, str]:
    """A file each, with control characters in its name."""
    return {key: f"\x1b[31m{key}\n\x07" * 40 for key in keys}


@pytest.mark.parametrize("places", [misplaced, unlisted, ghosts, strange])
def test_what_an_index_says_wrong_is_a_short_line(
    checkpoint: Path, tmp_path: Path, places: Callable[[Path, list[str]], dict[str, str]]
) -> None:
    folder = edit(checkpoint, tmp_path / "own", lambda tensors: None)
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    keys = sorted(load_file(folder / "one.safetensors"))
    (folder / INDEX).write_text(json.dumps({"weight_map": places(folder, keys)}))
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    said = str(caught.value)
    assert str(folder) in said and said.isprintable()
    assert len(said) - len(str(folder)) <= 450


@pytest.mark.parametrize(
    "locked", ["model.safetensors", "config.json", INDEX, "tokenizer.json", "processor_config.json"]
)
def test_a_file_that_only_its_owner_may_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    if locked == INDEX:
        places = dict.fromkeys(load_file(folder / "model.safetensors"), "one.safetensors")
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    assert (folder / locked).is_file()
    real = Path.open

    def refuse(self: Path, *args: Any, **named: Any) -> Any:
        if self.name == locked:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **named)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=rf"{re.escape(locked)} cannot be read: permission denied"):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_headers_of_impossible_length(checkpoint: Path, tmp_path: Path, length: int) -> None:
    folder = edit(checkpoint, tmp_path / "odd", lambda tensors: None)
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + raw[8:])
    said = re.escape(f"is truncated or corrupt (its header would have {length} bytes)")
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_saving_keeps_what_a_stored_head_says(checkpoint: Path, tmp_path: Path) -> None:
    """A head of another shape is no head of this model."""
    folder = edit(checkpoint, tmp_path / "odd", lambda tensors: None)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, HEAD: tensors[TABLE][:-1].copy()}, folder / "model.safetensors")
    change(folder, None, tie_word_embeddings=True)
    assert checkpoint_config(folder)[1].tie_word_embeddings  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="tied: "):
        load(folder)
