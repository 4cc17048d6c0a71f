"""The Gram matrix of the tokens: what it costs, and how it is kept within the range of float32.

G = V V^T is symmetric, so on a CPU only the tiles on and below the diagonal are computed. On an
accelerator the whole product is one call of the matrix unit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .loop import row
from .visits import one_by_one, visit

SMALLEST_TILE = 96
"""Rows of a tile on the CPU: smaller ones run slower than what they save."""

TILES = 10
"""Tiles along a side of a large matrix: 55 % of the whole product is computed."""

_SAFE = 2.0**20
"""The largest squared norm that is trusted without scaling, and one over the smallest."""


class Product(NamedTuple):
    """The Gram matrix of scaled tokens.

    Attributes:
        gram: (N, N) float32, of the tokens times 2^-exponent; 0 in rows and columns of padding.
        exponent: () int32; the largest norm times 2^-exponent lies in [1, 2).
        finite: () bool, whether every valid token is.
    """

    gram: jax.Array
    exponent: jax.Array
    finite: jax.Array


def exponent_of(size: jax.Array) -> jax.Array:
    """The exponent e with size * 2^-e in [1, 2); 0 for size 0."""
    _, exponent = jnp.frexp(size)
    return jnp.where(size > 0, exponent - 1, 0)


def scale(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x * 2^exponent, exactly, in two steps so that the factor itself cannot overflow."""
    half = exponent // 2
    factors = [jnp.ldexp(jnp.float32(1), part) for part in (half, exponent - half)]
    for factor in factors:
        x = x * factor.astype(x.dtype)
    return x


def clean(tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """The tokens with zeros for padding, in a dtype that can be scaled in place."""
    if tokens.dtype == jnp.float16:  # its exponent range is too narrow
        tokens = tokens.astype(jnp.float32)
    return jnp.where(valid[:, None], tokens, 0)


def scaled_tokens(tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens times 2^-exponent, 0 for padding, (N, d); exponent (); whether all are finite ())."""
    tokens = clean(tokens, valid)
    finite = jnp.all(jnp.isfinite(tokens))  # a maximum may pass over NaN
    # Twice, because a squared norm of unscaled tokens could overflow: by the largest entry, then
    # by the largest norm. Both are powers of two, so the tokens keep every bit.
    largest = jnp.max(jnp.abs(tokens)).astype(jnp.float32)
    by_entry = exponent_of(largest)
    tokens = scale(tokens, -by_entry)
    square = jnp.sum(jnp.square(tokens.astype(jnp.float32)), axis=-1)  # [N]
    by_norm = exponent_of(jnp.sqrt(jnp.max(square)))
    return scale(tokens, -by_norm), by_entry + by_norm, finite


def dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """left right^T in float32: exact products and float32 sums, whatever the token dtype.

    bfloat16 tokens go to the matrix unit as they are (a product of two is exact in float32);
    float32 tokens ask for full precision, so that no backend rounds them to TF32 or bfloat16.
    """
    if left.dtype != jnp.bfloat16 or jax.default_backend() == "cpu":
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return lax.dot_general(
        left,
        right,
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def gram_product(tokens: jax.Array, valid: jax.Array) -> Product:
    """The Gram matrix of one image.

    Args:
        tokens: (N, d), any float dtype; what padding holds has no effect.
        valid: (N,) bool, False for padding.
    """
    if jax.default_backend() == "cpu":
        return _one_by_tiles(tokens, valid)
    scaled, exponent, finite = scaled_tokens(tokens, valid)
    return Product(dot(scaled, scaled), exponent, finite)


def gram_products(tokens: jax.Array, valid: jax.Array) -> Product:
    """`gram_product` of a batch: (B, N, d) and (B, N), and B in front of every result."""
    if jax.default_backend() == "cpu":
        return _each_by_tiles(tokens, valid)
    return jax.vmap(gram_product)(tokens, valid)


def tile_bounds(n: int) -> list[tuple[int, int]]:
    """Where each tile of a side of n begins and ends."""
    tiles = max(1, round(n / max(SMALLEST_TILE, n / TILES)))
    size = -(-n // (16 * tiles)) * 16  # whole vectors
    return [(start, min(n, start + size)) for start in range(0, n, size)]


# The images of a batch one after the other: a product of one keeps all cores busy, and what it
# needs beside the tokens is then needed once. The same under vmap.
@one_by_one
def _one_by_tiles(tokens: jax.Array, valid: jax.Array) -> Product:
    """`gram_product` by tiles of the lower triangle."""
    return _by_tiles(tokens, valid, 0)


@one_by_one
def _each_by_tiles(tokens: jax.Array, valid: jax.Array) -> Product:
    """`gram_products` by tiles; every image is read in place."""
    images, n, d = tokens.shape
    rows = tokens.reshape(images * n, d)
    return visit(lambda rows, i: _by_tiles(rows, row(valid, i), i * n), rows, jnp.arange(images))


def _by_tiles(rows: jax.Array, valid: jax.Array, offset: jax.Array | int) -> Product:
    """The product of one image, whose tokens are the rows from `offset` on: [*, d], valid [N].

    The tokens are first taken as they are. Only where their norms are so large or small that a
    product could leave the range of float32 are they scaled and the tiles computed again.
    """
    bounds = tile_bounds(len(valid))

    def panels(real: jax.Array | None = None, exponent: jax.Array | None = None) -> list[jax.Array]:
        cut = [lax.dynamic_slice_in_dim(rows, offset + i, j - i) for i, j in bounds]
        # Here, not where they are scaled: a second copy in the tokens' own dtype would be held.
        cut = [x.astype(jnp.float32) for x in cut]
        if real is not None:
            cut = [clean(x, real[i:j]) for x, (i, j) in zip(cut, bounds, strict=True)]
        return cut if exponent is None else [scale(x, -exponent) for x in cut]

    def lower(panels: list[jax.Array]) -> list[list[jax.Array]]:
        return [[dot(left, right) for right in panels[: i + 1]] for i, left in enumerate(panels)]

    def norms_of(tiles: list[list[jax.Array]]) -> jax.Array:
        norms = jnp.concatenate([jnp.diagonal(line[-1]) for line in tiles])
        return jnp.where(valid, norms, 0.0)  # [N]

    def again(state: Any) -> Any:
        # Read through the state: XLA moves what does not depend on it out of the loop, and would
        # compute it always.
        asked = valid & state[0]
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in panels(asked)]))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in panels(asked)]))
        exponent = exponent_of(largest.astype(jnp.float32))
        return jnp.zeros_like(state[0]), exponent, finite, lower(panels(asked, exponent))

    # As they are: a token that is not finite makes its own squared norm not finite. (A maximum may
    # pass over NaN, so that is asked on its own.)
    tiles = lower(panels())
    norms = norms_of(tiles)
    largest = jnp.max(norms)
    doubtful = ~((largest >= 1 / _SAFE) & (largest <= _SAFE) & jnp.all(jnp.isfinite(norms)))
    exponent, finite = jnp.zeros_like(doubtful, dtype=jnp.int32), jnp.ones_like(doubtful)
    state = (doubtful, exponent, finite, tiles)
    # A loop of at most one turn: it works in place where the branches of a condition copy.
    _, exponent, finite, tiles = lax.while_loop(lambda s: s[0], again, state)

    by_norm = exponent_of(jnp.max(norms_of(tiles))) // 2  # squares: the norm's exponent is half
    full = [
        jnp.concatenate(
            [tiles[i][j] if j <= i else tiles[j][i].T for j in range(len(bounds))], axis=1
        )
        for i in range(len(bounds))
    ]
    inside = valid[:, None] & valid[None, :]
    gram = jnp.where(inside, scale(jnp.concatenate(full), -2 * by_norm), 0.0)
    return Product(gram, exponent + by_norm, finite)
