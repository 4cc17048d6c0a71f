"""LLaVA-OneVision: tiles and frames to visual tokens, prompts to hidden states and logits.

As in `llava/module.py`, nothing here is jitted and nothing is mutated. Which patches become which
visual token, and with what weights, is in the tables of `packing.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.errors import CallError
from resprune_jax.methods.base import NEWLINE, VisualTokens
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.families.llava.module import Projector
from resprune_jax.models.families.onevision.config import OneVisionConfig
from resprune_jax.models.families.onevision.packing import TAPS, PackingTables
from resprune_jax.models.towers.siglip import SiglipVision


class OneVision(CausalLM):
    """A LLaVA-OneVision model; parameter paths are the canonical checkpoint names."""

    def __init__(
        self, config: OneVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Make the parameters at random; under `nnx.eval_shape` only their shapes.

        Args:
            config: the architecture.
            rngs: for the random initial values.
            dtype: dtype of the parameters; softmax, norms and rotations are float32 inside.
        """
        self.config = config
        self.vision_tower = SiglipVision(
            config.vision, config.num_vision_blocks, rngs=rngs, dtype=dtype
        )
        self.multi_modal_projector = Projector(config.tile_model, rngs=rngs, dtype=dtype)
        width = config.text.hidden_size
        newline = jax.random.normal(rngs.params(), (width,), dtype) * width**-0.5
        self.image_newline = nnx.Param(newline.astype(dtype))
        self._make_language_model(
            config.text, tied=config.tie_word_embeddings, rngs=rngs, dtype=dtype
        )

    @property
    def projector(self) -> Projector:
        """See `CausalLM.projector`."""
        return self.multi_modal_projector

    def vision_features(self, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        """See `CausalLM.vision_features`; "pixels" are (T, 3, H, W)."""
        return self.vision_tower(inputs["pixels"])

    def encode_images(
        self,
        pixels: jax.Array,
        tables: PackingTables,
        *,
        needs: frozenset[str] = frozenset(),
    ) -> VisualTokens:
        """Turn tiles and frames into packed visual tokens.

        Tiles do not see one another, and padding has no weight in any token, so it has no effect on
        valid tokens; those of padding are zero.

        Args:
            pixels: (B, T, 3, H, W), the tiles of each row's pictures and videos, normalised;
                padding tiles may hold anything.
            tables: of the same call, B rows of T tiles and N visual tokens.
            needs: of `inputs.ON_REQUEST` what is to be given too, "features" or "received": each
                weighted as the tokens are, 0 for newlines and padding.

        Returns:
            B rows of N tokens, padded behind; `kind` tells newlines apart. There is no class token,
            so no saliency.

        Raises:
            CallError: pixels of another shape than the tower's or the tables'.
        """
        expected = tuple(tables.tile_valid.shape)
        if pixels.ndim != 5 or pixels.shape[:2] != expected:
            raise CallError(
                f"pixels have shape {pixels.shape}, expected {expected} tiles of (3, H, W): take "
                "pixels and tables from one call"
            )
        tiles = pixels.reshape(-1, *pixels.shape[2:])  # [B * T, 3, H, W]
        more: dict[str, Any] = {}
        if "received" in needs:
            encoded, _, received, _ = self.vision_tower.look(tiles)
            more["received"] = _weighted(received[..., None], tables)[..., 0]
        else:
            encoded, _ = self.vision_tower(tiles)  # [B * T, P, v]
        with jax.named_scope("projector"):
            # In front of the gather: tokens are sums of projected patches.
            projected = self.multi_modal_projector(encoded)  # [B * T, P, d]
        with jax.named_scope("packing"):
            embeddings = _weighted(projected, tables)  # [B, N, d]
        newline = self.image_newline[...].astype(embeddings.dtype)
        kind = jnp.asarray(tables.kind)
        embeddings = jnp.where((kind == NEWLINE)[..., None], newline, embeddings)
        return VisualTokens(
            embeddings=embeddings,
            valid=jnp.asarray(tables.valid),
            features=_weighted(encoded, tables) if "features" in needs else None,
            coords=jnp.asarray(tables.coords),
            kind=kind,
            **more,
        )

    def visual_tokens(
        self, inputs: dict[str, Any], needs: frozenset[str] = frozenset()
    ) -> VisualTokens:
        """`encode_images` of what `OneVisionFamily.read` gives: "pixels" and "tables"."""
        return self.encode_images(inputs["pixels"], inputs["tables"], needs=needs)


def _weighted(values: jax.Array, tables: PackingTables) -> jax.Array:
    """Weighted sums (B, N, ...) of a row's patches (B * T, P, ...), in float32."""
    index, weight = jnp.asarray(tables.index), jnp.asarray(tables.weight)  # [B, N, 4]
    rows = values.reshape(index.shape[0], -1, values.shape[-1])  # [B, T * P, d]
    total = jnp.zeros((*index.shape[:2], values.shape[-1]), jnp.float32)
    for tap in range(TAPS):  # one at a time: all four would take four times the memory
        taken = jnp.take_along_axis(rows, index[:, :, tap, None], axis=1)
        total += weight[:, :, tap, None] * taken.astype(jnp.float32)
    return total.astype(values.dtype)
