"""The CLIP vision tower, up to the block that feeds the projector; its blocks are SigLIP's too.

Attribute names are the checkpoint's (`pre_layrnorm` is spelt so there). Blocks behind the last one
that runs, and the final norm of the class token, are not parameters of this module, but for what
makes the queries and keys of the very next block: PruMerge reads them.
"""

import math
from collections.abc import Collection
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.decoder import gpu
from resprune_jax.models.decoder.attention import attend, attention_columns, attention_rows
from resprune_jax.models.decoder.layers import ACTIVATIONS, JoinedLinear, LayerNorm
from resprune_jax.models.towers.config import ClipConfig, VisionConfig
from resprune_jax.models.towers.patches import cut_patches, resized_positions


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


class Attended(NamedTuple):
    """What a block's attention shows beside its result; XLA drops what nobody reads."""

    saliency: jax.Array  # [B, S - 1] float32, of the first token to the others, mean over heads
    keys: jax.Array  # [B, S, h] float32, mean over heads
    received: jax.Array  # [B, S] float32, by each token, mean over heads and all S queries


class TowerView(NamedTuple):
    """What a tower with a class token shows of pictures."""

    features: jax.Array  # [B, N, v] in raster order
    saliency: jax.Array  # [B, N] float32, see `Attended`, of the last block that runs
    class_features: jax.Array  # [B, v], the class token where `features` are
    keys: jax.Array  # [B, N, h] float32, see `Attended`, of the same block
    received: jax.Array  # [B, N] float32, likewise; the class token is one of the queries
    early_saliency: jax.Array  # [B, N] float32, see `Attended`, of the first block
    entering: jax.Array  # [B, 1 + N, v], into the first block, the class token in front
    next_saliency: jax.Array | None  # [B, N] float32, see `ClipNextBlock`; None if there is none
    next_keys: jax.Array | None  # [B, N, v] float32, likewise

    def parts(self) -> dict[str, jax.Array]:
        """Those for each patch that only some methods read, as `VisualTokens` names them."""

        def spread(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x[:, None], self.features.shape)

        made = {
            "class_features": spread(self.class_features),
            "entering": self.entering[:, 1:],
            "class_entering": spread(self.entering[:, 0]),
            "encoder_keys": self.keys,
            "received": self.received,
            "early_saliency": self.early_saliency,
            "next_saliency": self.next_saliency,
            "next_keys": self.next_keys,
        }
        return {name: part for name, part in made.items() if part is not None}


class ClipAttention(nnx.Module):
    """Full self-attention, every projection with a bias."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, heads = config.hidden_size, config.num_heads
        self.qkv_proj = JoinedLinear(
            width, heads, (1, 1, 1), width // heads, use_bias=True, rngs=rngs, dtype=dtype
        )
        self.out_proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)

    def heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values: (..., v), normalised, to (..., H, hd) each."""
        joined = self.qkv_proj(x)  # [..., H, 3, hd]
        if gpu.in_use():
            q, k, v = gpu.layers_of(joined)
            return q, k, v
        return joined[..., 0, :], joined[..., 1, :], joined[..., 2, :]

    def __call__(self, x: jax.Array, *, saliency: bool) -> tuple[jax.Array, Attended | None]:
        """Attend.

        Args:
            x: (B, S, v), normalised: the patches, the class token in front where there is one.
            saliency: also return what the class token attends to, what all tokens receive, and the
                keys.

        Returns:
            (B, S, v), and an `Attended` or `None`.
        """
        q, k, v = self.heads(x)
        mixed = self.out_proj(attend(q, k, v).reshape(x.shape))
        if not saliency:
            return mixed, None
        rows = attention_rows(q[:, :1], k)  # [B, H, 1, S]
        keys = jnp.mean(k.astype(jnp.float32), axis=2)
        received = attention_columns(q, k) / x.shape[1]
        return mixed, Attended(jnp.mean(rows[:, :, 0, 1:], axis=1), keys, received)

    def biased(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attend with a number added to all scores of each key.

        Args:
            x: (S, v), normalised, of one picture.
            bias: (S,) float32, -inf for what is not there.

        Returns:
            (S, v), and the keys (S, H, hd).
        """
        q, k, v = self.heads(x)
        scores = jnp.einsum("shd,thd->hst", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5 + bias, axis=-1).astype(v.dtype)
        mixed = jnp.einsum("hst,thd->shd", weights, v, preferred_element_type=jnp.float32)
        return self.out_proj(mixed.astype(x.dtype).reshape(x.shape)), k


class MlpSizes(Protocol):
    """What a configuration says of its blocks' two layers."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def hidden_act(self) -> str: ...


class ClipMlp(nnx.Module):
    """Two layers with the tower's activation between; CLIP's texts have them too."""

    def __init__(self, config: MlpSizes, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
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
        return x + self.feed(x), attended

    def attend(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `VisionBlock.attend`."""
        return self.self_attn.biased(self.layer_norm1(x), bias)

    def feed(self, x: jax.Array) -> jax.Array:
        """See `VisionBlock.feed`; (..., v) to the same shape."""
        return self.mlp(self.layer_norm2(x))


class ClipNextAttention(nnx.Module):
    """The queries and keys of a block that does not run."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width = config.hidden_size
        self.q_proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)


class ClipNextBlock(nnx.Module):
    """What the class token sees of the patches in a block that does not run."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps, dtype=dtype)
        self.self_attn = ClipNextAttention(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The class token's attention with heads not split, and the keys.

        Args:
            x: (B, 1 + N, v), the output of the block in front.

        Returns:
            (B, N) float32, after a softmax at scale 1 / sqrt(v) over all 1 + N keys, the class
            token's own share dropped; and (B, N, v) float32.
        """
        x = self.layer_norm1(x)
        query = self.self_attn.q_proj(x[:, :1])
        keys = self.self_attn.k_proj(x)
        row = attention_rows(query[:, :, None], keys[:, :, None])  # [B, 1, 1, 1 + N]
        return row[:, 0, 0, 1:], keys[:, 1:].astype(jnp.float32)


class ClipEncoder(nnx.Module):
    """The blocks that run, and what is read of the one behind them."""

    def __init__(
        self,
        config: VisionConfig,
        num_blocks: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        next_block: bool = False,
    ) -> None:
        """Make `num_blocks` blocks; `config` gives every size.

        With `next_block`, a `ClipNextBlock` stands behind them, under the checkpoint's number.
        """
        blocks: list[nnx.Module] = [
            ClipBlock(config, rngs=rngs, dtype=dtype) for _ in range(num_blocks)
        ]
        if next_block:
            # Of a stream of its own: what is drawn behind the tower does not depend on it.
            own = nnx.Rngs(jax.random.fold_in(rngs.params.key[...], num_blocks))
            blocks.append(ClipNextBlock(config, rngs=own, dtype=dtype))
        self.layers = nnx.List(blocks)
        self.num_blocks = num_blocks

    @property
    def blocks(self) -> list[ClipBlock]:
        """Those that run."""
        return [block for block in self.layers if isinstance(block, ClipBlock)]

    @property
    def next_block(self) -> ClipNextBlock | None:
        """What stands behind them, if anything does."""
        last = self.layers[-1]
        return last if isinstance(last, ClipNextBlock) else None

    def __call__(
        self, x: jax.Array, *, shown: Collection[int] = ()
    ) -> tuple[jax.Array, dict[int, Attended]]:
        """Run the blocks one after the other.

        Args:
            x: (B, 1 + N, v), into the first.
            shown: numbers of the blocks whose attention is wanted.

        Returns:
            (B, 1 + N, v), and what these blocks show.
        """
        found = {}
        for index, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{index}"):
                x, attended = block(x, saliency=index in shown)
            if attended is not None:
                found[index] = attended
        return x, found


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
        behind = num_blocks < config.num_layers
        self.encoder = ClipEncoder(config, num_blocks, rngs=rngs, dtype=dtype, next_block=behind)

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
        last = self.encoder.num_blocks - 1
        with jax.named_scope("vision_tower"):
            entering = self.enter(pixels, smaller=smaller)
            x, found = self.encoder(entering, shown=(0, last))
            behind = self.encoder.next_block
            asked = (None, None) if behind is None else behind(x)
        early, own = found[0].saliency, found[last]
        shown = own.saliency, x[:, 0], own.keys[:, 1:], own.received[:, 1:]
        return TowerView(x[:, 1:], *shown, early, entering, *asked)

    def encode(
        self, pixels: jax.Array, *, saliency: bool = False, smaller: bool = False
    ) -> tuple[jax.Array, Attended | None]:
        """As calling the tower, but features keep the class token in front: (B, 1 + N, v)."""
        last = self.encoder.num_blocks - 1
        with jax.named_scope("vision_tower"):
            entering = self.enter(pixels, smaller=smaller)
            x, found = self.encoder(entering, shown=(last,) if saliency else ())
        return x, found.get(last)

    def enter(self, pixels: jax.Array, *, smaller: bool = False) -> jax.Array:
        """What enters the first block: (B, C, H, W) to (B, 1 + N, v)."""
        pixels = pixels.astype(self.embeddings.class_embedding.dtype)
        return self.pre_layrnorm(self.embeddings(pixels, smaller=smaller))
