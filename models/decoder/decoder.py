"""One Llama-style decoder for Llama, Vicuna, Mistral and Qwen2, run as segments of layers.

Attribute names are the checkpoint's. Shapes: B rows, S new tokens, d width, H query heads, KV
key/value heads, hd head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.decoder.attention import attend
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.decoder.layers import RMSNorm
from resprune_jax.models.decoder.rope import apply_rope, rope_tables


class DecoderAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim

        def linear(width_in: int, width_out: int, bias: bool) -> nnx.Linear:
            return nnx.Linear(width_in, width_out, use_bias=bias, param_dtype=dtype, rngs=rngs)

        self.head_dim = config.head_dim
        self.window = config.sliding_window
        self.q_proj = linear(config.hidden_size, queries, config.qkv_bias)
        self.k_proj = linear(config.hidden_size, keys, config.qkv_bias)
        self.v_proj = linear(config.hidden_size, keys, config.qkv_bias)
        self.o_proj = linear(queries, config.hidden_size, False)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        valid: jax.Array | None,
        cache: KVCache | None,
        layer: int,
        slot: int | jax.Array,
    ) -> tuple[jax.Array, KVCache | None]:
        """Attend to the new tokens and to what the cache holds.

        Args:
            x: (B, S, d), normalised.
            rope: cosines and sines of the new tokens.
            valid: (B, S) bool; read only without a cache, which has its own.
            cache: keys and values so far, or `None` to attend to the new tokens alone.
            layer: index of this layer.
            slot: where the new tokens are written.

        Returns:
            (B, S, d), and the cache with the new tokens.
        """

        def heads(y: jax.Array) -> jax.Array:
            if cache is not None:
                # Where XLA may join the split into heads with the product, its TPU compiler turns
                # the weights to suit the cache, and keeps the copies all through decode.
                y = jax.lax.optimization_barrier(y)
            return y.reshape(*y.shape[:2], -1, self.head_dim)

        q = apply_rope(heads(self.q_proj(x)), *rope)  # [B, S, H, hd]
        k = apply_rope(heads(self.k_proj(x)), *rope)  # [B, S, KV, hd]
        v = heads(self.v_proj(x))
        if cache is not None:
            cache = cache.write(layer, slot, k, v)
            # A slot known before compiling bounds what can be seen: prefill does not read the
            # slots kept free for the answer.
            seen = slot + x.shape[1] if isinstance(slot, int) else cache.length
            k, v, valid = cache.read(layer, seen)
        mixed = attend(q, k, v, valid=valid, causal=True, offset=slot, window=self.window)
        return self.o_proj(mixed.reshape(*x.shape[:2], -1)), cache


class DecoderMlp(nnx.Module):
    """The gated MLP, down(silu(gate x) * up x)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, inner = config.hidden_size, config.intermediate_size

        def linear(width_in: int, width_out: int) -> nnx.Linear:
            return nnx.Linear(width_in, width_out, use_bias=False, param_dtype=dtype, rngs=rngs)

        self.gate_proj = linear(width, inner)
        self.up_proj = linear(width, inner)
        self.down_proj = linear(inner, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, S, d) to the same shape."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(width, epsilon, dtype=dtype)
        self.self_attn = DecoderAttention(config, rngs=rngs, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(width, epsilon, dtype=dtype)
        self.mlp = DecoderMlp(config, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        valid: jax.Array | None,
        cache: KVCache | None,
        layer: int,
        slot: int | jax.Array,
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the layer; arguments and results as in `DecoderAttention`, x not normalised."""
        mixed, cache = self.self_attn(self.input_layernorm(x), rope, valid, cache, layer, slot)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Decoder(nnx.Module):
    """The language model without its head: embedding table, layers, final norm."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        mrope_section: tuple[int, ...] | None = None,
    ) -> None:
        """Make the parameters.

        Args:
            config: every size.
            rngs: for the random initial values.
            dtype: dtype of the parameters.
            mrope_section: rotary frequencies for each axis of the positions (`rope_tables`);
                `None`: positions have one axis.
        """
        self.config = config
        self.mrope_section = mrope_section
        self.embed_tokens = nnx.Embed(
            config.vocab_size, config.hidden_size, param_dtype=dtype, rngs=rngs
        )
        self.layers = nnx.List(
            [DecoderLayer(config, rngs=rngs, dtype=dtype) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of the embedding table: (...) int32 to (..., d), NaN for an id outside it."""
        # nnx.Embed would cast the table to the dtype that the module was built with; here the dtype
        # is that of the parameters at hand.
        return jnp.take(self.embed_tokens.embedding[...], ids, axis=0)

    def run_layers(
        self,
        x: jax.Array,
        positions: jax.Array,
        *,
        valid: jax.Array | None = None,
        cache: KVCache | None = None,
        slot: int | jax.Array = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the layers [start, stop): prefill, decode and cache-free passes alike.

        Order in the sequence is the order of slots; positions only turn the heads, so a pruned
        prompt may keep its original ones.

        Args:
            x: (B, S, d), the residual stream before layer `start`.
            positions: (B, S) int32, rotary positions; a decoder with `mrope_section` also takes
                (B, S, 3), one for each axis.
            valid: (B, S) bool, False for padding among the new tokens; `None`: all are real.
            cache: covers exactly these layers; `None` attends to the new tokens alone.
            slot: scalar, where in the cache the new tokens go. A Python int lets attention leave
                out the slots behind them; a traced one reads the whole cache.
            start: the first layer.
            stop: one past the last layer; default: all.

        Returns:
            (B, S, d) before the final norm, and the cache with the new tokens (`None` without one).
        """
        stop = self.config.num_layers if stop is None else stop
        if cache is not None:
            if valid is None:
                valid = jnp.ones(x.shape[:2], bool)
            cache = cache.mark(slot, valid)
        else:
            slot = 0
        config = self.config
        rope = rope_tables(
            positions, config.head_dim, config.rope_theta, self.mrope_section, config.rope_scaling
        )
        for index in range(start, stop):
            with jax.named_scope(f"layer_{index}"):
                x, cache = self.layers[index](x, rope, valid, cache, index, slot)
        return x, cache
