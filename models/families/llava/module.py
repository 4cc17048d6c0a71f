"""LLaVA-1.5: images to visual tokens, prompts to hidden states and logits.

Nothing here is jitted and nothing is mutated: the caller splits the module once, passes its state
as an argument, merges inside its own jitted function and calls these methods there. Activations
take the dtype of the parameters in that state.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.methods.inputs import SHOWN, VisionBlock, VisualTokens
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.layers import ACTIVATIONS
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.towers.clip import ClipVision
from resprune_jax.models.towers.siglip import make_tower


class Projector(nnx.Module):
    """Two layers from the vision tower's width into the LLM's embedding space."""

    def __init__(self, config: LlavaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""

        def linear(width_in: int, width_out: int) -> nnx.Linear:
            return nnx.Linear(
                width_in,
                width_out,
                use_bias=config.projector_bias,
                param_dtype=dtype,
                rngs=rngs,
            )

        self.linear_1 = linear(config.vision.hidden_size, config.text.hidden_size)
        self.linear_2 = linear(config.text.hidden_size, config.text.hidden_size)
        self.activation = config.projector_act

    def __call__(self, features: jax.Array) -> jax.Array:
        """(B, N, v) to (B, N, d)."""
        return self.linear_2(ACTIVATIONS[self.activation](self.linear_1(features)))


class Llava(CausalLM):
    """A LLaVA-1.5 model; parameter paths are the canonical checkpoint names."""

    def __init__(
        self, config: LlavaConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Make the parameters at random; under `nnx.eval_shape` only their shapes.

        Args:
            config: the architecture.
            rngs: for the random initial values.
            dtype: dtype of the parameters; softmax, norms and rotations are float32 inside.
        """
        self.config = config
        self.vision_tower = make_tower(
            config.vision, config.num_vision_blocks, rngs=rngs, dtype=dtype
        )
        self.multi_modal_projector = Projector(config, rngs=rngs, dtype=dtype)
        self._make_language_model(
            config.text, tied=config.tie_word_embeddings, rngs=rngs, dtype=dtype
        )

    @property
    def projector(self) -> Projector:
        """See `CausalLM.projector`."""
        return self.multi_modal_projector

    @property
    def vision_blocks(self) -> tuple[VisionBlock, ...] | None:
        """See `CausalLM.vision_blocks`."""
        tower = self.vision_tower
        return tuple(tower.encoder.blocks) if isinstance(tower, ClipVision) else None

    def vision_features(self, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        """See `CausalLM.vision_features`; "pixels" are (T, 3, H, W)."""
        return self.vision_tower(inputs["pixels"], saliency=True)

    def encode_images(
        self,
        pixels: jax.Array,
        *,
        saliency: bool = False,
        needs: frozenset[str] = frozenset(),
        smaller: bool = False,
    ) -> VisualTokens:
        """Turn images into visual tokens.

        Args:
            pixels: (B, 3, H, W), normalised by the checkpoint's processor.
            saliency: also give the CLS attention (`VisualTokens.saliency`), where the tower has a
                class token.
            needs: those of `inputs.ON_REQUEST` that are to be given too; those of a class token
                where the tower has one.
            smaller: pixels are a square of fewer whole patches than the tower's.

        Returns:
            N = grid^2 tokens an image, in raster order, all valid; coords are (row, column) in
            patches.

        Raises:
            CallError: pixels of another shape than the tower's.
        """
        more: dict[str, Any] = {}
        row: jax.Array | None
        if needs & SHOWN:
            seen = self.vision_tower.look(pixels, smaller=smaller)
            encoded, row, more = seen.features, seen.saliency, seen.parts()
        else:
            encoded, row = self.vision_tower(pixels, saliency=saliency, smaller=smaller)
        with jax.named_scope("projector"):
            embeddings = self.multi_modal_projector(encoded)
        batch, count = embeddings.shape[:2]
        rows, columns = jnp.divmod(jnp.arange(count), math.isqrt(count))
        more["tile"] = jnp.zeros((batch, count, 3), jnp.int32)  # all of one, and no others
        coords = jnp.stack([rows, columns], axis=-1).astype(jnp.float32)  # [N, 2]
        return VisualTokens(
            embeddings=embeddings,
            valid=jnp.ones((batch, count), bool),
            features=encoded if "features" in needs else None,
            saliency=row,
            coords=jnp.broadcast_to(coords, (batch, count, 2)),
            **{name: part for name, part in more.items() if name in needs},
        )

    def visual_tokens(
        self, inputs: dict[str, jax.Array], needs: frozenset[str] = frozenset()
    ) -> VisualTokens:
        """`encode_images` of what `LlavaFamily.read` gives, the images of a row side by side.

        Args:
            inputs: "pixels" (I, 3, H, W); where rows hold several images, "rows" (B, R) int32
                numbers them, -1 for none; "smaller" where `read_smaller` made them.

        Returns:
            B rows of R * N tokens.
        """
        visual = self.encode_images(
            inputs["pixels"], saliency=True, needs=needs, smaller="smaller" in inputs
        )
        if (rows := inputs.get("rows")) is None:
            return visual

        def joined(values: jax.Array) -> jax.Array:
            taken = values[rows]  # [B, R, N, ...]
            return taken.reshape(taken.shape[0], -1, *taken.shape[3:])

        side_by_side = jax.tree.map(joined, visual)
        there = jnp.repeat(rows >= 0, visual.valid.shape[1], axis=1)
        return dataclasses.replace(side_by_side, valid=there)
