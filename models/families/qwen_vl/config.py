"""Configurations of Qwen2.5-VL and Qwen2-VL: frozen dataclasses read from a `config.json`.

As for LLaVA-1.5, a silent field takes the default of its Hugging Face class, and a setting that
the port does not implement is refused by name. Two layouts are in the wild: the text model's fields
at the top of the file (the published repositories) or nested under `text_config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from resprune_jax.errors import CallError, shown
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
from resprune_jax.models.decoder.config import DecoderConfig, check_windows
from resprune_jax.models.decoder.rope_scaling import read_rope, rope_settings
from resprune_jax.models.families.qwen_vl import names
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig


@dataclass(frozen=True)
class Qwen25VLConfig:
    """A Qwen2.5-VL model: vision tower with its merger, and language model.

    Attributes:
        vision: the vision tower.
        text: the language model; its query, key and value projections carry biases.
        mrope_section: how many of the rotary frequencies of a head turn with the temporal, the row
            and the column position, in this order.
        image_token_id: id of the placeholder of an image's visual tokens.
        video_token_id: id of the placeholder of a video's visual tokens.
        vision_start_token_id: id in front of each image or video.
        vision_end_token_id: id behind it.
        tie_word_embeddings: logits come from the embedding table; there is no `lm_head`.
    """

    form: ClassVar = CheckpointFormat(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", names, vision="visual"
    )
    read_vision: ClassVar = QwenVisionConfig.from_hf

    vision: QwenVisionConfig
    text: DecoderConfig
    mrope_section: tuple[int, int, int] = (16, 24, 24)
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Self:
        """Read the `config.json` of a checkpoint.

        Args:
            hf: the parsed file, with the text model's fields nested or at the top.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults.

        Raises:
            CallError: a setting that the port does not support, named with what is supported.
        """
        own = cls.form.model_type
        one_of("model type", hf.get("model_type", own), (own,))
        vision = cls.read_vision(section(hf, "vision_config", {}))
        text_hf = section(hf, "text_config", hf)
        text = _text_config(text_hf, own)
        if vision.out_hidden_size != text.hidden_size:
            raise CallError(
                f"vision out_hidden_size {vision.out_hidden_size} is not the language model's "
                f"hidden_size {text.hidden_size}: config.json is broken"
            )
        return cls(
            vision=vision,
            text=text,
            mrope_section=_mrope_section(text_hf, text.head_dim),
            image_token_id=token_id("image_token_id", hf.get("image_token_id", 151655)),
            video_token_id=token_id("video_token_id", hf.get("video_token_id", 151656)),
            vision_start_token_id=token_id(
                "vision_start_token_id", hf.get("vision_start_token_id", 151652)
            ),
            vision_end_token_id=token_id(
                "vision_end_token_id", hf.get("vision_end_token_id", 151653)
            ),
            # Files before version 5 keep the flag with the text model only.
            tie_word_embeddings=bool(
                hf.get("tie_word_embeddings") or text_hf.get("tie_word_embeddings")
            ),
        )


@dataclass(frozen=True)
class Qwen2VLConfig(Qwen25VLConfig):
    """A Qwen2-VL model: Qwen2.5-VL's language model behind the plainer tower."""

    form: ClassVar = CheckpointFormat(
        "qwen2_vl", "Qwen2VLForConditionalGeneration", names, vision="visual"
    )
    read_vision: ClassVar = QwenVisionConfig.plain_from_hf


def _text_config(hf: Mapping[str, Any], family: str) -> DecoderConfig:
    """The language model, from the section or the file that holds its fields."""
    types = (f"{family}_text", family)
    one_of("text model type", hf.get("model_type", types[0]), types)
    one_of("text hidden_act", hf.get("hidden_act", "silu"), ("silu",))
    hidden = size("text hidden_size", hf.get("hidden_size", 8192))
    heads = size("text num_attention_heads", hf.get("num_attention_heads", 64))
    kv_heads = hf.get("num_key_value_heads", 8)
    kv_heads = heads if kv_heads is None else size("text num_key_value_heads", kv_heads)
    depth = layers("text num_hidden_layers", hf.get("num_hidden_layers", 80))
    divides("text hidden_size", hidden, "attention heads", heads)
    divides("text num_attention_heads", heads, "key/value heads", kv_heads)
    head_dim = hidden // heads
    divides("text head_dim", head_dim, "rotary halves", 2)
    # The reference's attention ignores a head width of its own.
    one_of("text head_dim", hf.get("head_dim", None), (None, head_dim))
    check_windows(hf, depth, first=80)
    theta, scaling = read_rope({"max_position_embeddings": 32768, **hf}, 1e6, {"mrope": "default"})
    return DecoderConfig(
        vocab_size=size("text vocab_size", hf.get("vocab_size", 152064)),
        hidden_size=hidden,
        intermediate_size=size("text intermediate_size", hf.get("intermediate_size", 29568)),
        num_layers=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number("text rms_norm_eps", hf.get("rms_norm_eps", 1e-5)),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=size(
            "text max_position_embeddings", hf.get("max_position_embeddings", 32768)
        ),
        qkv_bias=True,
    )


def _mrope_section(hf: Mapping[str, Any], head_dim: int) -> tuple[int, int, int]:
    """How the frequencies are shared out between time, rows and columns."""
    value = rope_settings(hf).get("mrope_section", (16, 24, 24))
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise CallError(f"mrope_section is {shown(value)}, expected three numbers")
    time, rows, columns = (size("mrope_section", part) for part in value)
    if time + rows + columns != head_dim // 2:
        raise CallError(
            f"mrope_section {list(value)} shares out {time + rows + columns} frequencies, but a "
            f"head of {head_dim} has {head_dim // 2}: config.json is broken"
        )
    return time, rows, columns
