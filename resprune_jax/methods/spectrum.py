"""Eigenvalues and eigenvectors of an image's tokens, which several methods read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from resprune_jax.engines.product import gram_product

RANK = 1e-6
"""An eigenvalue below this share of the largest is rounding: 0."""


class Spectrum(NamedTuple):
    """Of the Gram matrix of scaled tokens; a token's energies sum to its squared norm.

    Attributes:
        values: (N,) float32, descending, 0 beyond the numerical rank.
        vectors: (N, N) float32, eigenvectors in columns: the left singular vectors of the tokens.
    """

    values: jax.Array
    vectors: jax.Array

    @property
    def energies(self) -> jax.Array:
        """(N, N): what direction j holds of token i's squared norm."""
        return self.values * jnp.square(self.vectors)


def spectrum(tokens: jax.Array, valid: jax.Array, *, centred: bool = False) -> Spectrum:
    """The spectrum of one image's tokens.

    Args:
        tokens: (N, d), 0 for padding.
        valid: (N,) bool.
        centred: take their mean off first.
    """
    if centred:
        whole = tokens.astype(jnp.float32)
        mean = jnp.sum(whole, axis=0) / jnp.maximum(jnp.sum(valid), 1)
        tokens = jnp.where(valid[:, None], whole - mean, 0)
    gram = gram_product(tokens, valid).gram
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    return Spectrum(jnp.where(values > RANK * values[0], values, 0.0), vectors)
