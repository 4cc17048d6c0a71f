"""The vision towers' configurations, read from the vision part of a `config.json`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint.fields import (
    divides,
    layers,
    number,
    one_of,
    side,
    size,
    whole,
)

CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
SIGLIP_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "quick_gelu")


@dataclass(frozen=True)
class ClipConfig:
    """The CLIP vision tower.

    Attributes:
        class_token: a token in front of the patches stands for the whole picture.
        strategy: `vision_feature_select_strategy` that gives the patches alone.
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

    model_type: ClassVar = "clip_vision_model"
    class_token: ClassVar = True
    strategy: ClassVar = "default"

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
        one_of("vision model type", hf.get("model_type", cls.model_type), (cls.model_type,))
        sizes = _sizes(hf, patch=32)
        return cls(
            **sizes,
            layer_norm_eps=number("vision layer_norm_eps", hf.get("layer_norm_eps", 1e-5)),
            hidden_act=one_of(
                "vision hidden_act", hf.get("hidden_act", "quick_gelu"), CLIP_ACTIVATIONS
            ),
        )


@dataclass(frozen=True)
class SiglipConfig:
    """The SigLIP vision tower: no class token, no norm in front, patches with a bias.

    Attributes:
        use_head: the checkpoint's tower ends in a pooling head, which nothing here reads.

    The others are those of `ClipConfig`, under the same names.
    """

    model_type: ClassVar = "siglip_vision_model"
    class_token: ClassVar = False
    strategy: ClassVar = "full"

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    use_head: bool = True

    @property
    def grid(self) -> int:
        """Patches along one side of the image; a rest narrower than a patch is not seen."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image, N."""
        return self.grid**2

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "SiglipConfig":
        """Read a `siglip_vision_model` configuration; as `ClipConfig.from_hf`."""
        one_of("vision model type", hf.get("model_type", cls.model_type), (cls.model_type,))
        sizes = _sizes(hf, patch=16)
        return cls(
            **sizes,
            layer_norm_eps=number("vision layer_norm_eps", hf.get("layer_norm_eps", 1e-6)),
            hidden_act=one_of(
                "vision hidden_act", hf.get("hidden_act", "gelu_pytorch_tanh"), SIGLIP_ACTIVATIONS
            ),
            use_head=bool(hf.get("vision_use_head", True)),
        )


VisionConfig = ClipConfig | SiglipConfig
"""Towers that take square pictures and give a grid of patches."""

TOWERS: dict[str, type[ClipConfig] | type[SiglipConfig]] = {
    kind.model_type: kind for kind in (ClipConfig, SiglipConfig)
}
"""By the `model_type` of a `vision_config`."""


def read_vision(hf: Mapping[str, Any], strategy: Any) -> VisionConfig:
    """The configuration of a tower of square pictures.

    Args:
        hf: the parsed `vision_config`; without a `model_type`, CLIP's.
        strategy: the file's `vision_feature_select_strategy`.

    Raises:
        CallError: a model type, activation, size or strategy that the port does not support.
    """
    kind = one_of("vision model type", hf.get("model_type", ClipConfig.model_type), tuple(TOWERS))
    config = TOWERS[kind].from_hf(hf)
    if strategy != config.strategy:
        wrong = "keeps the class token" if config.class_token else "drops the first patch"
        raise CallError(
            f"vision_feature_select_strategy {strategy!r} of a {kind} {wrong}, which is not "
            f"supported; supported: {config.strategy!r}"
        )
    return config


def _sizes(hf: Mapping[str, Any], *, patch: int) -> dict[str, int]:
    """The sizes that CLIP and SigLIP share, with their classes' defaults."""
    sizes = {
        "hidden_size": size("vision hidden_size", hf.get("hidden_size", 768)),
        "intermediate_size": size("vision intermediate_size", hf.get("intermediate_size", 3072)),
        "num_layers": layers("vision num_hidden_layers", hf.get("num_hidden_layers", 12)),
        "num_heads": size("vision num_attention_heads", hf.get("num_attention_heads", 12)),
        "image_size": side("vision image_size", hf.get("image_size", 224)),
        "patch_size": side("vision patch_size", hf.get("patch_size", patch)),
        # Pictures are RGB, whatever a file counts.
        "num_channels": one_of("vision num_channels", hf.get("num_channels", 3), (3,)),
    }
    divides("vision hidden_size", sizes["hidden_size"], "attention heads", sizes["num_heads"])
    if sizes["image_size"] < sizes["patch_size"]:
        raise CallError(
            f"vision image_size {sizes['image_size']} is smaller than patch_size "
            f"{sizes['patch_size']}: an image must hold at least one patch"
        )
    return sizes


def vision_blocks(layer: Any, num_layers: int) -> int:
    """How many vision blocks run so that Hugging Face's `hidden_states[layer]` comes out."""
    if isinstance(layer, Sequence) and not isinstance(layer, str):
        if len(layer) != 1:
            raise CallError(
                f"vision_feature_layer {shown(layer)} joins several layers; supported is one layer "
                "as a whole number, like -2"
            )
        layer = layer[0]
    layer = whole("vision_feature_layer", layer)
    # hidden_states has num_layers + 1 entries; entry i is the output of i blocks.
    blocks = layer + num_layers + 1 if layer < 0 else layer
    if not 1 <= blocks <= num_layers:
        raise CallError(
            f"vision_feature_layer {layer} does not name the output of a block: supported are 1 to "
            f"{num_layers} and -{num_layers} to -1, for this tower of {num_layers} blocks"
        )
    return blocks
