"""The language model's configuration, read from the text part of a `config.json`.

A field that the file leaves out takes the default of its Hugging Face configuration class, not a
default of ours: the published LLaVA-1.5 files leave out most of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from resprune_jax.errors import CallError, printable, shown
from resprune_jax.models.checkpoint.fields import (
    MOST_LAYERS,
    divides,
    layers,
    number,
    one_of,
    size,
    whole,
)
from resprune_jax.models.decoder.rope_scaling import RopeScaling, read_rope


class _Defaults(NamedTuple):
    """What a text configuration holds where its file is silent."""

    vocab_size: int
    intermediate_size: int
    kv_heads: int | None  # `None`: as many as query heads
    positions: int


_TEXT_DEFAULTS = {
    "llama": _Defaults(32000, 11008, None, 2048),
    "mistral": _Defaults(32000, 14336, 8, 4096 * 32),
    "qwen2": _Defaults(151936, 22016, 32, 32768),
}

_MISTRAL_WINDOW = 4096
_QWEN2_FIRST_WINDOW = 28


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
        rope_scaling: of another RoPE type than the default.
        mlp_groups: parts of the gated MLP that a mesh can lay on devices of their own; not the
            file's, see `sharding.divide_mlps`.
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
    rope_scaling: RopeScaling | None = None
    mlp_groups: int = 1

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "DecoderConfig":
        """Read a `llama`, `mistral` or `qwen2` configuration.

        Args:
            hf: the parsed `text_config`; RoPE settings may be nested under `rope_parameters` or
                flat (`rope_theta`, `rope_scaling`).

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults. A missing
            Mistral `sliding_window` is 4096, a null one is no window.

        Raises:
            CallError: a model type, activation, bias, window or RoPE type that the port does not
                support.
        """
        model_type = one_of("text model type", hf.get("model_type", "llama"), tuple(_TEXT_DEFAULTS))
        default = _TEXT_DEFAULTS[model_type]
        one_of("text hidden_act", hf.get("hidden_act", "silu"), ("silu",))
        # Qwen2's biases are fixed: its class does not look at these entries.
        for key in ("attention_bias", "mlp_bias") if model_type != "qwen2" else ():
            one_of(f"text {key}", bool(hf.get(key, False)), (False,))
        hidden = size("text hidden_size", hf.get("hidden_size", 4096))
        heads = size("text num_attention_heads", hf.get("num_attention_heads", 32))
        kv_heads = hf.get("num_key_value_heads", default.kv_heads)
        kv_heads = heads if kv_heads is None else size("text num_key_value_heads", kv_heads)
        head_dim = hf.get("head_dim")
        if head_dim is None:
            divides("text hidden_size", hidden, "attention heads", heads)
            head_dim = hidden // heads
        divides("text num_attention_heads", heads, "key/value heads", kv_heads)
        divides("text head_dim", size("text head_dim", head_dim), "rotary halves", 2)
        depth = layers("text num_hidden_layers", hf.get("num_hidden_layers", 32))
        window = None
        theta, scaling = read_rope({"max_position_embeddings": default.positions, **hf}, 10000.0)
        if model_type == "mistral":
            window = hf.get("sliding_window", _MISTRAL_WINDOW)
        if model_type == "qwen2":
            check_windows(hf, depth, first=_QWEN2_FIRST_WINDOW)
        return cls(
            vocab_size=size("text vocab_size", hf.get("vocab_size", default.vocab_size)),
            hidden_size=hidden,
            intermediate_size=size(
                "text intermediate_size", hf.get("intermediate_size", default.intermediate_size)
            ),
            num_layers=depth,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=number("text rms_norm_eps", hf.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            max_position_embeddings=size(
                "text max_position_embeddings",
                hf.get("max_position_embeddings", default.positions),
            ),
            sliding_window=None if window is None else size("text sliding_window", window),
            qkv_bias=model_type == "qwen2",
        )


def check_windows(hf: Mapping[str, Any], layers: int, *, first: int) -> None:
    """Refuse a Qwen2 decoder some of whose layers have a sliding window; published ones have none.

    Args:
        hf: the parsed `text_config`.
        layers: how many it has.
        first: where windows begin if they are used and the file does not say.

    Raises:
        CallError: layers of another kind than full attention.
    """
    kinds = hf.get("layer_types")
    if kinds is None:
        windowed = bool(hf.get("use_sliding_window")) and hf.get("sliding_window", 4096) is not None
        if windowed:
            first = whole("max_window_layers", hf.get("max_window_layers", first))
        kinds = ["sliding_attention"] * (layers - min(layers, first) if windowed else 0)
    if not isinstance(kinds, list) or len(kinds) > MOST_LAYERS:
        raise CallError(f"layer_types is {shown(kinds)}, expected a name for every layer")
    if other := sorted({str(kind) for kind in kinds} - {"full_attention"}):
        raise CallError(
            f"text layers with {', '.join(printable(kind, 40) for kind in other[:4])} are not "
            "supported; supported: full_attention (use_sliding_window false)"
        )
