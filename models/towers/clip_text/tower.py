"""CLIP's text tower and the head for patches; attribute names are the checkpoint's.

Nothing here is jitted: see `running/clip.py`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.decoder.attention import attend
from resprune_jax.models.decoder.layers import LayerNorm
from resprune_jax.models.towers.clip import ClipMlp
from resprune_jax.models.towers.clip_text.config import (
    UNKNOWN_EOS,
    ClipPairConfig,
    ClipTextConfig,
)


class TextEmbeddings(nnx.Module):
    """Tokens and learned positions."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""

        def table(rows: int) -> nnx.Embed:
            return nnx.Embed(rows, config.hidden_size, param_dtype=dtype, rngs=rngs)

        self.token_embedding = table(config.vocab_size)
        self.position_embedding = table(config.positions)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Ids (S, L') int32 to (S, L', w)."""
        positions = self.position_embedding.embedding[: ids.shape[1]]
        return self.token_embedding.embedding[ids] + positions


class TextAttention(nnx.Module):
    """Causal self-attention, every projection with a bias."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""

        def linear() -> nnx.Linear:
            width = config.hidden_size
            return nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)

        self.num_heads = config.num_heads
        self.q_proj, self.k_proj = linear(), linear()
        self.v_proj, self.out_proj = linear(), linear()

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """(S, L', w), normalised, and (S, L') bool to (S, L', w)."""

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        return self.out_proj(attend(q, k, v, valid=valid, causal=True).reshape(x.shape))


class TextBlock(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = LayerNorm(width, epsilon, dtype=dtype)
        self.self_attn = TextAttention(config, rngs=rngs, dtype=dtype)
        self.layer_norm2 = LayerNorm(width, epsilon, dtype=dtype)
        self.mlp = ClipMlp(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """(S, L', w) and (S, L') bool to (S, L', w)."""
        x = x + self.self_attn(self.layer_norm1(x), valid)
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nnx.Module):
    """The blocks."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the blocks; `config` gives every size."""
        blocks = range(config.num_layers)
        self.layers = nnx.List([TextBlock(config, rngs=rngs, dtype=dtype) for _ in blocks])


class ClipText(nnx.Module):
    """The text tower, without its projection."""

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        self.config = config
        self.embeddings = TextEmbeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = TextEncoder(config, rngs=rngs, dtype=dtype)
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)

    def __call__(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        """Read texts.

        Args:
            ids: (S, L') int32, right padded, L' at most `positions`.
            valid: (S, L') bool.

        Returns:
            (S, w), the state of the token at which each text is read: its first EOS, or its largest
            id in checkpoints that do not know their EOS. Without any EOS that is token 0, as
            transformers has it.
        """
        with jax.named_scope("clip_text"):
            x = self.embeddings(ids)
            for block in self.encoder.layers:
                x = block(x, valid)
            x = self.final_layer_norm(x)
        eos = self.config.eos_token_id
        at = jnp.argmax(ids if eos == UNKNOWN_EOS else ids == eos, axis=-1)  # the first of equals
        return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]


class ImageEnd(nnx.Module):
    """What of the vision tower stands behind its last block."""

    def __init__(self, config: ClipPairConfig, *, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        vision = config.vision
        self.post_layernorm = LayerNorm(vision.hidden_size, vision.layer_norm_eps, dtype=dtype)


class ClipPair(nnx.Module):
    """Texts and patches in one space; parameter paths are the checkpoint's names."""

    def __init__(
        self, config: ClipPairConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Make the parameters at random; under `nnx.eval_shape` only their shapes."""

        def projection(width: int) -> nnx.Linear:
            return nnx.Linear(
                width, config.projection_dim, use_bias=False, param_dtype=dtype, rngs=rngs
            )

        self.config = config
        self.text_model = ClipText(config.text, rngs=rngs, dtype=dtype)
        self.vision_model = ImageEnd(config, dtype=dtype)
        self.text_projection = projection(config.text.hidden_size)
        self.visual_projection = projection(config.vision.hidden_size)

    def texts(self, ids: jax.Array, valid: jax.Array) -> jax.Array:
        """Embeddings (S, c) of texts; arguments as for `ClipText`."""
        return self.text_projection(self.text_model(ids, valid))

    def patches(self, features: jax.Array) -> jax.Array:
        """W LN_post(x) of patches (..., v) in float32: (..., c)."""
        wide = features.astype(jnp.float32)
        return self.visual_projection(self.vision_model.post_layernorm(wide))
