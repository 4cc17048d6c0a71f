"""Small layers that the vision tower, the projector and the decoder share.

Linear layers and embeddings are `nnx.Linear` and `nnx.Embed`, and `JoinedLinear` where several read
one input; the norms are our own, because the order of casts and the epsilon of each model matter to
the fifth digit.
"""

from collections.abc import Callable, Sequence
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


def gated(joined: jax.Array) -> jax.Array:
    """silu(gate) * up of a `JoinedLinear` of the two: (..., 2, width) to (..., width)."""
    return jax.nn.silu(joined[..., 0, :]) * joined[..., 1, :]


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


class JoinedLinear(nnx.Module):
    """Linear layers of one input as one product: a GPU launches one kernel, not one for each.

    Rows of the weight lie group by group, in every group the layers one behind the other: a mesh
    lays whole groups on its devices, so that each holds its part of every layer. Attention's groups
    are the key/value heads, each with the query heads that read it; a gated MLP has as many as
    there are devices to share it.

    Attributes:
        weight: (groups, sum(parts), width, inputs), outputs in front as checkpoint files have them.
        bias: (groups, sum(parts), width), or `None`.
        parts: rows of `width` that each layer has in a group.
    """

    bias: nnx.Param | None

    def __init__(
        self,
        inputs: int,
        groups: int,
        parts: Sequence[int],
        width: int,
        *,
        use_bias: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ) -> None:
        """Make the parameters; their random values are those of the layers made one by one."""
        kernels, biases = [], []
        for part in parts:
            shape = (groups, part, width)
            own = nnx.Linear(
                inputs, groups * part * width, use_bias=use_bias, param_dtype=dtype, rngs=rngs
            )
            kernels.append(own.kernel[...].T.reshape(*shape, inputs))
            if own.bias is not None:
                biases.append(own.bias[...].reshape(shape))
        self.parts = tuple(parts)
        self.weight = nnx.Param(jnp.concatenate(kernels, axis=1))
        self.bias = nnx.data(nnx.Param(jnp.concatenate(biases, axis=1)) if use_bias else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """All outputs: x (..., inputs) to (..., groups, sum(parts), width)."""
        return self._outputs(x, slice(None))

    def layer(self, index: int, x: jax.Array) -> jax.Array:
        """The outputs of one layer: x (..., inputs) to (..., groups * parts[index] * width)."""
        start = sum(self.parts[:index])
        y = self._outputs(x, slice(start, start + self.parts[index]))
        return y.reshape(*x.shape[:-1], -1)

    def _outputs(self, x: jax.Array, rows: slice) -> jax.Array:
        weight = self.weight[:, rows]
        # One axis of outputs: XLA turns weights with several around in every call.
        y = jnp.einsum("...i,oi->...o", x, weight.reshape(-1, weight.shape[-1]))
        if self.bias is not None:
            y = y + self.bias[:, rows].reshape(-1)
        return y.reshape(*x.shape[:-1], *weight.shape[:-1])
