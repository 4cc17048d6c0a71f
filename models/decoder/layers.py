"""Small layers that the vision tower, the projector and the decoder share.

Linear layers and embeddings are `nnx.Linear` and `nnx.Embed`; the norms are our own, because the
order of casts and the epsilon of each model matter to the fifth digit.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation, x sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


# Hugging Face's names. Its plain "gelu" is the exact one; jax.nn.gelu's default is the tanh form.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, computed in float32 and cast back at the end."""

    def __init__(self, width: int, epsilon: float, *, dtype: DTypeLike) -> None:
        """Make scale 1 and bias 0.

        Args:
            width: size of the last axis.
            epsilon: added to the variance.
            dtype: dtype of the parameters.
        """
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x (..., width); same shape and dtype."""
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """RMS norm over the last axis: float32 up to the cast, then the scale in x's dtype."""

    def __init__(self, width: int, epsilon: float, *, dtype: DTypeLike) -> None:
        """Make scale 1.

        Args:
            width: size of the last axis.
            epsilon: added to the mean square.
            dtype: dtype of the parameters.
        """
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x (..., width); same shape and dtype."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return y.astype(x.dtype) * self.scale[...]
