"""The vision tower's configuration, read from the `vision_config` of a Qwen file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint.fields import (
    MOST_LAYERS,
    divides,
    layers,
    number,
    one_of,
    section,
    side,
    size,
    whole,
)

# The second of each in files before version 5.
_TYPES = ("qwen2_5_vl_vision", "qwen2_5_vl")
# Inside a window every patch attends to every other: published models have 112.
_LARGEST_WINDOW = 1024
_PLAIN_TYPES = ("qwen2_vl", "qwen2_vl_vision")


@dataclass(frozen=True)
class QwenVisionConfig:
    """The vision tower of Qwen2.5-VL, or of Qwen2-VL.

    Attributes:
        hidden_size: width v of the features.
        intermediate_size: width of the MLP.
        num_layers: blocks.
        num_heads: attention heads.
        out_hidden_size: width d of the visual tokens, that of the language model.
        patch_size: side of a patch, in pixels.
        temporal_patch_size: frames that one patch spans; an image is repeated that often.
        spatial_merge_size: side of a merged cell, in patches; a cell becomes one visual token.
        window_size: side of an attention window, in pixels.
        full_attention_blocks: indices of the blocks that attend to the whole frame.
        tokens_per_second: steps of the temporal position in a second of video; `None`: one step
            for each group of frames, whatever the time between them.
        num_channels: colour channels.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: epsilon of every norm; fixed in the reference, not in the file.
        gated: RMS norms and a gated MLP with silu, as Qwen2.5-VL; else layer norms and two layers
            with quick_gelu between, as Qwen2-VL.
        mlp_groups: parts of the gated MLP that a mesh can lay on devices of their own; not the
            file's, see `sharding.divide_mlps`.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    out_hidden_size: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    full_attention_blocks: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: float | None = 4.0
    num_channels: int = 3
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    gated: bool = True
    mlp_groups: int = 1

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Numbers in one flattened patch (channels, frames, rows, columns)."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches of one merged cell."""
        return self.spatial_merge_size**2

    @property
    def window_cells(self) -> int:
        """Merged cells along one side of a window."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches of a window that no edge cuts."""
        return self.window_cells**2 * self.merge_unit

    @property
    def pixel_factor(self) -> int:
        """Side of a merged cell in pixels: image sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "QwenVisionConfig":
        """Read the `vision_config` of a Qwen2.5-VL file.

        Args:
            hf: the parsed section.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults.

        Raises:
            CallError: a model type, activation, RoPE type or size that the port does not support.
        """
        one_of("vision model type", hf.get("model_type", _TYPES[0]), _TYPES)
        one_of("vision hidden_act", hf.get("hidden_act", "silu"), ("silu",))
        return cls(
            **_shared(hf),
            hidden_size=size("vision hidden_size", hf.get("hidden_size", 3584)),
            intermediate_size=size("vision intermediate_size", hf.get("intermediate_size", 3420)),
            out_hidden_size=size("vision out_hidden_size", hf.get("out_hidden_size", 3584)),
            window_size=size("vision window_size", hf.get("window_size", 112), _LARGEST_WINDOW),
            full_attention_blocks=_blocks(hf.get("fullatt_block_indexes", (7, 15, 23, 31))),
            tokens_per_second=number("vision tokens_per_second", hf.get("tokens_per_second", 4)),
        )._checked()

    @classmethod
    def plain_from_hf(cls, hf: Mapping[str, Any]) -> "QwenVisionConfig":
        """Read the `vision_config` of a Qwen2-VL file, whose `hidden_size` is the output's width.

        Args:
            hf: the parsed section.

        Raises:
            CallError: as for `from_hf`.
        """
        one_of("vision model type", hf.get("model_type", _PLAIN_TYPES[0]), _PLAIN_TYPES)
        one_of("vision hidden_act", hf.get("hidden_act", "quick_gelu"), ("quick_gelu",))
        shared, width = _shared(hf), size("vision embed_dim", hf.get("embed_dim", 1280))
        return cls(
            **shared,
            hidden_size=width,
            intermediate_size=size(
                "vision embed_dim * mlp_ratio",
                int(width * number("vision mlp_ratio", hf.get("mlp_ratio", 4))),
            ),
            out_hidden_size=size("vision hidden_size", hf.get("hidden_size", 3584)),
            full_attention_blocks=tuple(range(shared["num_layers"])),
            tokens_per_second=None,
            gated=False,
        )._checked()

    def _checked(self) -> "QwenVisionConfig":
        """This configuration, if its sizes go together."""
        divides("vision hidden_size", self.hidden_size, "attention heads", self.num_heads)
        divides("vision head width", self.head_dim, "parts of the 2-D rotation", 4)
        if self.window_cells < 1:
            raise CallError(
                f"vision window_size {self.window_size} is smaller than one merged cell of "
                f"{self.pixel_factor} pixels: config.json is broken"
            )
        return self


def _shared(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both files have, under the same names."""
    rope = _rope(hf, "vision", ("axial", "default"))
    return {
        "num_layers": layers("vision depth", _either(hf, "depth", "num_hidden_layers", 32)),
        "num_heads": size("vision num_heads", _either(hf, "num_heads", "num_attention_heads", 16)),
        "patch_size": side("vision patch_size", hf.get("patch_size", 14)),
        "temporal_patch_size": side("vision temporal_patch_size", hf.get("temporal_patch_size", 2)),
        # Buckets of patches hold whole merged cells of these sides.
        "spatial_merge_size": one_of(
            "vision spatial_merge_size", hf.get("spatial_merge_size", 2), (1, 2, 4)
        ),
        # Pictures are RGB, whatever a file counts.
        "num_channels": one_of("vision in_channels", hf.get("in_channels", 3), (3,)),
        "rope_theta": number("vision rope_theta", rope.get("rope_theta", 10000.0)),
    }


def _rope(hf: Mapping[str, Any], what: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The RoPE settings, nested or flat, as one mapping without entries that are not set."""
    nested = section(hf, "rope_scaling", {}) or section(hf, "rope_parameters", {})
    one_of(f"{what} RoPE type", nested.get("rope_type", nested.get("type", kinds[0])), kinds)
    merged = {"rope_theta": hf.get("rope_theta"), **nested}
    return {key: value for key, value in merged.items() if value is not None}


def _either(hf: Mapping[str, Any], name: str, other: str, default: int) -> Any:
    """A field under one of its two names."""
    return hf.get(name, hf.get(other, default))


def _blocks(indices: Any) -> tuple[int, ...]:
    """Block indices as a sorted tuple."""
    good = isinstance(indices, Sequence) and not isinstance(indices, str)
    if not good or len(indices) > MOST_LAYERS:
        raise CallError(
            f"vision fullatt_block_indexes is {shown(indices)}, expected a list of numbers"
        )
    return tuple(sorted(whole("vision fullatt_block_indexes", index) for index in indices))
