"""Configurations from Hugging Face files: defaults, dialects, refusals."""

from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.towers.config import ClipConfig, SiglipConfig

# Shaped like the published LLaVA-1.5-7B file, which leaves out most fields.
HUB = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}

VICUNA = DecoderConfig(
    vocab_size=32064,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=4096,
)


def changed(section: str | None, **fields: Any) -> dict[str, Any]:
    """HUB with fields of one section replaced."""
    if section is None:
        return {**HUB, **fields}
    return {**HUB, section: {**HUB[section], **fields}}  # type: ignore[dict-item]


def test_the_published_file_takes_the_class_defaults() -> None:
    config = LlavaConfig.from_hf(HUB)
    assert config.text == VICUNA
    assert config.vision == ClipConfig(1024, 4096, 24, 16, 336, 14, 3, 1e-5, "quick_gelu")
    assert (config.num_vision_blocks, config.num_visual_tokens) == (23, 576)
    assert (config.image_token_id, config.projector_act) == (32000, "gelu")
    assert config.projector_bias and not config.tie_word_embeddings
    bare = {key: HUB[key] for key in ("model_type", "text_config")}
    assert LlavaConfig.from_hf(bare) == config


def test_nested_and_flat_rope_settings_agree() -> None:
    nested = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    flat = {"rope_theta": 1000000, "rope_scaling": None}
    thetas = [DecoderConfig.from_hf(hf).rope_theta for hf in (nested, flat, {})]
    assert thetas == [1e6, 1e6, 1e4]
    # A factor of 1 stretches nothing.
    plain = {"rope_scaling": {"type": "linear", "factor": 1.0}}
    assert DecoderConfig.from_hf(plain) == DecoderConfig.from_hf({})


def test_mistral_tells_a_missing_window_from_a_null_one() -> None:
    mistral = {"model_type": "mistral"}
    assert DecoderConfig.from_hf(mistral).sliding_window == 4096
    assert DecoderConfig.from_hf({**mistral, "sliding_window": None}).sliding_window is None
    assert DecoderConfig.from_hf({**mistral, "sliding_window": 7}).sliding_window == 7
    config = DecoderConfig.from_hf(mistral)
    assert (config.num_kv_heads, config.intermediate_size, config.head_dim) == (8, 14336, 128)
    # Llama has no window at all, whatever the file says.
    assert DecoderConfig.from_hf({"sliding_window": 7}).sliding_window is None


# Shaped like the published llava-interleave-qwen-0.5b file.
INTERLEAVE: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 151646,
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816,
                    "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16,
                    "max_window_layers": 21, "tie_word_embeddings": True, "vocab_size": 152000,
                    "rope_theta": 1000000.0},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384,
                      "intermediate_size": 4304, "num_attention_heads": 16,
                      "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}  # fmt: skip


def test_a_siglip_tower_gives_all_its_patches() -> None:
    config = LlavaConfig.from_hf(INTERLEAVE)
    assert config.vision == SiglipConfig(1152, 4304, 26, 16, 384, 14, use_head=False)
    assert (config.vision.layer_norm_eps, config.vision.hidden_act) == (1e-6, "gelu_pytorch_tanh")
    # 384 / 14 leaves a rest that no patch sees.
    assert (config.vision.grid, config.num_visual_tokens, config.num_vision_blocks) == (27, 729, 26)
    assert config.tie_word_embeddings and config.text.qkv_bias
    silent = SiglipConfig.from_hf({})
    assert silent == SiglipConfig(768, 3072, 12, 12, 224, 16, use_head=True)
    assert not SiglipConfig.class_token and ClipConfig.class_token
    for change, words in (
        ({"vision_feature_select_strategy": "default"}, "drops the first patch"),
        ({"vision_feature_select_strategy": "cls"}, "'full'"),
        ({"vision_config": {**INTERLEAVE["vision_config"], "hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": {**INTERLEAVE["vision_config"], "patch_size": 400}}, "one patch"),
    ):
        with pytest.raises(CallError, match=words):
            LlavaConfig.from_hf({**INTERLEAVE, **change})


def test_qwen2_takes_its_class_defaults_and_its_biases() -> None:
    """Equal to transformers' `Qwen2Config()`, and the fields of the published files."""
    config = DecoderConfig.from_hf({"model_type": "qwen2"})
    assert config == DecoderConfig(
        151936, 4096, 22016, 32, 32, 32, 128, rms_norm_eps=1e-6, rope_theta=1e4,
        max_position_embeddings=32768, qkv_bias=True,
    )  # fmt: skip
    # llava-next-72b: the window is written down, but off.
    written = {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 24576,
               "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
               "max_window_layers": 70, "sliding_window": 32768, "use_sliding_window": False,
               "rope_theta": 1000000.0, "vocab_size": 152064}  # fmt: skip
    config = DecoderConfig.from_hf(written)
    assert (config.num_kv_heads, config.head_dim, config.sliding_window) == (8, 128, None)
    # Windows behind the last layer are none; any other is refused.
    fine = {**written, "use_sliding_window": True, "max_window_layers": 80}
    assert DecoderConfig.from_hf(fine) == config
    assert DecoderConfig.from_hf({**fine, "max_window_layers": 3, "sliding_window": None}) == config
    for more in ({}, {"max_window_layers": 0}, {"layer_types": ["full_attention", "odd"]}):
        with pytest.raises(CallError, match="full_attention"):
            DecoderConfig.from_hf({**fine, "max_window_layers": 79, **more})
    del fine["max_window_layers"]  # 28 where the file is silent
    with pytest.raises(CallError, match="full_attention"):
        DecoderConfig.from_hf(fine)


def test_the_placeholder_has_two_spellings() -> None:
    assert LlavaConfig.from_hf({**HUB, "image_token_id": 5}).image_token_id == 32000
    other = {key: value for key, value in HUB.items() if key != "image_token_index"}
    assert LlavaConfig.from_hf({**other, "image_token_id": 5}).image_token_id == 5


def test_tied_embeddings_may_be_said_by_the_text_model_alone() -> None:
    assert LlavaConfig.from_hf(changed("text_config", tie_word_embeddings=True)).tie_word_embeddings
    assert LlavaConfig.from_hf(changed(None, tie_word_embeddings=True)).tie_word_embeddings


def _stored(layer: int | tuple[int, ...]) -> Any:
    """As JSON has it: a list of one layer is that layer."""
    return list(layer) if isinstance(layer, tuple) else layer


def test_feature_layers_count_from_both_ends() -> None:
    layers = {-1: 24, -2: 23, -24: 1, 1: 1, 24: 24, (-2,): 23, (3,): 3}
    found = {
        layer: LlavaConfig.from_hf(
            changed(None, vision_feature_layer=_stored(layer))
        ).num_vision_blocks
        for layer in layers
    }
    assert found == layers


REFUSED: list[tuple[str | None, dict[str, Any], list[str]]] = [
    (None, {"model_type": "llava_next"}, ["llava_next", "'llava'"]),
    (None, {"vision_feature_layer": [-2, -5]}, ["[-2, -5]", "one layer"]),
    (None, {"vision_feature_layer": -25}, ["-25", "1 to 24"]),
    (None, {"vision_feature_layer": 0}, ["vision_feature_layer 0", "1 to 24"]),
    (None, {"vision_feature_select_strategy": "full"}, ["'full'", "'default'"]),
    (None, {"projector_hidden_act": "relu"}, ["'relu'", "'gelu'"]),
    (None, {"text_config": "llama"}, ["text_config", "object"]),
    ("text_config", {"model_type": "gemma"}, ["'gemma'", "'llama'", "'mistral'", "'qwen2'"]),
    ("text_config", {"model_type": "qwen2", "layer_types": ["sliding_attention"]}, ["sliding"]),
    ("text_config", {"hidden_act": "gelu"}, ["'gelu'", "'silu'"]),
    ("text_config", {"attention_bias": True}, ["attention_bias", "True"]),
    ("text_config", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["'dynamic'", "'yarn'"]),
    ("text_config", {"rope_parameters": {"rope_type": "longrope"}}, ["'longrope'", "'llama3'"]),
    ("text_config", {"rope_parameters": {"rope_type": "yarn"}}, ["RoPE factor", "None"]),
    ("text_config", {"rope_scaling": {"type": "linear", "factor": 0.5}}, ["0.5", "at least 1"]),
    ("text_config", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
    ("text_config", {"rope_scaling": [2]}, ["rope_scaling", "object"]),
    ("text_config", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    ("text_config", {"rope_theta": 1}, ["rope_theta", "more than 1"]),
    (
        "text_config",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
        ["full_attention", "all layers"],
    ),
    ("text_config", {"num_key_value_heads": 5}, ["32", "5 key/value heads"]),
    ("text_config", {"rms_norm_eps": None}, ["rms_norm_eps", "None"]),
    ("text_config", {"num_hidden_layers": 0}, ["num_hidden_layers", "at least 1"]),
    ("text_config", {"hidden_size": "4096"}, ["hidden_size", "whole number"]),
    ("text_config", {"hidden_size": 4100}, ["4100", "32 attention heads"]),
    (
        "vision_config",
        {"model_type": "siglip_vision_model"},
        ["'default'", "first patch", "'full'"],
    ),
    ("vision_config", {"model_type": "dinov2"}, ["'dinov2'", "clip_vision_model", "siglip"]),
    ("vision_config", {"hidden_act": "gelu_new"}, ["'gelu_new'", "'quick_gelu'"]),
    ("vision_config", {"image_size": [336, 224]}, ["[336, 224]", "square"]),
    ("vision_config", {"num_channels": 1}, ["num_channels 1", "supported: 3"]),
    ("vision_config", {"num_channels": 5}, ["num_channels 5", "supported: 3"]),
    ("vision_config", {"image_size": 8}, ["image_size 8", "patch_size 14"]),
]


@pytest.mark.parametrize(("section", "fields", "words"), REFUSED)
def test_what_is_not_supported_is_refused_in_one_line(
    section: str | None, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CallError) as caught:
        LlavaConfig.from_hf(changed(section, **fields))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
