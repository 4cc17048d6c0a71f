"""The pocket models' architectures, as the `config.json` that they ship with."""

from dataclasses import dataclass
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.model import tokenizer
from resprune_jax.experiments.pocket.scenes.parts import PATCH, PRESETS, SceneConfig


@dataclass(frozen=True)
class Recipe:
    """Sizes of a pocket model.

    Attributes:
        scenes: what it looks at.
        vision_width: width of the vision tower.
        vision_layers: its blocks; the last one feeds the projector.
        width: width of the LLM, more than twice the largest budget: tokens of d numbers span d
            dimensions at most, and then nothing would be left to choose by.
        layers: its layers.
        heads: attention heads of both.
    """

    scenes: SceneConfig
    vision_width: int = 192
    vision_layers: int = 6
    vision_heads: int = 6
    width: int = 192
    layers: int = 6
    heads: int = 6
    inner: int = 512

    def hf_config(self) -> dict[str, Any]:
        """The `config.json` of a LLaVA-1.5 checkpoint of these sizes."""
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": tokenizer.IMAGE,
            "image_seq_length": self.scenes.grid**2,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": True,
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": self.vision_width,
                "intermediate_size": 4 * self.vision_width,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.vision_heads,
                "image_size": self.scenes.side,
                "patch_size": PATCH,
                "projection_dim": self.vision_width,
            },
            "text_config": {
                "model_type": "llama",
                "vocab_size": tokenizer.VOCAB_SIZE,
                "hidden_size": self.width,
                "intermediate_size": self.inner,
                "num_hidden_layers": self.layers,
                "num_attention_heads": self.heads,
                "num_key_value_heads": self.heads,
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-5,
                # Words are matched with visual tokens over a hundred places: most channels must
                # turn slowly for that.
                "rope_theta": 1e6,
                "tie_word_embeddings": True,
                "bos_token_id": tokenizer.START,
                "eos_token_id": tokenizer.END,
                "pad_token_id": tokenizer.PAD,
            },
        }


RECIPES = {
    "cpu": Recipe(PRESETS["cpu"]),
    "gpu": Recipe(
        PRESETS["gpu"], width=512, layers=8, heads=8, inner=1280, vision_width=256, vision_heads=8
    ),
}


def recipe(preset: str) -> Recipe:
    """The recipe of a preset.

    Raises:
        CallError: an unknown preset.
    """
    if preset not in RECIPES:
        raise CallError(f"preset={preset!r} is unknown: choose one of {', '.join(RECIPES)}")
    return RECIPES[preset]
