"""The CLIP vision tower, up to the block that feeds the projector; its blocks are SigLIP's too.

Attribute names are the checkpoint's (`pre_layrnorm` is spelt so there). Blocks behind the last one
that runs, and the final norm of the class token, are not parameters of this module.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.attention import attend, attention_rows
from resprune_jax.models.decoder.layers import ACTIVATIONS, LayerNorm
from resprune_jax.models.towers.config import ClipConfig, VisionConfig


class ClipEmbeddings(nnx.Module):
    """Patches, the class token in front of them, and learned positions."""

    def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width = config.hidden_size
        patch = config.num_channels * config.patch_size**2
        self.config = config
        self.class_embedding = nnx.Param(jax.random.normal(rngs.params(), (width,), dtype))
        self.patch_embedding = nnx.Linear(
            patch, width, use_bias=False, param_dtype=dtype, rngs=rngs
        )
        self.position_embedding = nnx.Embed(
            config.num_patches + 1, width, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, pixels: jax.Array, *, smaller: bool = False) -> jax.Array:
        """Embed images.

        Args:
            pixels: (B, C, H, W), normalised.
            smaller: see `cut_patches`; positions are resized to the patches that there are.

        Returns:
            (B, 1 + N, v); the class token is row 0, patches follow in raster order.
        """
        x = self.patch_embedding(cut_patches(pixels, self.config, smaller=smaller))  # [B, N, v]
        first = jnp.broadcast_to(self.class_embedding[...], (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)
        table = self.position_embedding.embedding[...]
        places = resized_positions(table[1:], math.isqrt(x.shape[1]))
        return x + jnp.concatenate([table[:1], places])


def resized_positions(table: jax.Array, side: int) -> jax.Array:
    """Learned positions of a square grid for a smaller one, (side^2, v).

    Bicubic as transformers' `interpolate_pos_encoding`: cells are intervals, four taps with the
    factor -0.75, those beyond the border read the border, no antialiasing.

    Args:
        table: (n^2, v) in raster order.
        side: static; n gives the table as it is.
    """
    grid = math.isqrt(len(table))
    if side == grid:
        return table
    weights = jnp.asarray(_cubic_weights(grid, side))  # [side, n]
    square = table.astype(jnp.float32).reshape(grid, grid, -1)
    made = jnp.einsum("ri,cj,ijv->rcv", weights, weights, square, precision="highest")
    return made.reshape(side * side, -1).astype(table.dtype)


def _cubic_weights(length: int, new: int) -> np.ndarray:
    """What each of `length` cells gives each of `new` ones, (new, length) float32."""
    centre = (np.arange(new) + 0.5) * (length / new) - 0.5
    first = np.floor(centre).astype(int)
    weights = np.zeros((new, length))
    for tap in range(-1, 3):
        x = np.abs(centre - (first + tap))
        near = (1.25 * x - 2.25) * x * x + 1
        far = -0.75 * (((x - 5) * x + 8) * x - 4)
        cell = np.clip(first + tap, 0, length - 1)
        np.add.at(weights, (np.arange(new), cell), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


def cut_patches(pixels: jax.Array, config: VisionConfig, *, smaller: bool = False) -> jax.Array:
    """The patches of pictures, in raster order.

    Args:
        pixels: (B, C, H, W).
        config: for the sizes.
        smaller: they are a square of fewer whole patches than the tower's.

    Returns:
        (B, N, C * side * side).

    Raises:
        CallError: pixels of another shape.
    """
    expected = (config.num_channels, config.image_size, config.image_size)
    own = pixels.shape[-1] if pixels.ndim == 4 else 0
    if smaller and own in range(side := config.patch_size, config.grid * side, side):
        expected = (config.num_channels, own, own)
    if pixels.shape[1:] != expected:
        raise CallError(
            f"pixels have shape {pixels.shape}, expected (B, {', '.join(map(str, expected))}): "
            "resize images with the checkpoint's own processor"
        )
    channels, side = config.num_channels, config.patch_size
    grid = own // side
    used = grid * side  # a stride of one patch leaves a narrower rest unread
    patches = pixels[:, :, :used, :used].reshape(-1, channels, grid, side, grid, side)
    patches = patches.transpose(0, 2, 4, 1, 3, 5)  # [B, rows, columns, C, side, side]
    return patches.reshape(-1, grid * grid, channels * side * side)


class Attended(NamedTuple):
    """What a block's attention shows beside its result; XLA drops what nobody reads."""

    saliency: jax.Array  # [B, N] float32, of the class token to the patches, mean over heads
    keys: jax.Array  # [B, N, h] float32, of the patches, mean over heads


class TowerView(NamedTuple):
    """What a tower with a class token shows of pictures."""

    features: jax.Array  # [B, N, v] in raster order
    saliency: jax.Array  # [B, N] float32, see `Attended`, of the last block that runs
    class_features: jax.Array  # [B, v], the class token where `features` are
    keys: jax.Array  # [B, N, h] float32, see `Attended`, of the same block


class ClipAttention(nnx.Module):
    """Full self-attention, every projection with a bias."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width = config.hidden_size
        self.num_heads = config.num_heads

        def linear() -> nnx.Linear:
            return nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)

        self.q_proj, self.k_proj = linear(), linear()
        self.v_proj, self.out_proj = linear(), linear()

    def __call__(self, x: jax.Array, *, saliency: bool) -> tuple[jax.Array, Attended | None]:
        """Attend.

        Args:
            x: (B, 1 + N, v), normalised.
            saliency: also return what the class token attends to, and the keys.

        Returns:
            (B, 1 + N, v), and an `Attended` or `None`.
        """

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        mixed = self.out_proj(attend(q, k, v).reshape(x.shape))
        if not saliency:
            return mixed, None
        rows = attention_rows(q[:, :1], k)  # [B, H, 1, 1 + N]
        keys = jnp.mean(k[:, 1:].astype(jnp.float32), axis=2)
        return mixed, Attended(jnp.mean(rows[:, :, 0, 1:], axis=1), keys)


class ClipMlp(nnx.Module):
    """Two layers with the tower's activation between."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, inner = config.hidden_size, config.intermediate_size
        self.fc1 = nnx.Linear(width, inner, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(inner, width, param_dtype=dtype, rngs=rngs)
        self.activation = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, 1 + N, v) to the same shape."""
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class ClipBlock(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = LayerNorm(width, epsilon, dtype=dtype)
        self.self_attn = ClipAttention(config, rngs=rngs, dtype=dtype)
        self.layer_norm2 = LayerNorm(width, epsilon, dtype=dtype)
        self.mlp = ClipMlp(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, *, saliency: bool) -> tuple[jax.Array, Attended | None]:
        """Run the block; arguments and results as in `ClipAttention`, x not normalised."""
        mixed, attended = self.self_attn(self.layer_norm1(x), saliency=saliency)
        x = x + mixed
        return x + self.mlp(self.layer_norm2(x)), attended


class ClipEncoder(nnx.Module):
    """The blocks that run."""

    def __init__(
        self, config: VisionConfig, num_blocks: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        """Make `num_blocks` blocks; `config` gives every size."""
        self.layers = nnx.List(
            [ClipBlock(config, rngs=rngs, dtype=dtype) for _ in range(num_blocks)]
        )

    def __call__(self, x: jax.Array, *, saliency: bool) -> tuple[jax.Array, Attended | None]:
        """Run the blocks one after the other; as in `ClipBlock`, the last one's attention."""
        attended = None
        last = len(self.layers) - 1
        for index, block in enumerate(self.layers):
            with jax.named_scope(f"block_{index}"):
                x, attended = block(x, saliency=saliency and index == last)
        return x, attended


class ClipVision(nnx.Module):
    """The vision tower of LLaVA-1.5."""

    def __init__(
        self, config: ClipConfig, num_blocks: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        """Make the parameters.

        Args:
            config: every size.
            num_blocks: blocks to hold and run; the output of the last one is the result.
            rngs: for the random initial values.
            dtype: dtype of the parameters.
        """
        self.config = config
        self.embeddings = ClipEmbeddings(config, rngs=rngs, dtype=dtype)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)
        self.encoder = ClipEncoder(config, num_blocks, rngs=rngs, dtype=dtype)

    def __call__(
        self, pixels: jax.Array, *, saliency: bool = False, smaller: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Encode images.

        Args:
            pixels: (B, C, H, W), normalised, at the tower's own size.
            saliency: also return the attention of the class token in the last block that runs (one
                row beside the fused attention): what the pruning papers call CLS attention.
            smaller: pixels are a square of fewer whole patches, for which positions are resized.

        Returns:
            features: (B, N, v) in raster order, without the class token.
            saliency: (B, N) float32, mean over heads; not renormalised after the class token's own
                share was dropped. `None` unless asked for.

        Raises:
            CallError: pixels of another shape.
        """
        x, attended = self.encode(pixels, saliency=saliency, smaller=smaller)
        return x[:, 1:], None if attended is None else attended.saliency

    def look(self, pixels: jax.Array, *, smaller: bool = False) -> TowerView:
        """As calling the tower, with all that it shows beside the features."""
        x, attended = self.encode(pixels, saliency=True, smaller=smaller)
        assert attended is not None
        return TowerView(x[:, 1:], attended.saliency, x[:, 0], attended.keys)

    def encode(
        self, pixels: jax.Array, *, saliency: bool = False, smaller: bool = False
    ) -> tuple[jax.Array, Attended | None]:
        """As calling the tower, but features keep the class token in front: (B, 1 + N, v)."""
        with jax.named_scope("vision_tower"):
            pixels = pixels.astype(self.embeddings.class_embedding.dtype)
            x = self.embeddings(pixels, smaller=smaller)
            x = self.pre_layrnorm(x)  # [B, 1 + N, v]
            return self.encoder(x, saliency=saliency)
