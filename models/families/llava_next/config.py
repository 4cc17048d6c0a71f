"""Configuration of LLaVA-NeXT (v1.6): a frozen dataclass read from a Hugging Face `config.json`.

As for LLaVA-1.5, a silent field takes the default of its Hugging Face class, and a setting that
the port does not implement is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint.fields import one_of, section, size, token_id
from resprune_jax.models.checkpoint.formats import CheckpointFormat
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava import names
from resprune_jax.models.families.llava.config import (
    LLAVA_VISION,
    PROJECTOR_ACTIVATIONS,
    LlavaConfig,
)
from resprune_jax.models.towers.config import ClipConfig, vision_blocks

Pinpoint = tuple[int, int]
"""(height, width) in pixels that a picture may be cut into tiles at."""

DEFAULT_PINPOINTS: tuple[Pinpoint, ...] = (
    *((336, 672), (672, 336), (672, 672)),
    *((1008, 336), (336, 1008)),
)
"""The published models' pinpoints, in their order: the first wins where several fit equally."""


@dataclass(frozen=True)
class LlavaNextConfig:
    """A LLaVA-NeXT model: what LLaVA-1.5 has, and the sizes that pictures are tiled at.

    Attributes:
        vision: the vision tower; it sees one tile at a time.
        text: the language model, Llama's (Vicuna) or Mistral's.
        num_vision_blocks: vision blocks that run; the last of them feeds the projector and gives
            the CLS attention. Hugging Face's `vision_feature_layer` -2 of 24 blocks makes it 23.
        image_grid_pinpoints: (height, width) of the planes of tiles, in pixels, whole tiles each.
        image_token_id: id of the placeholder token of the tokenizer.
        projector_act: activation between the projector's layers, one of `PROJECTOR_ACTIVATIONS`;
            "gelu" is the exact one.
        projector_bias: whether the projector's layers carry a bias.
        tie_word_embeddings: logits come from the embedding table; there is no `lm_head`.
    """

    form: ClassVar = CheckpointFormat("llava_next", "LlavaNextForConditionalGeneration", names)

    vision: ClipConfig
    text: DecoderConfig
    num_vision_blocks: int
    image_grid_pinpoints: tuple[Pinpoint, ...] = DEFAULT_PINPOINTS
    image_token_id: int = 32000
    projector_act: str = "gelu"
    projector_bias: bool = True
    tie_word_embeddings: bool = False

    @property
    def patches_per_tile(self) -> int:
        """Visual tokens that one tile gives before unpadding."""
        return self.vision.num_patches

    @property
    def tile_model(self) -> LlavaConfig:
        """The LLaVA-1.5 model that encodes one tile: tower, projector and language model alike."""
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
    def from_hf(cls, hf: Mapping[str, Any]) -> "LlavaNextConfig":
        """Read the `config.json` of a LLaVA-NeXT checkpoint.

        Args:
            hf: the parsed file.

        Returns:
            The configuration, silent fields filled with Hugging Face's class defaults. A missing
            Mistral `sliding_window` is 4096, a null one is no window.

        Raises:
            CallError: a setting that the port does not support, named with what is supported.
        """
        one_of("model type", hf.get("model_type", "llava_next"), ("llava_next",))
        vision = ClipConfig.from_hf(section(hf, "vision_config", LLAVA_VISION))
        # "full" would leave the class token among the patches, which fill no rectangle then.
        strategy = hf.get("vision_feature_select_strategy", "default")
        one_of("vision_feature_select_strategy", strategy, ("default",))
        image_token = hf.get("image_token_index", hf.get("image_token_id", 32000))
        return cls(
            vision=vision,
            text=DecoderConfig.from_hf(section(hf, "text_config", {})),
            num_vision_blocks=vision_blocks(hf.get("vision_feature_layer", -2), vision.num_layers),
            image_grid_pinpoints=read_pinpoints(hf.get("image_grid_pinpoints"), vision.image_size),
            image_token_id=token_id("image_token_index", image_token),
            projector_act=one_of(
                "projector_hidden_act",
                hf.get("projector_hidden_act", "gelu"),
                PROJECTOR_ACTIVATIONS,
            ),
            projector_bias=bool(hf.get("multimodal_projector_bias", True)),
            # Unlike LLaVA-1.5's, this class does not look at the text model's own flag.
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        )


MOST_PINPOINTS = 256
"""Shapes that a picture may be cut at; published models have five, or 36."""

MOST_TILES = 256
"""Tiles of one such shape; published models have at most 36."""


def read_pinpoints(
    value: Any, tile: int, default: tuple[Pinpoint, ...] = DEFAULT_PINPOINTS
) -> tuple[Pinpoint, ...]:
    """The pinpoints as pairs of whole numbers of whole tiles; the published ones for `None`."""
    if value is None:
        value = default
    pairs = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not pairs or not all(
        isinstance(pin, Sequence) and not isinstance(pin, str) and len(pin) == 2 for pin in value
    ):
        raise CallError(
            f"image_grid_pinpoints is {shown(value)}, expected pairs (height, width); config.json "
            "is broken"
        )
    if len(value) > MOST_PINPOINTS:
        raise CallError(
            f"image_grid_pinpoints has {len(value)} entries, expected at most {MOST_PINPOINTS}; "
            "config.json is broken"
        )
    what = "image_grid_pinpoints"
    pins = tuple((size(what, height), size(what, width)) for height, width in value)
    for pin in pins:
        if pin[0] * pin[1] > MOST_TILES * tile**2:
            raise CallError(
                f"image_grid_pinpoints holds {pin[0]} x {pin[1]}, more than {MOST_TILES} tiles of "
                f"{tile} x {tile} pixels; config.json is broken"
            )
        if pin[0] % tile or pin[1] % tile:
            raise CallError(
                f"image_grid_pinpoints holds {pin[0]} x {pin[1]}, which is not made of whole tiles "
                f"of {tile} x {tile} pixels, the vision tower's image_size"
            )
    return pins
