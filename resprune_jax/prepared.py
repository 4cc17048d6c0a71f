"""What a selection needs of an image alone: made once, then used by any number of questions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .arguments import LARGEST, array_of
from .engines.product import Product, gram_product, gram_products
from .errors import CallError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prepared:
    """The image's share of the work of `select`; a leading batch axis B is optional.

    Attributes:
        tokens: (N, d) or (B, N, d), as they were given; the guard of the engines reads them where
            the Gram matrix would not be precise enough.
        valid: (N,) or (B, N) bool, False for padding.
        gram: (N, N) or (B, N, N) float32, the Gram matrix of the tokens times 2^-exponent, 0 in
            rows and columns of padding.
        exponent: () or (B,) int32; the largest norm times 2^-exponent lies in [1, 2).
        finite: () or (B,) bool, whether every valid token is.
        saliency: (N,) or (B, N) float32, CLS-to-patch attention for the seed rule
            "cls_attention", or None.
    """

    tokens: jax.Array
    valid: jax.Array
    gram: jax.Array
    exponent: jax.Array
    finite: jax.Array
    saliency: jax.Array | None = None

    @property
    def norms(self) -> jax.Array:
        """Euclidean norms of the tokens in their own units, (N,) or (B, N) float32."""
        squares = jnp.diagonal(self.gram, axis1=-2, axis2=-1)
        return jnp.ldexp(jnp.sqrt(squares), self.exponent[..., None])


@jax.jit
def _product(tokens: jax.Array, valid: jax.Array) -> Product:
    return (gram_product if tokens.ndim == 2 else gram_products)(tokens, valid)


def prepare(
    tokens: ArrayLike, valid: ArrayLike | None = None, *, saliency: ArrayLike | None = None
) -> Prepared:
    """Do once what every selection on these tokens shares: the Gram matrix and the norms.

    `select` takes the result in place of tokens. May be called under jit, vmap and shard_map.

    Args:
        tokens: (N, d) or (B, N, d), any float dtype, of NumPy, JAX or torch, or lists of numbers.
        valid: (N,) or (B, N) bool, False for padding; default all.
        saliency: (N,) or (B, N), CLS-to-patch attention, only kept for the seed rules.

    Raises:
        CallError: no numbers, or shapes that cannot work; nothing was compiled.
    """
    given = as_tokens(tokens)
    shape = given.shape
    valid = None if valid is None else array_of("valid", valid, "truth")
    saliency = None if saliency is None else array_of("saliency", saliency, "number")
    for name, value in (("valid", valid), ("saliency", saliency)):
        if value is not None and np.shape(value) != shape[:-1]:
            raise CallError(f"{name} has shape {np.shape(value)}, expected {shape[:-1]}")
    tokens = jnp.asarray(given)
    valid = jnp.asarray(np.ones(shape[:-1], bool) if valid is None else valid, bool)
    made = _product(tokens, valid)
    if saliency is not None:
        saliency = jnp.asarray(saliency, jnp.float32)
    return Prepared(tokens, valid, made.gram, made.exponent, made.finite, saliency)


def as_tokens(tokens: ArrayLike) -> jax.Array | np.ndarray:
    """Visual tokens as an array.

    Raises:
        CallError: no numbers, not (N, d) or (B, N, d), empty, not floating point, or beyond what
            float32 holds.
    """
    given = array_of("tokens", tokens, "float")
    shape = given.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise CallError(f"tokens must be (N, d) or (B, N, d) and not empty, got shape {shape}")
    if isinstance(given, np.ndarray) and given.dtype == np.float64:
        beyond = np.isfinite(given) & (np.abs(given) > LARGEST)
        if beyond.any():
            raise CallError(
                f"tokens must lie within float32, got {given[beyond][0]:g}: scale them down, which"
                " changes no choice"
            )
    return given
