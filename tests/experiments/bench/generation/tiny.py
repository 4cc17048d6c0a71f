"""A tiny model for the generation benchmark."""

from copy import deepcopy
from typing import Any

from resprune_jax.experiments.bench.generation import model as bench_model

TINY: dict[str, Any] = deepcopy(bench_model.SMALL)
TINY["vision_config"] |= {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 56, "projection_dim": 32,
}  # fmt: skip
TINY["text_config"] |= {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 160,
}  # fmt: skip
