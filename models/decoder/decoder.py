"""One Llama-style decoder for Llama, Vicuna, Mistral and Qwen2, run as segments of layers.

Attribute names are the checkpoint's. Shapes: B rows, S new tokens, d width, H query heads, KV
key/value heads, hd head width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.decoder import gpu
from resprune_jax.models.decoder.attention import attend
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.decoder.layers import JoinedLinear, Normed, RMSNorm, gated
from resprune_jax.models.decoder.rope import apply_rope, rope_tables


class DecoderAttention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        self.qkv_proj = JoinedLinear(
            config.hidden_size, config.num_kv_heads,
            (config.num_heads // config.num_kv_heads, 1, 1), config.head_dim,
            use_bias=config.qkv_bias, rngs=rngs, dtype=dtype,
        )  # fmt: skip
        self.o_proj = nnx.Linear(
            config.num_heads * config.head_dim, config.hidden_size,
            use_bias=False, param_dtype=dtype, rngs=rngs,
        )  # fmt: skip

    def heads(
        self, x: jax.Array | Normed, rope: tuple[jax.Array, jax.Array], *, whole: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries and keys, rotated, and values.

        Args:
            x: (B, S, d), normalised.
            rope: cosines and sines of the tokens.
            whole: make the product by itself, not joined with what reads it.

        Returns:
            (B, S, H, hd), (B, S, KV, hd) twice.
        """
        joined = self.qkv_proj(x)  # [B, S, KV, G + 2, hd]
        if whole and not isinstance(x, Normed):  # which does so by itself
            joined = jax.lax.optimization_barrier(joined)
        at_once = gpu.in_use()
        if at_once:
            joined = gpu.turn_joined(joined, *rope)
        q = joined[:, :, :, :-2].reshape(*joined.shape[:2], -1, self.head_dim)
        k, v = joined[:, :, :, -2], joined[:, :, :, -1]
        return (q, k, v) if at_once else (apply_rope(q, *rope), apply_rope(k, *rope), v)

    def queries(self, x: jax.Array) -> jax.Array:
        """The queries of some tokens alone, not rotated: (B, R, d) to (B, R, H hd)."""
        return self.qkv_proj.layer(0, x)

    def keys(self, x: jax.Array) -> jax.Array:
        """The keys of some tokens alone, not rotated: (B, R, d) to (B, R, KV hd)."""
        return self.qkv_proj.layer(1, x)

    def __call__(
        self,
        x: jax.Array | Normed,
        rope: tuple[jax.Array, jax.Array],
        valid: jax.Array | None,
        cache: KVCache | None,
        layer: int,
        slot: int | jax.Array,
        padded_behind: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Attend to the new tokens and to what the cache holds.

        Args:
            x: (B, S, d), normalised.
            rope: cosines and sines of the new tokens.
            valid: (B, S) bool; read only without a cache, which has its own.
            cache: keys and values so far, or `None` to attend to the new tokens alone.
            layer: index of this layer.
            slot: where the new tokens are written.
            padded_behind: see `attend`.

        Returns:
            (B, S, d), and the cache with the new tokens.
        """
        # Where XLA may join the split into heads with the product, its TPU compiler turns the
        # weights to suit the cache, and keeps the copies all through decode.
        q, k, v = self.heads(x, rope, whole=cache is not None)
        if cache is not None:
            cache = cache.write(layer, slot, k, v)
            # A slot known before compiling bounds what can be seen: prefill does not read the
            # slots kept free for the answer.
            seen = slot + q.shape[1] if isinstance(slot, int) else cache.length
            k, v, valid = cache.read(layer, seen)
        mixed = attend(
            q, k, v, valid=valid, causal=True, offset=slot, window=self.window,
            padded_behind=padded_behind,
        )  # fmt: skip
        return self.o_proj(mixed.reshape(*q.shape[:2], -1)), cache


class DecoderMlp(nnx.Module):
    """The gated MLP, down(silu(gate x) * up x)."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, inner = config.hidden_size, config.intermediate_size
        groups = config.mlp_groups
        self.gate_up_proj = JoinedLinear(
            width, groups, (1, 1), inner // groups, use_bias=False, rngs=rngs, dtype=dtype
        )
        self.down_proj = nnx.Linear(inner, width, use_bias=False, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        """(B, S, d) to the same shape."""
        joined = self.gate_up_proj(x)  # [B, S, groups, 2, inner / groups]
        return self.down_proj(gated(joined).reshape(*joined.shape[:-3], -1))


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
        padded_behind: bool = False,
    ) -> tuple[jax.Array, KVCache | None]:
        """Run the layer; arguments and results as in `DecoderAttention`, x not normalised."""
        x, y = self.input_layernorm.of_a_step(x)
        mixed, cache = self.self_attn(y, rope, valid, cache, layer, slot, padded_behind)
        x, y = self.post_attention_layernorm.of_a_step(x + mixed)
        return x + self.mlp(y), cache


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
        padded_behind: bool = False,
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
            padded_behind: the padding of each row lies behind its real tokens; see `attend`.

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
                x, cache = self.layers[index](x, rope, valid, cache, index, slot, padded_behind)
        return x, cache
