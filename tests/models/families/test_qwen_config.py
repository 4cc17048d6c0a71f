"""Configurations of Qwen2.5-VL: the published layout, the nested one, refusals."""

from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.qwen_vl.config import Qwen2VLConfig, Qwen25VLConfig
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig

# Shaped like the published Qwen2.5-VL-7B file: the text model's fields lie at the top.
HUB: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}

VISION = QwenVisionConfig(
    hidden_size=1280,
    intermediate_size=3420,
    num_layers=32,
    num_heads=16,
    out_hidden_size=3584,
    tokens_per_second=2.0,
)
TEXT = DecoderConfig(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=128000,
    qkv_bias=True,
)
_ABOVE = ("architectures", "model_type", "vision_config", "image_token_id", "video_token_id",
          "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings")  # fmt: skip


def nested() -> dict[str, Any]:
    """The same model as version 5 of transformers writes it."""
    text = {key: value for key, value in HUB.items() if key not in _ABOVE}
    text.pop("rope_scaling"), text.pop("rope_theta")
    text["model_type"] = "qwen2_5_vl_text"
    text["layer_types"] = ["full_attention"] * 28
    text["rope_parameters"] = {
        "type": "mrope", "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24],
    }  # fmt: skip
    vision = {**HUB["vision_config"], "model_type": "qwen2_5_vl_vision",
              "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}  # fmt: skip
    return {
        **{key: HUB[key] for key in _ABOVE}, "text_config": text, "vision_config": vision,
    }  # fmt: skip


def test_the_published_file() -> None:
    config = Qwen25VLConfig.from_hf(HUB)
    assert (config.vision, config.text) == (VISION, TEXT)
    assert config.mrope_section == (16, 24, 24) and not config.tie_word_embeddings
    ids = (config.image_token_id, config.video_token_id, config.vision_start_token_id)
    assert ids == (151655, 151656, 151652)


def test_the_nested_layout_says_the_same() -> None:
    assert Qwen25VLConfig.from_hf(nested()) == Qwen25VLConfig.from_hf(HUB)


def test_derived_sizes() -> None:
    assert (VISION.head_dim, VISION.patch_values, VISION.merge_unit) == (80, 1176, 4)
    assert (VISION.window_cells, VISION.window_patches, VISION.pixel_factor) == (4, 64, 28)


def test_a_tied_head_is_found_in_either_place() -> None:
    assert Qwen25VLConfig.from_hf({**HUB, "tie_word_embeddings": True}).tie_word_embeddings
    old = nested()
    old["text_config"]["tie_word_embeddings"] = True
    assert Qwen25VLConfig.from_hf(old).tie_word_embeddings


def test_a_silent_file_takes_the_class_defaults() -> None:
    config = Qwen25VLConfig.from_hf(
        {"vision_config": {"out_hidden_size": 8192}, "rope_scaling": None}
    )
    assert config.vision.num_layers == 32 and config.vision.tokens_per_second == 4
    assert (config.text.num_layers, config.text.num_kv_heads, config.text.rms_norm_eps) == (
        80, 8, 1e-5,
    )  # fmt: skip
    assert config.text.rope_theta == 1e6 and config.mrope_section == (16, 24, 24)


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        (None, {"model_type": "qwen2_vl"}, "model type 'qwen2_vl' is not supported"),
        (None, {"hidden_act": "gelu"}, "text hidden_act 'gelu'"),
        (None, {"use_sliding_window": True, "max_window_layers": 20}, "sliding_attention"),
        (None, {"rope_scaling": {"type": "yarn"}}, "RoPE factor is None"),
        (None, {"rope_scaling": {"type": "longrope"}}, "RoPE type 'longrope'"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24]}}, "three numbers"),
        (None, {"rope_scaling": {"type": "mrope", "mrope_section": [16, 16, 16]}}, "has 64"),
        (None, {"num_attention_heads": 27}, "not a multiple of the 27 attention heads"),
        (None, {"head_dim": 64}, "text head_dim 64"),
        ("vision_config", {"out_hidden_size": 2048}, "out_hidden_size 2048 is not the language"),
        ("vision_config", {"hidden_act": "gelu"}, "vision hidden_act 'gelu'"),
        ("vision_config", {"spatial_merge_size": 3}, "spatial_merge_size 3 is not supported"),
        ("vision_config", {"window_size": 14}, "smaller than one merged cell"),
        ("vision_config", {"fullatt_block_indexes": 7}, "expected a list of numbers"),
        ("vision_config", {"hidden_size": 32, "num_heads": 16}, "2-D rotation"),
        ("vision_config", {"depth": 0}, "vision depth is 0"),
        ("vision_config", {"in_channels": 4}, "in_channels 4 is not supported; supported: 3"),
        ("vision_config", {"window_size": 2240}, "window_size is 2240, expected .* at most 1024"),
    ],
)
def test_what_the_port_does_not_do_is_refused(
    section: str | None, fields: dict[str, Any], said: str
) -> None:
    hf = {**HUB, **fields} if section is None else {**HUB, section: {**HUB[section], **fields}}
    with pytest.raises(CallError, match=said):
        Qwen25VLConfig.from_hf(hf)


def test_windows_that_no_layer_has_are_no_reason_to_refuse() -> None:
    hf = {**HUB, "use_sliding_window": True}  # from layer 28 of 28 on
    assert Qwen25VLConfig.from_hf(hf).text == TEXT


QWEN2 = {
    **{key: value for key, value in HUB.items() if key != "vision_config"},
    "model_type": "qwen2_vl",
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
        "hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip


def test_qwen2_vl_has_another_tower() -> None:
    config = Qwen2VLConfig.from_hf(QWEN2)
    vision = config.vision
    assert type(config) is Qwen2VLConfig and config.text == Qwen25VLConfig.from_hf(HUB).text
    assert (vision.hidden_size, vision.intermediate_size, vision.out_hidden_size) == (
        1280, 5120, 3584,
    )  # fmt: skip
    assert vision.full_attention_blocks == tuple(range(32)) and not vision.gated
    assert vision.tokens_per_second is None
    # As transformers saves it.
    tower = {**QWEN2["vision_config"], "model_type": "qwen2_vl_vision"}
    assert Qwen2VLConfig.from_hf({**QWEN2, "vision_config": tower}) == config


@pytest.mark.parametrize(
    ("section", "fields", "said"),
    [
        (None, {"model_type": "qwen2_5_vl"}, "model type 'qwen2_5_vl' is not supported"),
        ("vision_config", {"hidden_act": "silu"}, "vision hidden_act 'silu'"),
        ("vision_config", {"hidden_size": 1536}, "out_hidden_size 1536 is not the language"),
        ("vision_config", {"embed_dim": 0}, "vision embed_dim is 0"),
        ("vision_config", {"in_channels": 1}, "in_channels 1 is not supported; supported: 3"),
        ("vision_config", {"mlp_ratio": "4"}, "vision mlp_ratio is '4'"),
        ("vision_config", {"model_type": "qwen2_5_vl"}, "vision model type 'qwen2_5_vl'"),
    ],
)
def test_what_qwen2_vl_does_not_do_is_refused(
    section: str | None, fields: dict[str, Any], said: str
) -> None:
    vision = QWEN2["vision_config"]
    hf = {**QWEN2, **fields} if section is None else {**QWEN2, section: {**vision, **fields}}
    with pytest.raises(CallError, match=said):
        Qwen2VLConfig.from_hf(hf)
