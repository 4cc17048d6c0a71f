"""Configuration of LLaVA-OneVision: a frozen dataclass read from a Hugging Face `config.json`.

As for LLaVA-1.5, a silent field takes the default of its Hugging Face class, and a setting that
the port does not implement is refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.fields import one_of, section, size, token_id
from resprune_jax.models.checkpoint.formats import CheckpointFormat
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava import names
from resprune_jax.models.families.llava.config import PROJECTOR_ACTIVATIONS, LlavaConfig
from resprune_jax.models.families.llava_next.config import Pinpoint, read_pinpoints
from resprune_jax.models.towers.config import SiglipConfig, vision_blocks

DEFAULT_PINPOINTS: tuple[Pinpoint, ...] = tuple(
    (384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)
)
"""The published models' pinpoints, in their order: the first wins where several fit equally."""

# What LLaVA-OneVision takes for a vision configuration that is not in the file at all.
ONEVISION_VISION: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}

_ASPECT = re.compile(r"anyres_max_([1-9]\d{0,3})")


@dataclass(frozen=True)
class OneVisionConfig:
    """A LLaVA-OneVision model: SigLIP tower, projector, newline token and Qwen2 decoder.

    Attributes:
        vision: the vision tower; it sees one tile at a time.
        text: the language model.
        num_vision_blocks: vision blocks that run; the last of them feeds the projector.
        image_grid_pinpoints: (height, width) of the planes of tiles, in pixels, whole tiles each.
        max_tiles: a plane of more patches than so many tiles have is resized to about as many
            (`vision_aspect_ratio`, "anyres_max_9").
        image_token_id: id of the placeholder of an image's visual tokens.
        video_token_id: id of the placeholder of a video's visual tokens.
        projector_act: activation between the projector's layers, one of `PROJECTOR_ACTIVATIONS`.
        projector_bias: whether the projector's layers carry a bias.
        tie_word_embeddings: logits come from the embedding table; there is no `lm_head`.
    """

    form: ClassVar = CheckpointFormat(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration", names
    )

    vision: SiglipConfig
    text: DecoderConfig
    num_vision_blocks: int
    image_grid_pinpoints: tuple[Pinpoint, ...] = DEFAULT_PINPOINTS
    max_tiles: int = 9
    image_token_id: int = 151646
    video_token_id: int = 151647
    projector_act: str = "gelu"
    projector_bias: bool = True
    tie_word_embeddings: bool = False

    @property
    def patches_per_tile(self) -> int:
        """Visual tokens that one tile gives."""
        return self.vision.num_patches

    @property
    def pooled(self) -> int:
        """Visual tokens along one side of a video's frame: half a tile's, rounded up."""
        return -(-self.vision.grid // 2)

    @property
    def tile_model(self) -> LlavaConfig:
        """The LLaVA model that encodes one tile: tower, projector and language model alike."""
        return LlavaConfig(
            vision=self.vision,
            text=self.text,
            num_vision_blocks=self.num_vision_blocks,
            image_token_id=self.image_token_id,
            projector_act=self.projector_act,
            projector_bias=self.projector_bias,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "OneVisionConfig":
        """Read the `config.json` of a LLaVA-OneVision checkpoint.

        Args:
            hf: the parsed file.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults.

        Raises:
            CallError: a setting that the port does not support, named with what is supported.
        """
        one_of("model type", hf.get("model_type", "llava_onevision"), ("llava_onevision",))
        vision = SiglipConfig.from_hf(section(hf, "vision_config", ONEVISION_VISION))
        text_hf = {"model_type": "qwen2", **section(hf, "text_config", {})}
        strategy = hf.get("vision_feature_select_strategy", "full")
        one_of("vision_feature_select_strategy", strategy, ("full",))
        image_token = hf.get("image_token_index", hf.get("image_token_id", 151646))
        video_token = hf.get("video_token_index", hf.get("video_token_id", 151647))
        return cls(
            vision=vision,
            text=DecoderConfig.from_hf(text_hf),
            num_vision_blocks=vision_blocks(hf.get("vision_feature_layer", -1), vision.num_layers),
            image_grid_pinpoints=read_pinpoints(
                hf.get("image_grid_pinpoints"), vision.image_size, DEFAULT_PINPOINTS
            ),
            max_tiles=_max_tiles(hf.get("vision_aspect_ratio", "anyres_max_9")),
            image_token_id=token_id("image_token_index", image_token),
            video_token_id=token_id("video_token_index", video_token),
            projector_act=one_of(
                "projector_hidden_act",
                hf.get("projector_hidden_act", "gelu"),
                PROJECTOR_ACTIVATIONS,
            ),
            projector_bias=bool(hf.get("multimodal_projector_bias", True)),
            tie_word_embeddings=bool(
                hf.get("tie_word_embeddings") or text_hf.get("tie_word_embeddings")
            ),
        )


def _max_tiles(value: Any) -> int:
    """The number in "anyres_max_9"."""
    found = _ASPECT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise CallError(
            f"vision_aspect_ratio {value!r} is not supported; supported: 'anyres_max_N', N tiles"
        )
    return size("vision_aspect_ratio", int(found[1]))
