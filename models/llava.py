"""LLaVA-1.5: images to visual tokens, prompts to hidden states and logits.

Nothing here is jitted and nothing is mutated: the caller splits the module once, passes its state
as an argument, merges inside its own jitted function and calls these methods there. Activations
take the dtype of the parameters in that state.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.methods.base import VisualTokens
from resprune_jax.models.cache import KVCache
from resprune_jax.models.clip import ClipVision
from resprune_jax.models.config import LlavaConfig
from resprune_jax.models.decoder import Decoder
from resprune_jax.models.layers import ACTIVATIONS


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


class Llava(nnx.Module):
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
        self.vision_tower = ClipVision(
            config.vision, config.num_vision_blocks, rngs=rngs, dtype=dtype
        )
        self.multi_modal_projector = Projector(config, rngs=rngs, dtype=dtype)
        self.language_model = Decoder(config.text, rngs=rngs, dtype=dtype)
        self.lm_head: nnx.Linear | None = nnx.data(None)
        if not config.tie_word_embeddings:
            self.lm_head = nnx.Linear(
                config.text.hidden_size,
                config.text.vocab_size,
                use_bias=False,
                param_dtype=dtype,
                rngs=rngs,
            )

    def encode_images(
        self, pixels: jax.Array, *, saliency: bool = False, features: bool = False
    ) -> VisualTokens:
        """Turn images into visual tokens.

        Args:
            pixels: (B, 3, H, W), normalised by the checkpoint's processor.
            saliency: also give the CLS attention (`VisualTokens.saliency`).
            features: also give the vision tower's output (`VisualTokens.features`).

        Returns:
            N = grid^2 tokens an image, in raster order, all valid; coords are (row, column) in
            patches.

        Raises:
            CallError: pixels of another shape than the tower's.
        """
        encoded, row = self.vision_tower(pixels, saliency=saliency)
        with jax.named_scope("projector"):
            embeddings = self.multi_modal_projector(encoded)
        batch, count = embeddings.shape[:2]
        rows, columns = jnp.divmod(jnp.arange(count), self.config.vision.grid)
        coords = jnp.stack([rows, columns], axis=-1).astype(jnp.float32)  # [N, 2]
        return VisualTokens(
            embeddings=embeddings,
            valid=jnp.ones((batch, count), bool),
            features=encoded if features else None,
            saliency=row,
            coords=jnp.broadcast_to(coords, (batch, count, 2)),
        )

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of the LLM's input embedding table.

        Args:
            ids: (...) int32; an id outside the vocabulary gives a row of NaN.

        Returns:
            (..., d).
        """
        return self.language_model.embed(ids)

    def forward(self, x: jax.Array, positions: jax.Array, valid: jax.Array) -> jax.Array:
        """Run the language model over whole prompts, without a cache.

        Args:
            x: (B, S, d), input embeddings.
            positions: (B, S) int32.
            valid: (B, S) bool, False for padding.

        Returns:
            (B, S, d), after the final norm; rows of padding are finite and mean nothing.
        """
        with jax.named_scope("language_model"):
            hidden, _ = self.language_model.run_layers(x, positions, valid=valid)
            return self.language_model.norm(hidden)

    def prefill(
        self, x: jax.Array, positions: jax.Array, valid: jax.Array, cache_len: int
    ) -> tuple[jax.Array, KVCache]:
        """Run the language model over prompts and keep their keys and values.

        Args:
            x: (B, P, d), input embeddings, rows padded on the right.
            positions: (B, P) int32.
            valid: (B, P) bool, False for padding.
            cache_len: slots of the new cache, at least P; those from P on are for the answer.

        Returns:
            (B, P, d), after the final norm, and the cache.
        """
        cache = KVCache.zeros(self.config.text, x.shape[0], cache_len, dtype=x.dtype)
        return self._cached(x, positions, valid, 0, cache)

    def decode_step(
        self, x: jax.Array, positions: jax.Array, slot: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Run the language model over one new token a row.

        Args:
            x: (B, 1, d), embeddings of the tokens.
            positions: (B, 1) int32, each row's own.
            slot: scalar int32, the slot that all rows write; it becomes valid.
            cache: from `prefill` or an earlier step.

        Returns:
            (B, 1, d), after the final norm, and the cache with the new slot.
        """
        return self._cached(x, positions, jnp.ones(x.shape[:2], bool), slot, cache)

    def _cached(
        self,
        x: jax.Array,
        positions: jax.Array,
        valid: jax.Array,
        slot: int | jax.Array,
        cache: KVCache,
    ) -> tuple[jax.Array, KVCache]:
        with jax.named_scope("language_model"):
            hidden, filled = self.language_model.run_layers(
                x, positions, valid=valid, cache=cache, slot=slot
            )
            assert filled is not None  # a cache went in
            return self.language_model.norm(hidden), filled

    def project_logits(self, hidden: jax.Array) -> jax.Array:
        """Logits of the hidden states that are asked for.

        Args:
            hidden: (..., d), after the final norm: only the rows whose logits are wanted.

        Returns:
            (..., V) float32: summed in float32 and not rounded to the parameters' dtype, in which
            near ties would become ties.
        """
        if self.lm_head is None:
            weights = self.language_model.embed_tokens.embedding[...].T
        else:
            weights = self.lm_head.kernel[...]  # [d, V]
        with jax.named_scope("lm_head"):
            return jnp.matmul(hidden, weights, preferred_element_type=jnp.float32)
