"""Many questions about one image in one sequence: segments that share the image's prefix.

The prefix (the template's opening and the visual tokens) is causal; every segment (question and
answer) sees the prefix and itself, never another segment. It is what the decoder computes for each
question alone, at a fraction of the work. Segments lie in chunks, several in each, so that short
questions waste no room.
"""

import jax
import jax.numpy as jnp

from resprune_jax.models.decoder.decoder import Decoder, DecoderAttention
from resprune_jax.models.decoder.rope import rope_tables

_MASKED = -1e30


def _attend(
    attention: DecoderAttention,
    x: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    prefix: int,
    visible: jax.Array,
) -> jax.Array:
    """One attention over [prefix, chunks one after another]: (B, P + C W, d) to the same.

    `visible` (B, C, W, W) says which tokens of its own chunk each token sees.
    """
    batch, length = x.shape[:2]
    chunks, size = visible.shape[1:3]
    width = attention.head_dim

    q, k, v = attention.heads(x, rope)
    q = q * width**-0.5

    def scores(pattern: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(pattern, a, b, preferred_element_type=jnp.float32)

    def own(y: jax.Array) -> jax.Array:
        return y[:, prefix:].reshape(batch, chunks, size, -1, width)

    front = slice(None, prefix)
    earlier = jnp.tril(jnp.ones((prefix, prefix), bool))
    to_front = jnp.where(earlier, scores("bshw,bthw->bhst", q[:, front], k[:, front]), _MASKED)
    to_front = jnp.exp(to_front - jax.lax.stop_gradient(to_front.max(-1, keepdims=True)))
    total = to_front.sum(-1)  # [B, H, P]
    mixed = jnp.einsum("bhst,bthw->bshw", to_front.astype(v.dtype), v[:, front])
    mixed = (mixed / total.transpose(0, 2, 1)[..., None]).astype(v.dtype)

    # Two blocks of scores under one softmax: all chunks against the prefix as one product, and each
    # chunk against itself.
    to_prefix = scores("bshw,bthw->bhst", q[:, prefix:], k[:, front])  # [B, H, C W, P]
    to_self = scores("bqshw,bqthw->bhqst", own(q), own(k))  # [B, H, C, W, W]
    to_self = jnp.where(visible[:, None], to_self, _MASKED)
    flat = to_prefix.shape[:3]
    peak = jnp.maximum(to_prefix.max(-1), to_self.max(-1).reshape(flat))
    peak = jax.lax.stop_gradient(peak)[..., None]
    to_prefix = jnp.exp(to_prefix - peak)
    to_self = jnp.exp(to_self - peak.reshape(*to_self.shape[:-1], 1))
    total = to_prefix.sum(-1) + to_self.sum(-1).reshape(flat)  # [B, H, C W]
    answered = jnp.einsum("bhst,bthw->bshw", to_prefix.astype(v.dtype), v[:, front])
    inside = jnp.einsum("bhqst,bqthw->bqshw", to_self.astype(v.dtype), own(v))
    answered = (answered + inside.reshape(answered.shape)) / total.transpose(0, 2, 1)[..., None]
    mixed = jnp.concatenate([mixed, answered.astype(v.dtype)], axis=1)
    return attention.o_proj(mixed.reshape(batch, length, -1))


def run_segments(
    decoder: Decoder, prefix: jax.Array, chunks: jax.Array, segment: jax.Array, place: jax.Array
) -> jax.Array:
    """Run the decoder over a prefix and the segments that share it.

    Args:
        decoder: without a sliding window, as many key heads as query heads.
        prefix: (B, P, d), input embeddings, no padding.
        chunks: (B, C, W, d), input embeddings; several segments a chunk, each in one piece.
        segment: (B, C, W) int32, which segment a token belongs to; padding may share a number.
        place: (B, C, W) int32, the token's place in its segment, from 0.

    Returns:
        (B, C, W, d), the chunks' hidden states after the final norm.
    """
    batch, count, size, width = chunks.shape
    length = prefix.shape[1]
    x = jnp.concatenate([prefix, chunks.reshape(batch, count * size, width)], axis=1)
    front = jnp.broadcast_to(jnp.arange(length), (batch, length))
    positions = jnp.concatenate([front, length + place.reshape(batch, -1)], axis=1)  # [B, P + C W]
    rope = rope_tables(positions, decoder.config.head_dim, decoder.config.rope_theta)
    same = segment[..., :, None] == segment[..., None, :]
    visible = same & jnp.tril(jnp.ones((size, size), bool))  # [B, C, W, W]
    for index, layer in enumerate(decoder.layers):
        with jax.named_scope(f"layer_{index}"):
            x = x + _attend(layer.self_attn, layer.input_layernorm(x), rope, length, visible)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
    return decoder.norm(x[:, length:]).reshape(chunks.shape)
