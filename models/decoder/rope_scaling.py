"""RoPE types that stretch a model's context: linear, Llama 3's and YaRN, read from `config.json`.

Each changes the rotary frequencies once and for all; YaRN also lengthens the rotated vectors. They
equal `modeling_rope_utils` of transformers, rounding included. Types whose frequencies depend on
the prompt's length (dynamic, longrope) are refused by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint.fields import number, one_of, size

TYPES = ("default", "linear", "llama3", "yarn")
"""Supported values of `rope_type`."""


class RopeScaling(Protocol):
    """What a RoPE type does to the frequencies of the default one."""

    @property
    def attention(self) -> float:
        """Factor of every cosine and sine."""
        ...

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """The frequencies that are used, from theta^(-2i / head_dim); (head_dim / 2,) float32."""
        ...


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by a factor (Chen et al., arXiv 2306.15595).

    Attributes:
        factor: how much longer the context gets.
    """

    factor: float

    @property
    def attention(self) -> float:
        """1: lengths do not change."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """See `RopeScaling.scale`."""
        return frequencies / np.float32(self.factor)


@dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies divided, fast ones kept, a ramp between (Llama 3.1).

    Attributes:
        factor: of the slow frequencies.
        low: a wave this many times in the original context is the slowest of the ramp.
        high: a wave this many times in it is the fastest.
        original: the context that the model was first trained on, in tokens.
    """

    factor: float
    low: float
    high: float
    original: int

    @property
    def attention(self) -> float:
        """1: lengths do not change."""
        return 1.0

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """See `RopeScaling.scale`."""
        factor, low, high = map(np.float32, (self.factor, self.low, self.high))
        length = np.float32(2 * math.pi) / frequencies  # of a wave, in tokens
        waves = np.float32(self.original) / length
        share = (waves - low) / (high - low)
        between = (1 - share) * frequencies / factor + share * frequencies
        slow = length > np.float32(self.original / self.low)
        fast = length < np.float32(self.original / self.high)
        return np.where(slow, frequencies / factor, np.where(fast, frequencies, between))


@dataclass(frozen=True)
class YarnScaling:
    """Slow frequencies divided, fast ones kept, a ramp over channels between (arXiv 2309.00071).

    Attributes:
        factor: of the slow frequencies.
        original: the context that the model was first trained on, in tokens.
        attention: factor of every cosine and sine.
        fast: turns within the original context of the fastest frequency of the ramp.
        slow: the same of the slowest.
        truncate: the ramp begins and ends at whole channels.
    """

    factor: float
    original: int
    attention: float
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True

    def scale(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """See `RopeScaling.scale`."""
        count = len(frequencies)

        def channel(turns: float) -> float:
            """Which frequency turns that often within the original context."""
            return count * math.log(self.original / (turns * 2 * math.pi)) / math.log(theta)

        begin, end = channel(self.fast), channel(self.slow)
        if self.truncate:
            begin, end = math.floor(begin), math.ceil(end)
        begin, end = max(begin, 0), min(end, 2 * count - 1)
        width = 0.001 if begin == end else end - begin
        ramp = (np.arange(count, dtype=np.float32) - np.float32(begin)) / np.float32(width)
        kept = 1 - np.clip(ramp, 0, 1)
        # The reference divides once, by factor times the wave; so does this.
        divided = np.float32(1) / (np.float32(self.factor) * (np.float32(1) / frequencies))
        return divided * (1 - kept) + frequencies * kept


def read_rope(
    hf: Mapping[str, Any], theta: float, others: Mapping[str, str] | None = None
) -> tuple[float, RopeScaling | None]:
    """The rotary base and scaling of a text model.

    Args:
        hf: its part of `config.json`; the settings lie under `rope_scaling` or `rope_parameters`,
            the base there or beside them.
        theta: the base where the file has none.
        others: further type names of the family, and the type that each stands for.

    Returns:
        (theta, scaling), `None` for the default type, and for a linear factor of 1.

    Raises:
        CallError: another type, or a setting that is broken or not supported.
    """
    own = rope_settings(hf)
    kind = own.get("rope_type", own.get("type", "default"))
    known = {**{name: name for name in TYPES}, **(others or {})}
    kind = known[one_of("RoPE type", kind, tuple(known))]
    share = own.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    one_of("partial_rotary_factor", share, (None, 1, 1.0))
    base = own.get("rope_theta", hf.get("rope_theta"))
    base = theta if base is None else number("rope_theta", base)
    if base <= 1:
        raise CallError(f"rope_theta is {base:g}, expected more than 1; config.json is broken")
    return base, None if kind == "default" else _scaling(kind, own, hf)


def rope_settings(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested RoPE settings of a text model, without entries that are not set.

    Raises:
        CallError: no object, or one for each type of layer.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if own := hf.get(key):
            if not isinstance(own, Mapping):
                raise CallError(f"{key} is {shown(own)}, expected an object; config.json is broken")
            if nested := [str(name) for name, value in own.items() if isinstance(value, Mapping)]:
                raise CallError(
                    f"{key} has settings of its own for {', '.join(nested)}; supported is one"
                    " setting for all layers"
                )
            return {name: value for name, value in own.items() if value is not None}
    return {}


def _scaling(kind: str, own: Mapping[str, Any], hf: Mapping[str, Any]) -> RopeScaling | None:
    """The scaling of a type other than the default."""
    # A value beside the settings counts more than one in them, as in the reference.
    original = hf.get("original_max_position_embeddings")
    if original is None:
        original = own.get("original_max_position_embeddings", hf.get("max_position_embeddings"))
    if kind == "linear":
        factor = _stretch(own)
        return None if factor == 1 else LinearScaling(factor)
    context = size("original_max_position_embeddings", original)
    if kind == "llama3":
        low = number("RoPE low_freq_factor", own.get("low_freq_factor"))
        high = number("RoPE high_freq_factor", own.get("high_freq_factor"))
        if not low < high:
            raise CallError(
                f"RoPE low_freq_factor {low:g} is not below high_freq_factor {high:g}: config.json"
                " is broken"
            )
        return Llama3Scaling(_stretch(own), low, high, context)
    factor = _stretch(own)
    attention = own.get("attention_factor")
    if attention is None:
        scales = (own.get("mscale"), own.get("mscale_all_dim"))
        if all(scales):
            above, below = (number("RoPE mscale", scale) for scale in scales)
            attention = _lengthened(factor, above) / _lengthened(factor, below)
        else:
            attention = _lengthened(factor, 1.0)
    fast = number("RoPE beta_fast", own.get("beta_fast") or 32)
    slow = number("RoPE beta_slow", own.get("beta_slow") or 1)
    if slow > fast:
        raise CallError(
            f"RoPE beta_slow {slow:g} is above beta_fast {fast:g}: config.json is broken"
        )
    truncate = one_of("RoPE truncate", own.get("truncate", True), (True, False))
    return YarnScaling(
        factor, context, number("RoPE attention_factor", attention), fast, slow, truncate
    )


def _stretch(own: Mapping[str, Any]) -> float:
    """The factor, which every type must name."""
    factor = number("RoPE factor", own.get("factor"))
    if factor < 1:
        raise CallError(f"RoPE factor is {factor:g}, expected at least 1; config.json is broken")
    return factor


def _lengthened(factor: float, share: float) -> float:
    """How much YaRN lengthens rotated vectors for a factor."""
    return 1.0 if factor <= 1 else 0.1 * share * math.log(factor) + 1.0
