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

_FAR = 100
"""Squares are summed at this power of two and at its inverse too: no row is beyond all three."""

_MOST = 126
"""The largest exponent of two of which float32 holds the power and its inverse."""


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


class Squares(NamedTuple):
    """Squared norms of rows, (...) float32: of the rows as they are, shrunk, and grown.

    A squared norm of float32 or bfloat16 numbers can leave the range of float32; of the three sums
    one has not. They are one reduction over the rows.

    Attributes:
        near: as they are.
        large: of the rows times 2^-_FAR; finite where the row is.
        small: of the rows times 2^_FAR.
    """

    near: jax.Array
    large: jax.Array
    small: jax.Array

    def parted(self, n: int) -> "tuple[Squares, Squares]":
        """Those of the first n rows, and those of the others."""
        return Squares(*(x[..., :n] for x in self)), Squares(*(x[..., n:] for x in self))

    def exponents(self) -> jax.Array:
        """The exponents e with norm * 2^-e in [1, 2), int32, within _MOST; less for norm 0."""
        far, square = self._read()
        # The exponent's own bits: a few operations, where `frexp` is dozens.
        bits = lax.shift_right_logical(lax.bitcast_convert_type(square, jnp.int32), jnp.int32(23))
        exponent = ((bits & 255) - 127 >> 1) + far
        return jnp.where(square > 0, jnp.clip(exponent, -_MOST, _MOST), -2 * _MOST)

    def norms(self, exponent: jax.Array) -> jax.Array:
        """The norms times 2^-exponent."""
        far, square = self._read()
        half = (far - exponent) // 2
        return times_power(times_power(jnp.sqrt(square), half), far - exponent - half)

    def _read(self) -> tuple[jax.Array, jax.Array]:
        """(the exponent of the scale of the sum that holds, that sum)."""
        low, high = self.near < 2.0**-_FAR, self.near <= 2.0**_FAR  # NaN is neither
        square = jnp.where(low, self.small, jnp.where(high, self.near, self.large))
        return jnp.where(low, -_FAR, jnp.where(high, 0, _FAR)), square


def squares_of(rows: jax.Array) -> Squares:
    """The squared norms of rows (..., d)."""
    x = rows.astype(jnp.float32)
    return Squares(*(jnp.sum(jnp.square(x * 2.0**by), axis=-1) for by in (0, -_FAR, _FAR)))


def largest_of(exponents: jax.Array) -> jax.Array:
    """The exponent of the longest of rows (..., N); 0 where all are zero."""
    largest = jnp.max(exponents, axis=-1)
    return jnp.where(largest < -_MOST, 0, largest)


def times_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x * 2^exponent for an exponent within -_MOST and _MOST: as `scale`, by one product."""
    factor = lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
    return x * factor.astype(x.dtype)


def scaled_tokens(tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(tokens times 2^-exponent, 0 for padding, (N, d); exponent (); whether all are finite ())."""
    tokens = clean(tokens, valid)
    squares = squares_of(tokens)  # [N]
    exponent = largest_of(squares.exponents())
    # A power of two: the tokens keep every bit.
    return times_power(tokens, -exponent), exponent, jnp.all(jnp.isfinite(squares.large))


def diagonal(matrix: jax.Array) -> jax.Array:
    """The diagonal of (..., N, N) as a slice, which is no kernel of its own as a gather is.

    A TPU, which keeps the matrix in tiles, would have to lay it out anew for that.
    """
    if jax.default_backend() == "tpu":
        return jnp.diagonal(matrix, axis1=-2, axis2=-1)
    n = matrix.shape[-1]
    flat = matrix.reshape(*matrix.shape[:-2], n * n)
    return lax.slice_in_dim(flat, 0, n * n, n + 1, axis=-1)


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


def joint_product(
    tokens: jax.Array, valid: jax.Array, text: jax.Array
) -> tuple[Product, jax.Array]:
    """The Gram matrices of a batch and the cosines of its tokens with its texts, in one product.

    For accelerators, where every pass over the tokens is a launch: one reduction gives the norms
    of tokens and text, one kernel brings them to scale, and one product everything else.

    Args:
        tokens: (B, N, d), any float dtype; what padding holds has no effect.
        valid: (B, N) bool, False for padding.
        text: (B, M, d), likewise.

    Returns:
        (B in front of every result, cosines (B, N, M) float32, 0 for a zero vector). A token that
        is shorter than the longest by a factor of 2^126 is one.
    """
    n = tokens.shape[-2]
    dtype = jnp.result_type(tokens, text)
    if dtype == jnp.float16:  # its exponent range is too narrow
        dtype = jnp.dtype(jnp.float32)
    tokens = jnp.where(valid[..., None], tokens, 0).astype(dtype)
    text = text.astype(dtype)
    squares = squares_of(jnp.concatenate([tokens, text], axis=-2))  # [B, N + M]
    exponent = largest_of(squares.parted(n)[0].exponents())  # [B]
    # The text as it is: beside tokens of length 1 its products are as large as itself.
    scaled = times_power(tokens, -exponent[..., None, None])
    rows = jnp.concatenate([scaled, text], axis=-2)  # [B, N + M, d]
    whole = jax.vmap(dot)(rows, rows)  # [B, N + M, N + M]
    of_tokens, of_text = squares.parted(n)
    long = of_tokens.norms(exponent[..., None])[..., :, None]  # [B, N, 1]
    lengths = long * of_text.norms(jnp.int32(0))[..., None, :]
    cosines = jnp.where(lengths == 0, 0.0, whole[..., :n, n:] / lengths)  # NaN stays
    finite = jnp.all(jnp.isfinite(of_tokens.large), axis=-1)
    return Product(whole[..., :n, :n], exponent, finite), cosines
