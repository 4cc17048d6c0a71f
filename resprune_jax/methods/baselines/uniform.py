"""Evenly spaced tokens: what a method that looks at the picture must beat."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Uniform(Method):
    """The middles of T equal parts of an image's tokens in raster order.

    Any image has these, of one grid or of many tiles, and the count is exact.
    """

    nested = False

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        there = jnp.sum(image.valid, dtype=jnp.int32)
        parts = jnp.maximum(limit, 1)
        whole, rest = there // parts, there % parts
        i = jnp.arange(keep, dtype=jnp.int32)
        # floor((2 i + 1) there / (2 parts)), without a product that int32 might not hold
        rank = i * whole + ((2 * i + 1) * rest + whole * parts) // (2 * parts)
        ranks = jnp.cumsum(image.valid) - 1  # among the tokens that are there
        return jnp.searchsorted(ranks, jnp.minimum(rank, there - 1)).astype(jnp.int32)
