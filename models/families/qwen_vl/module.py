"""Qwen2.5-VL and Qwen2-VL: packed images and videos to visual tokens, prompts to logits.

As in `llava.py`, nothing here is jitted and nothing is mutated: the caller splits the module once,
passes its state as an argument, merges inside its own jitted function and calls these methods
there. Positions come from `decoder/mrope.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.methods.base import VisualTokens
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.mrope import RopeIndex, pruned_positions
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig
from resprune_jax.models.towers.qwen_vision.tables import VisionTables
from resprune_jax.models.towers.qwen_vision.tower import QwenMerger, QwenVision


class Qwen25VL(CausalLM):
    """A Qwen2.5-VL model; parameter paths are the canonical checkpoint names."""

    def __init__(
        self, config: Qwen25VLConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Make the parameters at random; under `nnx.eval_shape` only their shapes.

        Args:
            config: the architecture.
            rngs: for the random initial values.
            dtype: dtype of the parameters; softmax, norms and rotations are float32 inside.
        """
        self.config = config
        self.visual = QwenVision(config.vision, rngs=rngs, dtype=dtype)
        self._make_language_model(
            config.text,
            tied=config.tie_word_embeddings,
            rngs=rngs,
            dtype=dtype,
            mrope_section=config.mrope_section,
        )

    @property
    def projector(self) -> QwenMerger:
        """See `CausalLM.projector`: the merger."""
        return self.visual.merger

    def vision_features(self, inputs: dict[str, Any]) -> tuple[jax.Array, None]:
        """See `CausalLM.vision_features`: patches, those of padding behind."""
        return self.visual(inputs["patches"], inputs["tables"])[0], None

    def encode_images(
        self, patches: jax.Array, tables: VisionTables, *, needs: frozenset[str] = frozenset()
    ) -> VisualTokens:
        """Turn a packed batch of images and videos into visual tokens.

        Args:
            patches: (P, channels * frames * side * side), from `images.pack`.
            tables: the same call's tables; they say which images form a row.
            needs: of `inputs.ON_REQUEST` what is to be given too: "features", the patches of each
                merged cell one behind the other, (B, N, merge_unit * v); "received", the mean over
                these patches.

        Returns:
            B rows of N tokens: the merged cells of each row's images in order, frame by frame in
            raster order, padded behind; coords are (row, column) in merged cells of the token's own
            frame. There is no class token, so no saliency.

        Raises:
            CallError: patches of another shape than the tables'.
        """
        received = None
        if "received" in needs:
            hidden, cells, received = self.visual.look(patches, tables)
        else:
            hidden, cells = self.visual(patches, tables)
        index = jnp.asarray(tables.tokens)  # [B, N]

        def rows(values: jax.Array) -> jax.Array:
            return jnp.take(values, index, axis=0, mode="fill", fill_value=0)

        count = cells.shape[0]
        return VisualTokens(
            embeddings=rows(cells),
            valid=index < count,
            features=rows(hidden.reshape(count, -1)) if "features" in needs else None,
            received=None if received is None else rows(received),
            coords=jnp.asarray(tables.token_coords),
        )

    def visual_tokens(
        self, inputs: dict[str, Any], needs: frozenset[str] = frozenset()
    ) -> VisualTokens:
        """`encode_images` of what `QwenFamily.read` gives: "patches" and "tables"."""
        return self.encode_images(inputs["patches"], inputs["tables"], needs=needs)

    def place(
        self, rope: RopeIndex, keep: jax.Array, index: jax.Array, count: jax.Array, *, reindex: bool
    ) -> tuple[jax.Array, jax.Array]:
        """As `CausalLM.place`, on three axes; `reindex` closes up behind each image."""
        moved, following = pruned_positions(rope, keep, "compact" if reindex else "original")
        return jnp.take_along_axis(moved, index[..., None], axis=1, mode="clip"), following


class Qwen2VL(Qwen25VL):
    """A Qwen2-VL model: the tower is another by its configuration."""
