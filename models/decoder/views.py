"""What a method sees between two layers of the decoder, made beside the layers.

Attention rows are computed anew for the queries that are asked for, from the keys that the layer
itself has written to its cache.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from resprune_jax.methods.inputs import LayerView, PromptContext, VisualTokens
from resprune_jax.models.decoder.attention import attention_rows, seen_by
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.decoder import Decoder
from resprune_jax.models.decoder.rope import apply_rope, rope_tables


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segment:
    """Prompts between two layers, rows right padded.

    Attributes:
        x: (B, S, d), the residual stream.
        positions: (B, S) or (B, S, 3) int32.
        count: (B,) int32, real slots.
        number: (B, S) int32, which of the present visual tokens stands here, -1 for text.
        original: (B, N) int32, which of the prompt's visual tokens each present one is; `tokens`
            for padding and for one that was merged of others.
        following: (B,) int32, the position of the first generated token.
        owner: (B, tokens) int32, which image of its prompt each visual token belongs to.
        words: (B,) int32, text tokens behind the prompt's last visual token, dropped ones included;
            they end the sequence.
        tokens: the prompt's visual tokens at first, static.
    """

    x: jax.Array
    positions: jax.Array
    count: jax.Array
    number: jax.Array
    original: jax.Array
    following: jax.Array
    owner: jax.Array
    words: jax.Array
    tokens: int = field(metadata={"static": True})

    @property
    def valid(self) -> jax.Array:
        """(B, S) bool, real slots."""
        return jnp.arange(self.x.shape[1]) < self.count[:, None]

    @property
    def visual(self) -> jax.Array:
        """(B,) int32, present visual tokens."""
        return jnp.sum(self.number >= 0, axis=1, dtype=jnp.int32)

    def visual_places(self) -> jax.Array:
        """(B, N) int32, the slots of the visual tokens, S behind the last."""
        return compact(self.number >= 0, self.original.shape[1])[0]

    def text_places(self, room: int) -> jax.Array:
        """(B, room) int32, the slots of the prompt's last `words`, S where they end.

        The same tokens in every segment: where the last image loses all of its tokens, the text in
        front of it does not join them.
        """
        first = (self.count - self.words)[:, None]
        return compact(self.valid & (jnp.arange(self.x.shape[1]) >= first), room)[0]


def words_behind(number: jax.Array, count: jax.Array) -> jax.Array:
    """Text tokens behind the last visual one, (B,) int32; all where there is none.

    Args:
        number: (B, S) int32, -1 for text and padding.
        count: (B,) int32, real slots.
    """
    slot = jnp.arange(number.shape[1], dtype=jnp.int32)
    return count - 1 - jnp.max(jnp.where(number >= 0, slot, -1), axis=1)


def compact(keep: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Where each kept entry of a row goes when the others leave, order unchanged.

    Args:
        keep: (B, S) bool.
        length: P, the static length of the result, at least the longest row's count.

    Returns:
        (index (B, P) int32 into S, S where a row has ended; count (B,) int32).
    """
    batch, size = keep.shape
    target = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, length)  # [B, S]
    source = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, size))
    index = jnp.full((batch, length), size, jnp.int32)
    index = jax.vmap(lambda row, at, what: row.at[at].set(what, mode="drop"))(index, target, source)
    return index, jnp.sum(keep, axis=1, dtype=jnp.int32)


def take(values: jax.Array, index: jax.Array, fill: int) -> jax.Array:
    """values (B, S, ...) at index (B, P), `fill` where the index lies outside."""
    at = index.reshape(*index.shape, *(1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, at, axis=1, mode="fill", fill_value=fill)


def layer_view(
    decoder: Decoder,
    segment: Segment,
    entered: jax.Array,
    cache: KVCache,
    optional: VisualTokens,
    needs: frozenset[str],
    memory: object,
    *,
    room: int,
) -> tuple[VisualTokens, PromptContext]:
    """What a method sees in front of layer K.

    Args:
        decoder: the layers.
        segment: the prompts behind layer K - 1.
        entered: (B, S, d), what entered layer K - 1.
        cache: of the layers up to K - 1.
        optional: the prompt's own visual tokens, with the optional parts that are read.
        needs: what the method reads.
        memory: what it remembers.
        room: M.

    Returns:
        (the visual tokens, the text behind them), B rows.
    """
    size = segment.x.shape[1]
    before = cache.stop - 1
    visual, text = segment.visual_places(), segment.text_places(room)
    parts: dict[str, Any] = {}
    last = (segment.count - 1)[:, None]  # [B, 1]

    def columns(rows: jax.Array) -> jax.Array:
        """Of attention rows (B, H, R, S) the visual columns (B, H, R, N)."""
        return jnp.take_along_axis(rows, visual[:, None, None], axis=3, mode="fill", fill_value=0)

    keys, _, valid = cache.read(before, size)
    asks = _Asker(decoder, segment, valid)
    if "attention" in needs:
        parts["attention"] = columns(asks.rows(before, entered, last, keys))[:, :, 0]
    if "text_attention" in needs:
        parts["text_attention"] = columns(asks.rows(before, entered, text, keys))
    if "next_attention" in needs:
        own = asks.keys(cache.stop, segment.x)
        parts["next_attention"] = columns(asks.rows(cache.stop, segment.x, last, own))[:, :, 0]
    if "gravity" in needs:
        parts["gravity"] = columns(asks.gravity(text))[:, 0]
    if "keys" in needs:
        parts["keys"], parts["text_keys"] = take(keys, visual, 0), take(keys, text, 0)
    if "final_states" in needs:
        states = decoder.norm(segment.x)
        parts["final_states"] = take(states, visual, 0)
        parts["text_final_states"] = take(states, text, 0)
    embeddings = take(segment.x, visual, 0)
    if "bare_keys" in needs:
        parts["bare_keys"] = decoder.layers[cache.stop].self_attn.keys(embeddings)
    layer = LayerView(take(segment.owner, segment.original, -1), memory, **parts)
    own_parts: dict[str, Any] = {
        name: None if values is None else take(values, segment.original, 0)
        for name in ("features", "saliency", "coords", "kind")
        for values in [getattr(optional, name)]
    }
    image = VisualTokens(embeddings, visual < size, layer=layer, **own_parts)
    return image, PromptContext(take(segment.x, text, 0), text < size)


@dataclass(frozen=True)
class _Asker:
    """Attention rows of a few queries of a segment."""

    decoder: Decoder
    segment: Segment
    valid: jax.Array

    def rows(self, layer: int, x: jax.Array, slots: jax.Array, keys: jax.Array) -> jax.Array:
        """Attention of the queries in `slots` (B, R) of a layer that x enters: (B, H, R, S)."""
        own = self.decoder.layers[layer]
        normed = own.input_layernorm(take(x, slots, 0))
        q = own.self_attn.queries(normed)  # [B, R, H hd]
        q = q.reshape(*q.shape[:2], -1, own.self_attn.head_dim)
        q = apply_rope(q, *self._turn(take(self.segment.positions, slots, 0)))
        return attention_rows(q, keys, valid=self._seen(slots))

    def keys(self, layer: int, x: jax.Array) -> jax.Array:
        """The keys of a layer that x enters, rotated: (B, S, KV, hd)."""
        own = self.decoder.layers[layer]
        k = own.self_attn.keys(own.input_layernorm(x))
        k = k.reshape(*k.shape[:2], -1, own.self_attn.head_dim)
        return apply_rope(k, *self._turn(self.segment.positions))

    def gravity(self, slots: jax.Array) -> jax.Array:
        """`rows` of one head whose queries and keys are ones in front of their rotation."""
        positions = self.segment.positions
        width = self.decoder.config.head_dim

        def turned(at: jax.Array) -> jax.Array:
            return apply_rope(jnp.ones((*at.shape[:2], 1, width)), *self._turn(at))

        return attention_rows(
            turned(take(positions, slots, 0)), turned(positions), valid=self._seen(slots)
        )

    def _seen(self, slots: jax.Array) -> jax.Array:
        return seen_by(slots, self.valid, self.decoder.config.sliding_window)

    def _turn(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        config = self.decoder.config
        return rope_tables(
            positions, config.head_dim, config.rope_theta, self.decoder.mrope_section,
            config.rope_scaling,
        )  # fmt: skip
