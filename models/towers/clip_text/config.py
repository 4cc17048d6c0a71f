"""Configuration of a whole CLIP, read from the `config.json` of Hugging Face's `CLIPModel`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from resprune_jax.models.checkpoint.fields import (
    divides,
    layers,
    number,
    one_of,
    section,
    size,
    token_id,
)
from resprune_jax.models.checkpoint.formats import CheckpointFormat
from resprune_jax.models.towers.clip_text import names
from resprune_jax.models.towers.config import CLIP_ACTIVATIONS, ClipConfig

UNKNOWN_EOS = 2
"""The `eos_token_id` of the published files, which is not the tokenizer's."""


@dataclass(frozen=True)
class ClipTextConfig:
    """The text tower.

    Attributes:
        vocab_size: rows of the embedding table.
        hidden_size: width of the tower.
        intermediate_size: width of the MLP's hidden layer.
        num_layers: blocks.
        num_heads: attention heads.
        positions: the most tokens of a text, L.
        layer_norm_eps: epsilon of every layer norm.
        hidden_act: activation of the MLP, one of `CLIP_ACTIVATIONS`.
        eos_token_id: a text is read at its first token of this id; where the file says
            `UNKNOWN_EOS`, at its largest id.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    positions: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    eos_token_id: int = 49407

    @property
    def num_kv_heads(self) -> int:
        """As many as query heads."""
        return self.num_heads

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ClipTextConfig":
        """Read a `text_config`.

        Raises:
            CallError: a model type, activation or size that the port does not support.
        """
        kind = "clip_text_model"
        one_of("text model type", hf.get("model_type", kind), (kind,))
        act = hf.get("hidden_act", "quick_gelu")
        made = cls(
            vocab_size=size("text vocab_size", hf.get("vocab_size", 49408)),
            hidden_size=size("text hidden_size", hf.get("hidden_size", 512)),
            intermediate_size=size("text intermediate_size", hf.get("intermediate_size", 2048)),
            num_layers=layers("text num_hidden_layers", hf.get("num_hidden_layers", 12)),
            num_heads=size("text num_attention_heads", hf.get("num_attention_heads", 8)),
            positions=size("text max_position_embeddings", hf.get("max_position_embeddings", 77)),
            layer_norm_eps=number("text layer_norm_eps", hf.get("layer_norm_eps", 1e-5)),
            hidden_act=one_of("text hidden_act", act, CLIP_ACTIVATIONS),
            eos_token_id=token_id("text eos_token_id", hf.get("eos_token_id", 49407)),
        )
        divides("text hidden_size", made.hidden_size, "attention heads", made.num_heads)
        return made


@dataclass(frozen=True)
class ClipPairConfig:
    """A CLIP: its text tower, its vision tower (which is not run here), and their common space.

    Attributes:
        text: the text tower.
        vision: the vision tower, whose width the features must have.
        projection_dim: width c of the common space.
    """

    form: ClassVar = CheckpointFormat("clip", "CLIPModel", names, vision="vision_model")

    text: ClipTextConfig
    vision: ClipConfig
    projection_dim: int

    image_token_id: ClassVar = -1
    """There is none."""

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ClipPairConfig":
        """Read the `config.json` of a `CLIPModel`.

        Raises:
            CallError: a setting that the port does not support, named with what is supported.
        """
        one_of("model type", hf.get("model_type", "clip"), ("clip",))

        def part(name: str) -> Mapping[str, Any]:
            # Old files hold a second copy, whose every field counts, its silent ones too.
            return section(hf, f"{name}_config_dict", section(hf, f"{name}_config", {}))

        return cls(
            text=ClipTextConfig.from_hf(part("text")),
            vision=ClipConfig.from_hf(part("vision")),
            projection_dim=size("projection_dim", hf.get("projection_dim", 512)),
        )
