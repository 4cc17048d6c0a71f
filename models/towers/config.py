"""The vision towers' configurations, read from the vision part of a `config.json`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.fields import divides, number, one_of, side, size, whole

CLIP_ACTIVATIONS = ("quick_gelu", "gelu")

_VISION_TYPES = ("clip_vision_model",)


@dataclass(frozen=True)
class ClipConfig:
    """The CLIP vision tower.

    Attributes:
        hidden_size: width v of the features.
        intermediate_size: width of the MLP's hidden layer.
        num_layers: blocks in the checkpoint; the port holds only those it runs.
        num_heads: attention heads.
        image_size: side of the square input, in pixels.
        patch_size: side of a patch, in pixels.
        num_channels: colour channels.
        layer_norm_eps: epsilon of every layer norm.
        hidden_act: activation of the MLP, one of `CLIP_ACTIVATIONS`.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image, N."""
        return self.grid**2

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ClipConfig":
        """Read a `clip_vision_model` configuration.

        Args:
            hf: the parsed `vision_config`.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults.

        Raises:
            CallError: a model type, activation or size that the port does not support.
        """
        one_of("vision model type", hf.get("model_type", "clip_vision_model"), _VISION_TYPES)
        config = cls(
            hidden_size=size("vision hidden_size", hf.get("hidden_size", 768)),
            intermediate_size=size("vision intermediate_size", hf.get("intermediate_size", 3072)),
            num_layers=size("vision num_hidden_layers", hf.get("num_hidden_layers", 12)),
            num_heads=size("vision num_attention_heads", hf.get("num_attention_heads", 12)),
            image_size=side("vision image_size", hf.get("image_size", 224)),
            patch_size=side("vision patch_size", hf.get("patch_size", 32)),
            num_channels=size("vision num_channels", hf.get("num_channels", 3)),
            layer_norm_eps=number("vision layer_norm_eps", hf.get("layer_norm_eps", 1e-5)),
            hidden_act=one_of(
                "vision hidden_act", hf.get("hidden_act", "quick_gelu"), CLIP_ACTIVATIONS
            ),
        )
        divides("vision hidden_size", config.hidden_size, "attention heads", config.num_heads)
        if config.image_size < config.patch_size:
            raise CallError(
                f"vision image_size {config.image_size} is smaller than patch_size "
                f"{config.patch_size}: an image must hold at least one patch"
            )
        return config


def vision_blocks(layer: Any, num_layers: int) -> int:
    """How many vision blocks run so that Hugging Face's `hidden_states[layer]` comes out."""
    if isinstance(layer, Sequence) and not isinstance(layer, str):
        raise CallError(
            f"vision_feature_layer {list(layer)} joins several layers; supported is one layer as a "
            "whole number, like -2"
        )
    layer = whole("vision_feature_layer", layer)
    # hidden_states has num_layers + 1 entries; entry i is the output of i blocks.
    blocks = layer + num_layers + 1 if layer < 0 else layer
    if not 1 <= blocks <= num_layers:
        raise CallError(
            f"vision_feature_layer {layer} does not name the output of a block: supported are 1 to "
            f"{num_layers} and -{num_layers} to -1, for this tower of {num_layers} blocks"
        )
    return blocks
