"""The table of public checkpoints: at full width, every parameter by name and shape as torch's."""

import json
from typing import Any

import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForImageTextToText

from resprune_jax.models.families.registry import module_class, read_model_config
from tests.parity.public_checkpoints import DOCUMENT, ROOT, ROWS, Public, document, refusal

LOADS = [row for row in ROWS if row.parity]
DEPTHS = ("num_hidden_layers", "depth", "max_window_layers")


def shallow(config: Any, layers: int) -> Any:
    """The file with so many layers in both parts; all others are as wide as the first."""
    made = {}
    for key, value in config.items():
        own = shallow(value, layers) if isinstance(value, dict) else value
        made[key] = layers if key in DEPTHS else own
    if "model_type" in made and made["model_type"] in ("llama", "mistral", "qwen2"):
        made["num_hidden_layers"] = layers
    return made


@pytest.mark.parametrize("row", LOADS, ids=lambda row: row.names.split(", ")[0].split("/")[-1])
def test_every_parameter_has_torch_s_name_and_shape(row: Public) -> None:
    hf = shallow(json.loads(json.dumps(row.config)), 2)
    config: Any = read_model_config(hf)
    made, keys = module_class(config), config.form.keys
    flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0)))))
    got = {}
    for path, leaf in flat:
        for source in keys.sources_of(tuple(map(str, path)), leaf.get_value().shape):
            got[source.key] = tuple(source.stored_shape(3))
    kind = hf.pop("model_type")
    reference = AutoConfig.for_model(kind, **hf)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(reference)
    state = model.state_dict()
    want = {keys.canonical_key(name): tuple(tensor.shape) for name, tensor in state.items()}
    if config.tie_word_embeddings:
        want.pop("lm_head.weight", None)
    rest = set(want) - set(got)
    assert all(keys.is_unused(key, got, config.vision.num_layers) for key in rest), rest
    assert got == {key: want[key] for key in got}

    # What shapes do not show, at full depth.
    full: Any = read_model_config(row.config)
    raw = {key: value for key, value in row.config.items() if key != "model_type"}
    there = AutoConfig.for_model(kind, **json.loads(json.dumps(raw)))
    text = there.get_text_config()
    assert full.text.num_layers == text.num_hidden_layers
    assert full.text.num_heads == text.num_attention_heads
    assert full.text.num_kv_heads == text.num_key_value_heads
    assert full.text.rms_norm_eps == text.rms_norm_eps
    assert full.text.max_position_embeddings == text.max_position_embeddings
    assert full.text.rope_theta == text.rope_parameters["rope_theta"]
    assert (full.text.rope_scaling is None) == (text.rope_parameters["rope_type"] == "default")
    window = getattr(text, "sliding_window", None)
    assert full.text.sliding_window == (window if text.model_type == "mistral" else None)
    assert full.vision.num_layers == there.vision_config.num_hidden_layers
    assert full.tie_word_embeddings == there.tie_word_embeddings


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names.split(", ")[0].split("/")[-1])
def test_what_loads_names_its_parity_and_what_is_refused_has_none(row: Public) -> None:
    assert (refusal(row.config) is None) == bool(row.parity), refusal(row.config)
    for name in row.parity:
        assert (ROOT / "tests" / "parity" / name).is_file(), name


def test_the_document_holds_this_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == document(text), "run python -m tests.parity.public_checkpoints"
