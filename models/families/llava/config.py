"""Model configurations: frozen dataclasses read from a Hugging Face `config.json`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours: the published LLaVA-1.5 files leave out most of them. A setting that the port does
not implement is refused by one `CallError` that names the value and what is supported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprune_jax.errors import CallError

CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
PROJECTOR_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")

# What a text configuration holds when its file is silent: (intermediate_size,
# num_key_value_heads, max_position_embeddings, sliding_window). `None` key/value heads mean as many
# as query heads.
_TEXT_DEFAULTS: dict[str, tuple[int, int | None, int, int | None]] = {
    "llama": (11008, None, 2048, None),
    "mistral": (14336, 8, 4096 * 32, 4096),
}

# What LLaVA takes for a vision configuration that is not in the file at all.
_LLAVA_VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


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
        _one_of("vision model type", hf.get("model_type", "clip_vision_model"), _VISION_TYPES)
        config = cls(
            hidden_size=_size("vision hidden_size", hf.get("hidden_size", 768)),
            intermediate_size=_size("vision intermediate_size", hf.get("intermediate_size", 3072)),
            num_layers=_size("vision num_hidden_layers", hf.get("num_hidden_layers", 12)),
            num_heads=_size("vision num_attention_heads", hf.get("num_attention_heads", 12)),
            image_size=_side("vision image_size", hf.get("image_size", 224)),
            patch_size=_side("vision patch_size", hf.get("patch_size", 32)),
            num_channels=_size("vision num_channels", hf.get("num_channels", 3)),
            layer_norm_eps=_number("vision layer_norm_eps", hf.get("layer_norm_eps", 1e-5)),
            hidden_act=_one_of(
                "vision hidden_act", hf.get("hidden_act", "quick_gelu"), CLIP_ACTIVATIONS
            ),
        )
        _divides("vision hidden_size", config.hidden_size, "attention heads", config.num_heads)
        if config.image_size < config.patch_size:
            raise CallError(
                f"vision image_size {config.image_size} is smaller than patch_size "
                f"{config.patch_size}: an image must hold at least one patch"
            )
        return config


@dataclass(frozen=True)
class DecoderConfig:
    """The language model: a Llama-style decoder.

    Attributes:
        vocab_size: rows of the embedding table.
        hidden_size: width d of the residual stream.
        intermediate_size: width of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads H.
        num_kv_heads: key and value heads; query head h reads head h // (H / num_kv_heads).
        head_dim: width of one head.
        rms_norm_eps: epsilon of every RMS norm.
        rope_theta: base of the rotary frequencies.
        max_position_embeddings: longest context the checkpoint was made for, in tokens.
        sliding_window: a query sees at most this many tokens, its own included; `None`: all.
        qkv_bias: whether the query, key and value projections carry a bias (Qwen2 does).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    qkv_bias: bool = False

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "DecoderConfig":
        """Read a `llama` or `mistral` configuration.

        Args:
            hf: the parsed `text_config`; RoPE settings may be nested under `rope_parameters` or
                flat (`rope_theta`, `rope_scaling`).

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults. A missing
            Mistral `sliding_window` is 4096, a null one is no window.

        Raises:
            CallError: a model type, activation, bias or RoPE type that the port does not support.
        """
        model_type = _one_of(
            "text model type", hf.get("model_type", "llama"), tuple(_TEXT_DEFAULTS)
        )
        intermediate, kv_default, positions, window = _TEXT_DEFAULTS[model_type]
        _one_of("text hidden_act", hf.get("hidden_act", "silu"), ("silu",))
        for key in ("attention_bias", "mlp_bias"):
            _one_of(f"text {key}", bool(hf.get(key, False)), (False,))
        hidden = _size("text hidden_size", hf.get("hidden_size", 4096))
        heads = _size("text num_attention_heads", hf.get("num_attention_heads", 32))
        kv_heads = hf.get("num_key_value_heads", kv_default)
        kv_heads = heads if kv_heads is None else _size("text num_key_value_heads", kv_heads)
        head_dim = hf.get("head_dim")
        if head_dim is None:
            _divides("text hidden_size", hidden, "attention heads", heads)
            head_dim = hidden // heads
        _divides("text num_attention_heads", heads, "key/value heads", kv_heads)
        _divides("text head_dim", _size("text head_dim", head_dim), "rotary halves", 2)
        if model_type == "mistral":
            window = hf.get("sliding_window", window)
        return cls(
            vocab_size=_size("text vocab_size", hf.get("vocab_size", 32000)),
            hidden_size=hidden,
            intermediate_size=_size(
                "text intermediate_size", hf.get("intermediate_size", intermediate)
            ),
            num_layers=_size("text num_hidden_layers", hf.get("num_hidden_layers", 32)),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_number("text rms_norm_eps", hf.get("rms_norm_eps", 1e-6)),
            rope_theta=_rope_theta(hf),
            max_position_embeddings=_size(
                "text max_position_embeddings", hf.get("max_position_embeddings", positions)
            ),
            sliding_window=None if window is None else _size("text sliding_window", window),
        )


@dataclass(frozen=True)
class LlavaConfig:
    """A LLaVA-1.5 model: vision tower, projector and language model.

    Attributes:
        vision: the vision tower.
        text: the language model.
        num_vision_blocks: vision blocks that run; the last of them feeds the projector and gives
            the CLS attention. Hugging Face's `vision_feature_layer` -2 of 24 blocks makes it 23.
        image_token_id: id of the placeholder token of the tokenizer.
        projector_act: activation between the projector's layers, one of `PROJECTOR_ACTIVATIONS`;
            "gelu" is the exact one.
        projector_bias: whether the projector's layers carry a bias.
        tie_word_embeddings: logits come from the embedding table; there is no `lm_head`.
    """

    vision: ClipConfig
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
        _one_of("model type", hf.get("model_type", "llava"), ("llava",))
        vision = ClipConfig.from_hf(_section(hf, "vision_config", _LLAVA_VISION))
        text_hf = _section(hf, "text_config", {})
        strategy = hf.get("vision_feature_select_strategy", "default")
        _one_of("vision_feature_select_strategy", strategy, ("default",))
        # Both spellings are in the wild; the first is LLaVA's own.
        image_token = hf.get("image_token_index", hf.get("image_token_id", 32000))
        # Old files keep the flag with the text model only.
        tied = bool(hf.get("tie_word_embeddings") or text_hf.get("tie_word_embeddings"))
        return cls(
            vision=vision,
            text=DecoderConfig.from_hf(text_hf),
            num_vision_blocks=_vision_blocks(hf.get("vision_feature_layer", -2), vision.num_layers),
            image_token_id=_whole("image_token_index", image_token),
            projector_act=_one_of(
                "projector_hidden_act",
                hf.get("projector_hidden_act", "gelu"),
                PROJECTOR_ACTIVATIONS,
            ),
            projector_bias=bool(hf.get("multimodal_projector_bias", True)),
            tie_word_embeddings=tied,
        )


_VISION_TYPES = ("clip_vision_model",)


def _section(hf: Mapping[str, Any], key: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested configuration `key`, or `default` when the file has none."""
    section = hf.get(key)
    if section is None:
        return default
    if not isinstance(section, Mapping):
        raise CallError(f"{key} is {section!r}, expected an object; config.json is broken")
    return section


def _vision_blocks(layer: Any, num_layers: int) -> int:
    """How many vision blocks run so that Hugging Face's `hidden_states[layer]` comes out."""
    if isinstance(layer, Sequence) and not isinstance(layer, str):
        raise CallError(
            f"vision_feature_layer {list(layer)} joins several layers; supported is one layer as a "
            "whole number, like -2"
        )
    layer = _whole("vision_feature_layer", layer)
    # hidden_states has num_layers + 1 entries; entry i is the output of i blocks.
    blocks = layer + num_layers + 1 if layer < 0 else layer
    if not 1 <= blocks <= num_layers:
        raise CallError(
            f"vision_feature_layer {layer} does not name the output of a block: supported are 1 to "
            f"{num_layers} and -{num_layers} to -1, for this tower of {num_layers} blocks"
        )
    return blocks


def _rope_theta(hf: Mapping[str, Any]) -> float:
    """The rotary base, from nested or flat settings; refuses every kind of scaling."""
    nested = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    kind = nested.get("rope_type", nested.get("type", "default"))
    _one_of("RoPE type", kind, ("default",))
    return _number("rope_theta", nested.get("rope_theta", hf.get("rope_theta", 10000.0)))


def _one_of(what: str, value: Any, supported: tuple[Any, ...]) -> Any:
    """`value`, if it is supported."""
    if value not in supported:
        names = ", ".join(repr(name) for name in supported)
        raise CallError(f"{what} {value!r} is not supported; supported: {names}")
    return value


def _whole(what: str, value: Any) -> int:
    """`value`, if it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise CallError(f"{what} is {value!r}, expected a whole number; config.json is broken")
    return value


def _size(what: str, value: Any) -> int:
    """`value`, if it is a whole number of at least 1."""
    if _whole(what, value) < 1:
        raise CallError(f"{what} is {value!r}, expected at least 1; config.json is broken")
    return value


def _number(what: str, value: Any) -> float:
    """`value` as a float, if it is a number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise CallError(f"{what} is {value!r}, expected a number above 0; config.json is broken")
    return float(value)


def _side(what: str, value: Any) -> int:
    """One side of a square, from a number or a pair of equal numbers."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(set(value)) != 1:
            raise CallError(f"{what} {list(value)} is not square; supported are square sizes")
        value = value[0]
    return _size(what, value)


def _divides(what: str, value: int, by_what: str, by: int) -> None:
    """Refuse a `value` that `by` does not divide."""
    if value % by:
        raise CallError(f"{what} {value} is not a multiple of the {by} {by_what}")
