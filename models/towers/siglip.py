"""The SigLIP vision tower, up to the block that feeds the projector.

Unlike CLIP's it has no class token and no norm in front of the blocks, and its patches carry a
bias. The norm behind the last block belongs to the pooled output: `hidden_states[-1]` of
transformers, which feeds the projector, does not pass it.
"""

import math
from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.towers.clip import ClipEncoder, ClipVision
from resprune_jax.models.towers.config import SiglipConfig, VisionConfig
from resprune_jax.models.towers.patches import cut_patches, resized_positions


class SiglipEmbeddings(nnx.Module):
    """Patches and learned positions."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs, dtype: DTypeLike) -> None:
        """Make the parameters; `config` gives every size."""
        width = config.hidden_size
        patch = config.num_channels * config.patch_size**2
        self.config = config
        self.patch_embedding = nnx.Linear(patch, width, param_dtype=dtype, rngs=rngs)
        self.position_embedding = nnx.Embed(config.num_patches, width, param_dtype=dtype, rngs=rngs)

    def __call__(self, pixels: jax.Array, *, smaller: bool = False) -> jax.Array:
        """(B, C, H, W), normalised, to (B, N, v) in raster order; see `ClipEmbeddings`."""
        dtype = self.position_embedding.embedding.dtype
        x = self.patch_embedding(cut_patches(pixels.astype(dtype), self.config, smaller=smaller))
        table = self.position_embedding.embedding[...]
        return x + resized_positions(table, math.isqrt(x.shape[1]))


class SiglipView(NamedTuple):
    """What a tower without a class token shows of pictures; as `TowerView`."""

    features: jax.Array  # [B, N, v] in raster order
    keys: jax.Array  # [B, N, h] float32, see `Attended`, of the last block that runs
    received: jax.Array  # [B, N] float32, likewise
    saliency: None = None

    def parts(self) -> dict[str, jax.Array]:
        """See `TowerView.parts`."""
        return {"encoder_keys": self.keys, "received": self.received}


class SiglipVision(nnx.Module):
    """The vision tower of llava-interleave and LLaVA-OneVision."""

    def __init__(
        self, config: SiglipConfig, num_blocks: int, *, rngs: nnx.Rngs, dtype: DTypeLike
    ) -> None:
        """Make the parameters; arguments as for `ClipVision`."""
        self.config = config
        self.embeddings = SiglipEmbeddings(config, rngs=rngs, dtype=dtype)
        self.encoder = ClipEncoder(config, num_blocks, rngs=rngs, dtype=dtype)

    def __call__(
        self, pixels: jax.Array, *, saliency: bool = False, smaller: bool = False
    ) -> tuple[jax.Array, None]:
        """Encode images.

        Args:
            pixels: (B, C, H, W), normalised, at the tower's own size.
            saliency: has no effect: without a class token there is no CLS attention.
            smaller: see `ClipVision`.

        Returns:
            features (B, N, v) in raster order, and `None` in place of the saliency.

        Raises:
            CallError: pixels of another shape.
        """
        with jax.named_scope("vision_tower"):
            x, _ = self.encoder(self.embeddings(pixels, smaller=smaller))
        return x, None

    def look(self, pixels: jax.Array, *, smaller: bool = False) -> SiglipView:
        """As calling the tower, with all that it shows beside the features."""
        last = self.encoder.num_blocks - 1
        with jax.named_scope("vision_tower"):
            x, found = self.encoder(self.embeddings(pixels, smaller=smaller), shown=(last,))
        return SiglipView(x, found[last].keys, found[last].received)


def make_tower(
    config: VisionConfig, num_blocks: int, *, rngs: nnx.Rngs, dtype: DTypeLike
) -> ClipVision | SiglipVision:
    """The tower of a configuration; arguments as for `ClipVision`."""
    if isinstance(config, SiglipConfig):
        return SiglipVision(config, num_blocks, rngs=rngs, dtype=dtype)
    return ClipVision(config, num_blocks, rngs=rngs, dtype=dtype)
