"""Names and shapes of the published models' parameters, against torch on the meta device.

Configurations as the published files have them, but for the depth: every layer is like the first.
No number is allocated.
"""

from typing import Any

import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForImageTextToText

from resprune_jax.models.families.registry import module_class, read_model_config
from tests.models.families.test_config import INTERLEAVE
from tests.models.families.test_onevision import HUB as ONEVISION

NEXT_72B: dict[str, Any] = {
    "model_type": "llava_next",
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_token_index": 151646,
    "text_config": {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 24576,
                    "max_window_layers": 70, "num_attention_heads": 64, "num_hidden_layers": 80,
                    "num_key_value_heads": 64, "rope_theta": 1000000.0, "vocab_size": 152064,
                    "sliding_window": 32768, "use_sliding_window": False},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                      "intermediate_size": 4096, "num_attention_heads": 16,
                      "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}  # fmt: skip

MODELS = {
    "llava-onevision-qwen2-7b-ov": ONEVISION,
    "llava-interleave-qwen-0.5b": INTERLEAVE,
    "llava-next-72b": NEXT_72B,
}
DEPTH = 3


def shallow(hf: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a few layers of each kind."""
    cut = {"num_hidden_layers": DEPTH}
    return {**hf, **{part: {**hf[part], **cut} for part in ("text_config", "vision_config")}}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_torchs(name: str) -> None:
    hf = shallow(MODELS[name])
    config = read_model_config(hf)
    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0)))
    keys = config.form.keys
    own = {}
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        source = keys.source_of(tuple(map(str, path)), leaf.get_value().shape)
        own[source.key] = tuple(source.stored_shape(config.vision.num_channels))
    kind = hf["model_type"]
    sections = {key: value for key, value in hf.items() if key != "model_type"}
    theirs_config = AutoConfig.for_model(kind, **sections)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(theirs_config)
    theirs = {keys.canonical_key(key): tuple(x.shape) for key, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        assert theirs.pop("lm_head.weight") == theirs["language_model.embed_tokens.weight"]
    blocks = config.vision.num_layers
    unused = {key for key in theirs if keys.is_unused(key, own, blocks) and key not in own}
    assert own == {key: shape for key, shape in theirs.items() if key not in unused}
    print(f"{name}: {len(own)} tensors equal, {len(unused)} unused")
    assert len(own) > 9 * DEPTH
    text, other = config.text, theirs_config.text_config
    assert text.rope_theta == other.rope_parameters["rope_theta"]
    assert text.rms_norm_eps == other.rms_norm_eps
    assert text.head_dim == model.model.language_model.layers[0].self_attn.head_dim
    assert text.max_position_embeddings == other.max_position_embeddings
    assert set(other.layer_types) == {"full_attention"} and text.sliding_window is None
    assert config.vision.layer_norm_eps == theirs_config.vision_config.layer_norm_eps
    assert config.vision.hidden_act == theirs_config.vision_config.hidden_act
