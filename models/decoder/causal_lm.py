"""What every model family does with its language model: embed, prefill, decode, logits."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.methods.inputs import VisionBlock
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.decoder.decoder import Decoder


class CausalLM(nnx.Module):
    """A decoder with its head, the part of a vision-language model behind the visual tokens.

    A subclass makes the parameters with `_make_language_model`; positions are (B, S), or (B, S, 3)
    where the decoder turns with three axes.
    """

    language_model: Decoder
    lm_head: nnx.Linear | None

    @property
    def projector(self) -> Any:
        """The part between the vision tower's features and the language model's width."""
        raise NotImplementedError

    @property
    def vision_blocks(self) -> tuple[VisionBlock, ...] | None:
        """The vision tower's blocks that run, where methods can run them (`inputs.INSIDE`)."""
        return None

    def vision_features(self, inputs: Any) -> tuple[jax.Array, jax.Array | None]:
        """The vision tower alone.

        Args:
            inputs: of one picture, from the family's `tower_inputs`.

        Returns:
            (what the projector takes, the class token's attention (T, N) or `None`).
        """
        raise NotImplementedError

    def _make_language_model(
        self,
        config: DecoderConfig,
        *,
        tied: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        mrope_section: tuple[int, ...] | None = None,
    ) -> None:
        """Make decoder and head; a tied head is the embedding table."""
        self.language_model = Decoder(config, rngs=rngs, dtype=dtype, mrope_section=mrope_section)
        self.lm_head = nnx.data(None)
        if not tied:
            self.lm_head = nnx.Linear(
                config.hidden_size, config.vocab_size, use_bias=False, param_dtype=dtype, rngs=rngs
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
            positions: (B, S) or (B, S, 3) int32.
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
            positions: (B, P) or (B, P, 3) int32.
            valid: (B, P) bool, False for padding.
            cache_len: slots of the new cache, at least P; those from P on are for the answer.

        Returns:
            (B, P, d), after the final norm, and the cache.
        """
        config = self.language_model.config
        cache = KVCache.zeros(config, x.shape[0], cache_len, dtype=x.dtype)
        with jax.named_scope("language_model"):
            hidden, filled = self.language_model.run_layers(
                x, positions, valid=valid, cache=cache, slot=0, padded_behind=True
            )
            assert filled is not None  # a cache went in
            return self.language_model.norm(hidden), filled

    def decode_step(
        self, x: jax.Array, positions: jax.Array, slot: jax.Array, cache: KVCache
    ) -> tuple[jax.Array, KVCache]:
        """Run the language model over one new token a row.

        Args:
            x: (B, 1, d), embeddings of the tokens.
            positions: (B, 1) int32, each row's own; the same on every axis.
            slot: scalar int32, the slot that all rows write; it becomes valid.
            cache: from `prefill` or an earlier step.

        Returns:
            (B, 1, d), after the final norm, and the cache with the new slot.
        """
        hidden, (filled,) = self.decode_segments(x, (positions,), (slot,), (cache,))
        return hidden, filled

    def decode_segments(
        self,
        x: jax.Array,
        positions: Sequence[jax.Array],
        slots: Sequence[jax.Array],
        caches: Sequence[KVCache],
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """`decode_step` of a decoder whose layers hold different tokens, segment by segment.

        Args:
            x: (B, 1, d), embeddings of the tokens.
            positions: for each segment (B, 1) int32, where its own tokens go on.
            slots: for each segment the slot that all rows write.
            caches: of the segments, which cover all layers together.

        Returns:
            (B, 1, d), after the final norm, and the caches with the new slots.
        """
        valid, filled = jnp.ones(x.shape[:2], bool), []
        with jax.named_scope("language_model"):
            for place, slot, cache in zip(positions, slots, caches, strict=True):
                x, written = self.language_model.run_layers(
                    x, place, valid=valid, cache=cache, slot=slot,
                    start=cache.start, stop=cache.stop,
                )  # fmt: skip
                assert written is not None  # a cache went in
                filled.append(written)
            return self.language_model.norm(x), tuple(filled)

    def place(
        self, rope: Any, keep: jax.Array, index: jax.Array, count: jax.Array, *, reindex: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Position ids of pruned prompts.

        Args:
            rope: what the family knows of the unpruned prompts' positions; not needed where they
                count up.
            keep: (B, S) bool, the tokens that stay.
            index: (B, P) int32, where in the unpruned prompt each of them was.
            count: (B,) int32, how many there are.
            reindex: consecutive again; else as in the unpruned prompt.

        Returns:
            (positions (B, P) or (B, P, 3) int32; the position of the first generated token (B,)).
        """
        if reindex:
            places = jnp.arange(index.shape[1], dtype=jnp.int32)
            return jnp.broadcast_to(places, index.shape), count
        last = jnp.take_along_axis(index, (count - 1)[:, None], axis=1)[:, 0]
        return index, last + 1

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
