"""Pictures cut into patches, and learned positions for fewer of them than a tower was made for."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.models.towers.config import VisionConfig


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
