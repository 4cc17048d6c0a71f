"""Published models of 7 billion parameters, and what each is asked."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A published model and what it is asked.

    Attributes:
        hf: its `config.json`, as far as sizes go.
        size: (height, width) of an image in pixels.
        keep: the budget of pruned prompts.
    """

    hf: dict[str, Any]
    size: tuple[int, int]
    keep: int | float


_VICUNA: dict[str, Any] = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
}
_QWEN2: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
}
"""Language models that several of them share, as far as they do."""

CASES: dict[str, Case] = {
    # llava-hf/llava-1.5-7b-hf; the class defaults give what its file leaves out.
    "llava-1.5-7b": Case(
        {
            "model_type": "llava",
            "text_config": _VICUNA,
        },
        size=(336, 336),
        keep=128,
    ),
    # Qwen/Qwen2.5-VL-7B-Instruct, an image of 1024x1024 pixels as its processor resizes it, a third
    # of its tokens kept.
    "qwen2.5-vl-7b": Case(
        {
            "model_type": "qwen2_5_vl",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "tokens_per_second": 2,
            },
            **_QWEN2,
            "vocab_size": 152064,
            "max_position_embeddings": 128000,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        size=(1036, 1036),
        keep=1 / 3,
    ),
    # Qwen/Qwen2-VL-7B-Instruct: the same language model and pictures behind the plainer tower.
    "qwen2-vl-7b": Case(
        {
            "model_type": "qwen2_vl",
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584},
            **_QWEN2,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        size=(1036, 1036),
        keep=1 / 3,
    ),
    # llava-hf/llava-v1.6-vicuna-7b-hf, a picture of four tiles.
    "llava-next-7b": Case(
        {
            "model_type": "llava_next",
            "text_config": _VICUNA,
        },
        size=(672, 672),
        keep=1 / 3,
    ),
    # llava-hf/llava-onevision-qwen2-7b-ov-hf, a picture of four tiles.
    "llava-onevision-7b": Case(
        {
            "model_type": "llava_onevision",
            "text_config": {
                **_QWEN2,
                "model_type": "qwen2",
                "vocab_size": 152128,
                "max_position_embeddings": 32768,
            },
        },
        size=(768, 768),
        keep=1 / 3,
    ),
}
