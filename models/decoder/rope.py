"""Rotary position embeddings in Llama's half-split layout, of one position or of several axes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.models.decoder.rope_scaling import RopeScaling


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


def rope_tables(
    positions: jax.Array,
    head_dim: int,
    theta: float,
    sections: Sequence[int] | None = None,
    scaling: RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every rotary angle.

    Angles are float32 products of whole positions, whatever the activations' dtype: bfloat16 cannot
    tell position 257 from 256.

    Args:
        positions: (B, S) int32; with `sections` also (B, S, A), one position for each of A axes
            (Qwen2.5-VL's M-RoPE: time, row, column).
        head_dim: width of one head, even.
        theta: the rotary base.
        sections: how many of the head_dim / 2 frequencies turn with each axis: the first ones with
            axis 0, the next with axis 1, and so on. Positions of shape (B, S) hold on every axis.
        scaling: of another RoPE type than the default.

    Returns:
        (cos, sin), each (B, S, head_dim / 2) float32.
    """
    frequencies = inverse_frequencies(head_dim, theta)
    if scaling is not None:
        frequencies = scaling.scale(frequencies, theta)
    places = positions.astype(jnp.float32)
    if positions.ndim == 2:
        places = places[..., None]  # [B, S, 1]
    else:
        assert sections is not None and sum(sections) == head_dim // 2
        axis = np.repeat(np.arange(len(sections)), sections)  # [hd/2]
        places = places[..., axis]
    angles = places * frequencies  # [B, S, hd/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if scaling is None or scaling.attention == 1:
        return cos, sin
    return cos * scaling.attention, sin * scaling.attention


def axial_tables(coords: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the 2-D rotation of a vision tower.

    Rows and columns have the same head_dim / 4 frequencies: the first quarter of a head's channels
    turns with the row, the second with the column, each with its partner half a head away.

    Args:
        coords: (S, 2) int32, (row, column) of each patch.
        head_dim: width of one head, a multiple of 4.
        theta: the rotary base.

    Returns:
        (cos, sin), each (1, S, head_dim / 2) float32, as `apply_rope` takes them.
    """
    frequencies = inverse_frequencies(head_dim // 2, theta)  # [hd/4]
    angles = coords.astype(jnp.float32)[..., None] * frequencies  # [S, 2, hd/4]
    angles = angles.reshape(1, coords.shape[0], head_dim // 2)
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
