"""Published `config.json` files as far as the architecture goes, and those of families not taken.

Written from the repositories' own files: what such a file leaves out is left out here too.
"""

from typing import Any

CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
    "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
    "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
SO400M: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384,
    "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
    "patch_size": 14,
}  # fmt: skip
PINS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]

VICUNA_7B = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
             "vocab_size": 32064}  # fmt: skip
VICUNA_13B = {**VICUNA_7B, "hidden_size": 5120, "intermediate_size": 13824,
              "num_attention_heads": 40, "num_hidden_layers": 40,
              "num_key_value_heads": 40}  # fmt: skip
MISTRAL = {"model_type": "mistral", "intermediate_size": 14336, "max_position_embeddings": 32768,
           "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 32064}  # fmt: skip
LLAMA3 = {"model_type": "llama", "intermediate_size": 14336, "max_position_embeddings": 8192,
          "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
          "vocab_size": 128320}  # fmt: skip
YI_34B = {"model_type": "llama", "hidden_size": 7168, "intermediate_size": 20480,
          "max_position_embeddings": 4096, "num_attention_heads": 56, "num_hidden_layers": 60,
          "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 5000000.0,
          "vocab_size": 64064}  # fmt: skip
LLAMA31 = {**LLAMA3, "max_position_embeddings": 131072, "vocab_size": 128256,
           "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                            "original_max_position_embeddings": 8192,
                            "rope_type": "llama3"}}  # fmt: skip
QWEN2_SMALL = {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
               "max_position_embeddings": 32768, "num_attention_heads": 14,
               "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
               "rope_theta": 1000000.0, "tie_word_embeddings": True,
               "vocab_size": 152000}  # fmt: skip
QWEN15_SMALL = {**QWEN2_SMALL, "hidden_size": 1024, "intermediate_size": 2816,
                "num_attention_heads": 16, "num_key_value_heads": 16}  # fmt: skip
QWEN2_7B = {**QWEN2_SMALL, "hidden_size": 3584, "intermediate_size": 18944,
            "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
            "tie_word_embeddings": False}  # fmt: skip
QWEN15_7B = {**QWEN2_7B, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32,
             "num_hidden_layers": 32, "num_key_value_heads": 32}  # fmt: skip
QWEN2_72B = {**QWEN2_7B, "hidden_size": 8192, "intermediate_size": 29568,
             "num_attention_heads": 64, "num_hidden_layers": 80,
             "num_key_value_heads": 8}  # fmt: skip
QWEN15_72B = {**QWEN2_72B, "intermediate_size": 24576, "num_key_value_heads": 64,
              "rms_norm_eps": 1e-5}  # fmt: skip
QWEN15_110B = {**QWEN2_72B, "intermediate_size": 49152, "rms_norm_eps": 1e-5}
LAST_BLOCK: dict[str, Any] = {
    "vision_config": {**SO400M, "num_hidden_layers": 26, "vision_use_head": False},
    "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
}  # fmt: skip


def llava(text: dict[str, Any], token: int = 32000, **more: Any) -> dict[str, Any]:
    """A LLaVA-1.5 file."""
    return {
        "model_type": "llava", "image_token_index": token, "projector_hidden_act": "gelu",
        "text_config": text, "vision_config": CLIP, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default", **more,
    }  # fmt: skip


def llava_next(text: dict[str, Any], token: int = 32000, **more: Any) -> dict[str, Any]:
    """A LLaVA-NeXT file."""
    own = {"model_type": "llava_next", "image_grid_pinpoints": PINS, "use_image_newline_parameter":
           True, "tie_word_embeddings": False}  # fmt: skip
    return {**llava(text, token), **own, **more}


def onevision(text: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A LLaVA-OneVision file: every plane of one to six tiles a side."""
    sides = [384 * number for number in range(1, 7)]
    return {
        **llava(text, 151646), "model_type": "llava_onevision", "video_token_index": 151647,
        "image_grid_pinpoints": [[height, width] for height in sides for width in sides],
        "vision_aspect_ratio": "anyres_max_9", **LAST_BLOCK, **more,
    }  # fmt: skip


def qwen(
    family: str,
    width: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    vision: dict[str, Any],
    *,
    tied: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A Qwen file, the text model's fields at the top."""
    return {
        "model_type": family, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "vocab_size": 151936 if tied else 152064,
        "max_position_embeddings": 32768 if family == "qwen2_vl" else 128000,
        "max_window_layers": layers, "use_sliding_window": False, "sliding_window": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": tied,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "vision_config": vision, **more,
    }  # fmt: skip


def window_tower(out: int, inner: int = 3420) -> dict[str, Any]:
    """Qwen2.5-VL's `vision_config`."""
    return {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": inner,
        "num_heads": 16, "in_chans": 3, "out_hidden_size": out, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    }  # fmt: skip


def plain_tower(out: int) -> dict[str, Any]:
    """Qwen2-VL's `vision_config`."""
    return {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3,
        "hidden_size": out, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }  # fmt: skip


QWEN25_7B = qwen("qwen2_5_vl", 3584, 18944, 28, (28, 4), window_tower(3584))
YARN = {"type": "yarn", "mrope_section": [16, 24, 24], "factor": 4,
        "original_max_position_embeddings": 32768}  # fmt: skip
