"""The vision tower of Qwen2.5-VL and Qwen2-VL on a packed batch of patches.

Attribute names are the checkpoint's. Shapes: P patches (a bucket), v width, H heads, hd head width,
W rows of L window slots, c patches of a merged cell. The patches stay in the processor's order from
end to end: where a block attends inside windows, queries, keys and values are gathered into window
rows and the result is gathered back, so no S x S score array is ever made and the merged cells come
out in raster order.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.errors import CallError
from resprune_jax.models.decoder import gpu
from resprune_jax.models.decoder.attention import attend, attention_columns
from resprune_jax.models.decoder.layers import ACTIVATIONS, JoinedLinear, LayerNorm, RMSNorm, gated
from resprune_jax.models.decoder.rope import apply_rope, axial_tables
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.tables import VisionTables


class QwenPatchEmbed(nnx.Module):
    """A convolution whose stride is its kernel: one matrix for flattened patches, without bias."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        self.proj = nnx.Linear(
            config.patch_values, config.hidden_size, use_bias=False, param_dtype=dtype, rngs=rngs
        )

    def __call__(self, patches: jax.Array) -> jax.Array:
        """(P, channels * frames * side * side) to (P, v)."""
        return self.proj(patches.astype(self.proj.kernel.dtype))


class QwenVisionAttention(nnx.Module):
    """Self-attention inside frames or inside windows, with the 2-D rotation."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nnx.Linear(width, 3 * width, param_dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(width, width, param_dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        tables: VisionTables,
        *,
        windowed: bool,
        shown: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Attend.

        Args:
            x: (P, v), normalised.
            rope: cosines and sines of the patches.
            tables: where the patches sit.
            windowed: inside windows; else inside whole frames.
            shown: also return what each patch receives.

        Returns:
            (P, v); and (P,) float32, the attention that a patch receives, summed over queries and
            mean over heads, or `None`.
        """
        size = x.shape[0]
        qkv = self.qkv(x).reshape(1, size, 3, self.num_heads, -1)  # [1, P, 3, H, hd]
        columns = None
        rows = tables.rows(windowed=windowed)
        if gpu.in_use():
            flat = qkv.reshape(1, size, 1, 3 * self.num_heads, -1)
            turned = gpu.turn_joined(flat, *rope, values=self.num_heads).reshape(qkv.shape)
            joined = rows.gather(turned[0])  # [R, L, 3, H, hd]
            q, k, v = (joined[:, :, at] for at in range(3))
        else:
            q, k, v = apply_rope(qkv[:, :, 0], *rope), apply_rope(qkv[:, :, 1], *rope), qkv[:, :, 2]
            if rows.index is not None:
                joined = rows.gather(jnp.stack([q[0], k[0], v[0]], axis=1))
                q, k, v = joined[:, :, 0], joined[:, :, 1], joined[:, :, 2]  # [R, L, H, hd]
        mixed = attend(q, k, v, **rows.options())
        if shown:
            columns = rows.back(attention_columns(q, k, **rows.options()))
        return self.proj(rows.back(mixed).reshape(x.shape)), columns


class QwenVisionMlp(nnx.Module):
    """The gated MLP; unlike the decoder's, every layer has a bias."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, inner = config.hidden_size, config.intermediate_size
        groups = config.mlp_groups
        self.gate_up_proj = JoinedLinear(
            width, groups, (1, 1), inner // groups, use_bias=True, rngs=rngs, dtype=dtype
        )
        self.down_proj = nnx.Linear(inner, width, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(P, v) to the same shape."""
        joined = self.gate_up_proj(x)  # [P, groups, 2, inner / groups]
        return self.down_proj(gated(joined).reshape(len(x), -1))


class QwenPlainMlp(nnx.Module):
    """Qwen2-VL's MLP: two layers with CLIP's activation between."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width, inner = config.hidden_size, config.intermediate_size
        self.fc1 = nnx.Linear(width, inner, param_dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(inner, width, param_dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(P, v) to the same shape."""
        return self.fc2(ACTIVATIONS["quick_gelu"](self.fc1(x)))


def _norm(config: QwenVisionConfig, dtype: DTypeLike) -> RMSNorm | LayerNorm:
    """A norm over the features, of the kind that the tower has everywhere."""
    kind = RMSNorm if config.gated else LayerNorm
    return kind(config.hidden_size, config.rms_norm_eps, dtype=dtype)


class QwenVisionBlock(nnx.Module):
    """One pre-norm transformer block."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        self.norm1 = _norm(config, dtype)
        self.attn = QwenVisionAttention(config, rngs=rngs, dtype=dtype)
        self.norm2 = _norm(config, dtype)
        mlp = QwenVisionMlp if config.gated else QwenPlainMlp
        self.mlp = mlp(config, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        x: jax.Array,
        rope: tuple[jax.Array, jax.Array],
        tables: VisionTables,
        *,
        windowed: bool,
        shown: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Run the block; arguments and results as in `QwenVisionAttention`, x not normalised."""
        mixed, columns = self.attn(self.norm1(x), rope, tables, windowed=windowed, shown=shown)
        x = x + mixed
        return x + self.mlp(self.norm2(x)), columns


class QwenMerger(nnx.Module):
    """The patches of a merged cell to one visual token of the language model's width."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        joined = config.hidden_size * config.merge_unit
        self.ln_q = _norm(config, dtype)
        # The checkpoint numbers the layers of a sequence; its layer 1 is the activation.
        self.mlp = nnx.Dict(
            {
                "0": nnx.Linear(joined, joined, param_dtype=dtype, rngs=rngs),
                "2": nnx.Linear(joined, config.out_hidden_size, param_dtype=dtype, rngs=rngs),
            }
        )
        self.joined = joined

    def __call__(self, x: jax.Array) -> jax.Array:
        """(P, v) to (P / c, d)."""
        cells = self.ln_q(x).reshape(-1, self.joined)  # [P / c, c v]
        return self.mlp["2"](ACTIVATIONS["gelu"](self.mlp["0"](cells)))


class QwenVision(nnx.Module):
    """The vision tower with its merger."""

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters.

        Args:
            config: every size.
            rngs: for the random initial values.
            dtype: dtype of the parameters.
        """
        self.config = config
        self.patch_embed = QwenPatchEmbed(config, rngs=rngs, dtype=dtype)
        self.blocks = nnx.List(
            [QwenVisionBlock(config, rngs=rngs, dtype=dtype) for _ in range(config.num_layers)]
        )
        self.merger = QwenMerger(config, rngs=rngs, dtype=dtype)

    def __call__(self, patches: jax.Array, tables: VisionTables) -> tuple[jax.Array, jax.Array]:
        """Encode a packed batch.

        Args:
            patches: (P, channels * frames * side * side), normalised, in the processor's order;
                finite values in the padding.
            tables: `make_tables` of the batch.

        Returns:
            features: (P, v), the last block's output.
            cells: (P / c, d), the merged cells in the packed order; those of padding mean nothing.

        Raises:
            CallError: patches of another shape.
        """
        features, cells, _ = self._encode(patches, tables, shown=False)
        return features, cells

    def look(
        self, patches: jax.Array, tables: VisionTables
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As calling the tower, with the attention that each merged cell receives.

        It is that of the last block, which attends to whole frames in every published model; where
        a configuration has windows there, patches of other windows give nothing.

        Returns:
            features: (P, v).
            cells: (P / c, d).
            received: (P / c,) float32, of a patch the mean over heads and over the queries of its
                frame, of a cell the mean over its patches; of padding it means nothing.
        """
        features, cells, columns = self._encode(patches, tables, shown=True)
        assert columns is not None
        segments = jnp.asarray(tables.segments)
        sizes = jnp.zeros(len(segments), jnp.float32).at[segments].add(1)
        received = columns / sizes[segments]
        return features, cells, jnp.mean(received.reshape(len(cells), -1), axis=1)

    def _encode(
        self, patches: jax.Array, tables: VisionTables, *, shown: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Features, cells, and the last block's sums of attention where they are asked for."""
        expected = (tables.segments.shape[0], self.config.patch_values)
        if patches.shape != expected:
            raise CallError(
                f"patches have shape {patches.shape}, expected {expected}: pack them with "
                "images.pack of the family"
            )
        config = self.config
        columns: jax.Array | None = None
        with jax.named_scope("vision_tower"):
            x = self.patch_embed(patches)
            coords = jnp.asarray(tables.coords)
            rope = axial_tables(coords, config.head_dim, config.rope_theta)
            for index, block in enumerate(self.blocks):
                with jax.named_scope(f"block_{index}"):
                    windowed = index not in config.full_attention_blocks
                    x, columns = block(
                        x, rope, tables, windowed=windowed,
                        shown=shown and index == config.num_layers - 1,
                    )  # fmt: skip
        with jax.named_scope("merger"):
            return x, self.merger(x), columns
