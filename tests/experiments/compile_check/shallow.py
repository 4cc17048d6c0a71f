"""Published models with few layers, each as wide as in the original."""

from typing import Any

from resprune_jax.experiments.compile_check.cases import CASES
from resprune_jax.models.families.onevision.config import ONEVISION_VISION


def shallow(name: str, layers: int, blocks: int = 2) -> dict[str, Any]:
    """A configuration.

    Args:
        name: of a model of `CASES`.
        layers: of its decoder.
        blocks: of its vision tower.
    """
    hf = CASES[name].hf
    if name.startswith("llava-onevision"):
        tower = ONEVISION_VISION | {"num_hidden_layers": blocks}
        text = hf["text_config"] | {"num_hidden_layers": layers}
        return hf | {"text_config": text, "vision_config": tower}
    if name.startswith("llava"):
        return hf | {
            "text_config": hf["text_config"] | {"num_hidden_layers": layers},
            # What the published file leaves out is not the tower's own default.
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": blocks,
                "image_size": 336,
                "patch_size": 14,
                "projection_dim": 768,
            },
        }
    tower = hf["vision_config"] | {"depth": blocks, "fullatt_block_indexes": [1]}
    return hf | {"num_hidden_layers": layers, "vision_config": tower}
