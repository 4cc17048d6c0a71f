"""The formats of the families: each loads its own dialects, saves them, and refuses the others'."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Qwen2_5_VLForConditionalGeneration

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.reading import CheckpointError, load_parameters
from resprune_jax.models.families.registry import (
    FAMILIES,
    family_class,
    read_config,
    save_checkpoint,
)
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.qwen_vl import DIALECTS, rename_dialect
from tests.parity.qwen.pairs import pair


def abstract(directory: Path, kind: str | None = None) -> Any:
    """The module of a checkpoint folder, or of another family at that folder's sizes."""
    raw = read_config(directory)
    kind = raw["model_type"] if kind is None else kind
    config = FAMILIES[kind].config_class.from_hf(raw | {"model_type": kind})
    return nnx.eval_shape(lambda: FAMILIES[kind].module_class(config, rngs=nnx.Rngs(0)))


def equal(left: Any, right: Any) -> int:
    """How many parameters two states hold, bit for bit the same."""
    pairs = list(zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine, theirs, strict=True)
    return len(pairs)


def test_every_family_has_its_format(tmp_path: Path) -> None:
    known = ["llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl"]
    assert sorted(FAMILIES) == known
    for kind, family in FAMILIES.items():
        assert family.config_class.form.model_type == kind
        text = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
        made = family.config_class.from_hf({"model_type": kind, "text_config": text})
        assert family_class(made) is family
    with pytest.raises(CallError, match=r"'bert' is not .* supported: 'llava', 'llava_next', 'qw"):
        save_checkpoint(tmp_path, {"model_type": "bert"}, nnx.State({}))
    for kind, names in (("llava_next", "hub, v4.52"), ("qwen2_5_vl", "hub, v5-memory")):
        with pytest.raises(CallError, match=f"dialect is 'mine', expected one of {names}"):
            hf = {"model_type": kind, "text_config": text}
            save_checkpoint(tmp_path, hf, nnx.State({}), dialect="mine")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", ["untied", "tied"])
def test_qwen_loads_by_the_common_loader(variant: str, dialect: str, tmp_path: Path) -> None:
    models = pair(variant)
    folder = rename_dialect(models.directory, tmp_path, dialect)
    got = load_parameters(folder, abstract(folder), dtype=None)
    print(f"{variant}, {dialect}: {equal(got, models.port()[1])} parameters bit-equal")


@pytest.mark.parametrize("dialect", ["hub", "v5-memory"])
def test_a_saved_qwen_loads_here_and_in_torch(dialect: str, tmp_path: Path) -> None:
    models = pair("untied")
    _, state = models.port()
    folder = save_checkpoint(tmp_path, read_config(models.directory), state, dialect=dialect)
    equal(load_parameters(folder, abstract(folder), dtype=None), state)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert {name: list(keys) for name, keys in report.items() if keys} == {}
    wanted = models.torch_model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    print(f"{dialect}: {len(wanted)} tensors bit-equal in torch")


def test_a_mesh_shards_the_new_families_parameters(tmp_path: Path) -> None:
    mesh = jax.make_mesh((1,), ("model",))
    for folder in (tiny_next(tmp_path / "next", variant="mistral"), pair("tied").directory):
        plain = load_parameters(folder, abstract(folder), dtype=jnp.bfloat16)
        equal(load_parameters(folder, abstract(folder), dtype=jnp.bfloat16, mesh=mesh), plain)


def test_a_checkpoint_of_another_family_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tiny_next(tmp_path)
    with pytest.raises(CheckpointError, match="1 unknown: image_newline"):
        load_parameters(folder, abstract(folder, "llava"), dtype=None)
    with pytest.raises(CheckpointError, match="1 missing: image_newline"):
        load_parameters(checkpoint, abstract(checkpoint, "llava_next"), dtype=None)
    with pytest.raises(CheckpointError, match=r"missing: .*visual\..* unknown: .*multi_"):
        load_parameters(checkpoint, abstract(pair("untied").directory), dtype=None)
