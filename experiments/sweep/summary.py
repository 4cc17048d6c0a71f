"""What a keep list holds of its image, measured alike for every method: from the Gram matrix."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from resprune_jax.engines.product import gram_product
from resprune_jax.experiments.sweep.answering import GRAIN, Wanted
from resprune_jax.experiments.sweep.devices import over_devices
from resprune_jax.models.prompts import buckets

_NOISE = 1e-6
"""An eigenvalue below this share of the largest is the rounding of float32."""

_TOGETHER = 64
"""Lists of one image that are decomposed together."""


def summaries(
    embeddings: jax.Array,
    valid: jax.Array,
    rows: Sequence[int],
    wanted: Sequence[Wanted],
    *,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Residual energy and effective rank of keep lists.

    Args:
        embeddings: (I, N, d), the visual tokens of the images.
        valid: (I, N) bool.
        rows: (E,) which of them each example is about.
        wanted: W keep lists.
        mesh: of the model; its devices divide the lists of an image among them.

    Returns:
        ((W,) the share of all tokens' energy outside the span of those kept, (W,) the exponential
        of the entropy of their normalised singular values), float32, NaN for an empty list or
        tokens that are not finite.
    """
    found = np.full((2, len(wanted)), np.nan, np.float32)
    groups: dict[tuple[int, int], list[int]] = {}
    for number, one in enumerate(wanted):
        if one.count:
            width = min(valid.shape[1], buckets.multiple(one.count, GRAIN))
            groups.setdefault((rows[one.example], width), []).append(number)
    held, gram = -1, None
    for (image, width), numbers in sorted(groups.items()):
        if image != held:
            held, gram = image, _gram(embeddings, valid, image)
        for at in range(0, len(numbers), _TOGETHER):
            own = numbers[at : at + _TOGETHER]
            lists = np.full((buckets.batch_bucket(len(own)), width), valid.shape[1], np.int32)
            for place, number in enumerate(own):
                lists[place, : wanted[number].count] = np.flatnonzero(wanted[number].mask)
            found[:, own] = np.asarray(_figures(gram, lists, mesh=mesh))[:, : len(own)]
    return found[0], found[1]


@jax.jit
def _gram(embeddings: jax.Array, valid: jax.Array, image: int) -> jax.Array:
    made = gram_product(embeddings[image], valid[image])
    return jnp.where(made.finite, made.gram, jnp.nan)


@partial(jax.jit, static_argnames="mesh")
def _figures(gram: jax.Array, lists: jax.Array, *, mesh: Mesh | None = None) -> jax.Array:
    """(2, W) of lists (W, K) of tokens, N for none."""
    exact = lax.Precision.HIGHEST

    def one(gram: jax.Array, tokens: jax.Array) -> jax.Array:
        across = gram.at[:, tokens].get(mode="fill", fill_value=0)  # [N, K]
        inside = across.at[tokens].get(mode="fill", fill_value=0)  # [K, K]
        values, vectors = jnp.linalg.eigh(inside)
        real = values > _NOISE * values[-1]
        reached = jnp.sum(jnp.square(jnp.matmul(across, vectors, precision=exact)), axis=0)
        spanned = jnp.sum(jnp.where(real, reached / jnp.where(real, values, 1.0), 0.0))
        total = jnp.trace(gram)
        singular = jnp.sqrt(jnp.where(real, values, 0.0))
        weights = singular / jnp.sum(singular)
        entropy = -jnp.sum(jnp.where(real, weights * jnp.log(jnp.where(real, weights, 1.0)), 0.0))
        made = jnp.stack([jnp.clip(1 - spanned / total, 0, 1), jnp.exp(entropy)])
        return jnp.where((total > 0) & jnp.isfinite(total), made, jnp.nan)

    return over_devices(jax.vmap(one, in_axes=(None, 0)), mesh, gram, lists).T
