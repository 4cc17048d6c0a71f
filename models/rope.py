"""Rotary position embeddings in Llama's half-split layout."""

import jax
import jax.numpy as jnp
import numpy as np


def inverse_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """theta^(-2i / head_dim) for i < head_dim / 2, rounded as the reference rounds it.

    The exponent, the power and the reciprocal are each rounded to float32: one unit in the last
    place here is an angle of 1e-5 a few hundred positions away.

    Args:
        head_dim: width of one head, even.
        theta: the rotary base.

    Returns:
        (head_dim / 2,) float32.
    """
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = np.power(np.float64(theta), exponent.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / power


def rope_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every rotary angle.

    Angles are float32 products of whole positions, whatever the activations' dtype: bfloat16 cannot
    tell position 257 from 256.

    Args:
        positions: (B, S) int32.
        head_dim: width of one head, even.
        theta: the rotary base.

    Returns:
        (cos, sin), each (B, S, head_dim / 2) float32.
    """
    frequencies = inverse_frequencies(head_dim, theta)
    angles = positions.astype(jnp.float32)[..., None] * frequencies  # [B, S, hd/2]
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate queries or keys: channel i of a head turns with channel i + head_dim / 2.

    Args:
        x: (B, S, heads, head_dim).
        cos: (B, S, head_dim / 2) float32, from `rope_tables`.
        sin: the same.

    Returns:
        The rotated array in x's shape and dtype; the rotation itself is float32.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]  # [B, S, 1, hd/2]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
