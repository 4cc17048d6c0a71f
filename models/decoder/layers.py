"""Small layers that the vision tower, the projector and the decoder share.

Linear layers and embeddings are `nnx.Linear` and `nnx.Embed`, and `JoinedLinear` where several read
one input; the norms are our own, because the order of casts and the epsilon of each model matter to
the fifth digit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.models.decoder import gpu


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

    def of_a_step(self, x: jax.Array) -> "tuple[jax.Array, jax.Array | Normed]":
        """The norm of a step of decode, in the form that the backend is best at.

        Args:
            x: (B, S, width).

        Returns:
            x, and for a `JoinedLinear` the normalised x, or its two halves where a GPU makes a
            token.
        """
        if not gpu.halves_norms(x):
            return x, self(x)
        y = x.astype(jnp.float32).reshape(*x.shape[:-1], gpu.PIECES, -1)
        squares = jnp.sum(y * y, axis=-1)
        # All three are written, by one kernel: XLA would make x several times, and one sum of the
        # two sums, which is a kernel of its own.
        x, scaled, squares = jax.lax.optimization_barrier((x, x * self.scale[...], squares))
        return x, Normed(scaled, squares, self.epsilon)


class Normed(NamedTuple):
    """An RMS norm that is not finished: the row's factor is left to what a product gives.

    A norm reads a row twice, its sum of squares and then each number, which of a single row are two
    kernels of a GPU. A number that all of a row is multiplied by may as well come behind a linear
    layer: so the sum in front of the norm, the product with the scale and the squares of pieces are
    one kernel, and what reads the layer's outputs adds the pieces up and multiplies.

    Attributes:
        scaled: (..., width), times the norm's scale.
        squares: (..., pieces) float32, sums of squares of what is normed.
        epsilon: of the norm.
    """

    scaled: jax.Array
    squares: jax.Array
    epsilon: float

    def finish(self, y: jax.Array) -> jax.Array:
        """The outputs (..., n) float32 of a linear layer without bias, as of the finished norm."""
        pieces = self.squares
        while (count := pieces.shape[-1]) > 1:  # written out: a sum is a kernel of its own
            pieces = pieces[..., : count // 2] + pieces[..., count // 2 :]
        factor = jax.lax.rsqrt(pieces / self.scaled.shape[-1] + self.epsilon)
        # Inside of the product the factor would have to be there before it, by one more kernel.
        return jax.lax.optimization_barrier(y) * factor


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

    def __call__(self, x: jax.Array | Normed) -> jax.Array:
        """All outputs: x (..., inputs) to (..., groups, sum(parts), width)."""
        return self._outputs(x, slice(None))

    def layer(self, index: int, x: jax.Array) -> jax.Array:
        """The outputs of one layer: x (..., inputs) to (..., groups * parts[index] * width)."""
        start = sum(self.parts[:index])
        y = self._outputs(x, slice(start, start + self.parts[index]))
        return y.reshape(*x.shape[:-1], -1)

    def _outputs(self, x: jax.Array | Normed, rows: slice) -> jax.Array:
        weight = self.weight[:, rows]
        # One axis of outputs: XLA turns weights with several around in every call.
        flat = weight.reshape(-1, weight.shape[-1])
        if isinstance(x, Normed):
            y = jnp.einsum("...i,oi->...o", x.scaled, flat, preferred_element_type=jnp.float32)
            y = x.finish(y).astype(x.scaled.dtype)
        else:
            y = jnp.einsum("...i,oi->...o", x, flat)
        if self.bias is not None:
            y = y + self.bias[:, rows].reshape(-1)
        return y.reshape(*y.shape[:-1], *weight.shape[:-1])
