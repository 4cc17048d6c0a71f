"""Configuration of LLaVA-1.5: a frozen dataclass read from a Hugging Face `config.json`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours: the published files leave out most of them. A setting that the port does not
implement is refused by one `CallError` that names the value and what is supported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from resprune_jax.models.checkpoint.fields import one_of, section, token_id
from resprune_jax.models.checkpoint.formats import CheckpointFormat
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava import names
from resprune_jax.models.towers.config import VisionConfig, read_vision, vision_blocks

PROJECTOR_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")

# What LLaVA takes for a vision configuration that is not in the file at all.
LLAVA_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA-1.5 or llava-interleave model: vision tower, projector and language model.

    Attributes:
        vision: the vision tower.
        text: the language model.
        num_vision_blocks: vision blocks that run; the last of them feeds the projector and, where
            there is a class token, gives its attention. Hugging Face's `vision_feature_layer` -2 of
            24 blocks makes it 23.
        image_token_id: id of the placeholder token of the tokenizer.
        projector_act: activation between the projector's layers, one of `PROJECTOR_ACTIVATIONS`;
            "gelu" is the exact one.
        projector_bias: whether the projector's layers carry a bias.
        tie_word_embeddings: logits come from the embedding table; there is no `lm_head`.
    """

    form: ClassVar = CheckpointFormat("llava", "LlavaForConditionalGeneration", names)

    vision: VisionConfig
    text: DecoderConfig
    num_vision_blocks: int
    image_token_id: int = 32000
    projector_act: str = "gelu"
    projector_bias: bool = True
    tie_word_embeddings: bool = False

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of one image, N."""
        return self.vision.num_patches

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "LlavaConfig":
        """Read the `config.json` of a LLaVA-1.5 checkpoint.

        Args:
            hf: the parsed file.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults.

        Raises:
            CallError: a setting that the port does not support, named with what is supported.
        """
        one_of("model type", hf.get("model_type", "llava"), ("llava",))
        strategy = hf.get("vision_feature_select_strategy", "default")
        vision = read_vision(section(hf, "vision_config", LLAVA_VISION), strategy)
        text_hf = section(hf, "text_config", {})
        # Both spellings are in the wild; the first is LLaVA's own.
        image_token = hf.get("image_token_index", hf.get("image_token_id", 32000))
        # Old files keep the flag with the text model only.
        tied = bool(hf.get("tie_word_embeddings") or text_hf.get("tie_word_embeddings"))
        return cls(
            vision=vision,
            text=DecoderConfig.from_hf(text_hf),
            num_vision_blocks=vision_blocks(hf.get("vision_feature_layer", -2), vision.num_layers),
            image_token_id=token_id("image_token_index", image_token),
            projector_act=one_of(
                "projector_hidden_act",
                hf.get("projector_hidden_act", "gelu"),
                PROJECTOR_ACTIVATIONS,
            ),
            projector_bias=bool(hf.get("multimodal_projector_bias", True)),
            tie_word_embeddings=tied,
        )
