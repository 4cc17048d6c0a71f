"""The `pallas_tpu` engine: the whole greedy loop of an image in a TPU's vector memory, one launch.

The recursion is that of `gram`. G is copied into VMEM once; the factor is made there and never
leaves it, so a pick costs no launch and no trip to HBM. A batch, or many questions about one image,
is the grid of the launch: `vmap` adds the axis, and a G that all rows share is copied once.

Tokens lie along the lanes. A step reads the pivot's row of G, takes the pivot's column of the
factor out of the one tile of 128 lanes that holds it, and sums the factor's rows, weighted with
that column, on the vector unit in float32: the matrix unit would have to load the factor anew at
every pick, and split every float32 number into three.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import kernels
from .kernels import CONDITIONS, ENERGY, GATE, SCORE, SHARES, SQUARES, State
from .loop import Outcome

LANES = 128
"""Numbers side by side in a vector register; it has eight such rows."""

CHUNK = 32
"""Rows of the factor that are read together; only chunks that hold rows are."""

VMEM = 56 * 2**20
"""Bytes of VMEM that a kernel may take, of 128 MiB on v4, v5e, v5p and v6e and 64 MiB on v7x."""


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def vmem_bytes(n: int, keep: int) -> int:
    """Bytes of VMEM that the kernel takes for one image.

    Args:
        n: tokens, N.
        keep: picks, K.
    """
    width = _up(n, LANES)
    # G and the factor; three vectors of the state and a row of G, of which each takes eight rows;
    # what goes in and comes out twice, because the next image's is copied meanwhile.
    matrices = _up(n, 8) * width + _up(keep, CHUNK) * width
    vectors = 8 * width * 4 + 2 * 8 * width * 2
    return 4 * (matrices + vectors + 2 * 2 * _up(-(-keep // LANES), 8) * LANES)


def fits(n: int, keep: int) -> bool:
    """Whether VMEM holds N tokens and K picks: up to 3,250 tokens with a third kept."""
    return vmem_bytes(n, keep) <= VMEM


def factor(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky in VMEM; arguments as `gram.factor`.

    The size must be one that `fits`.
    """
    n = gram.shape[0]
    given = kernels.conditions(gram, gate, first, valid, given_shape(n)[1])
    picks, totals, drift = launch(gram, given, keep)
    return kernels.outcome(
        gram, valid, picks.reshape(-1)[:keep], totals.reshape(-1)[:keep], drift[0, :n]
    )


def given_shape(n: int) -> tuple[int, int]:
    """Of what a kernel is given beside the Gram matrix: (CONDITIONS, N in whole registers)."""
    return CONDITIONS, _up(n, LANES)


def launch(gram: jax.Array, given: jax.Array, keep: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel and nothing around it.

    Args:
        gram: (N, N) float32.
        given: of `given_shape`, float32.
        keep: K.

    Returns:
        What it writes: picks and totals (R, 128), drift (1, W).
    """
    n, width = gram.shape[0], given.shape[1]
    picked = _up(-(-keep // LANES), 8)
    whole = partial(pl.BlockSpec, memory_space=pltpu.VMEM)
    kind = jax.typeof(given).manual_axis_type
    made: tuple[jax.Array, jax.Array, jax.Array] = pl.pallas_call(
        partial(_picks, keep=keep),
        out_shape=(
            jax.ShapeDtypeStruct((picked, LANES), jnp.int32, manual_axis_type=kind),
            jax.ShapeDtypeStruct((picked, LANES), jnp.float32, manual_axis_type=kind),
            jax.ShapeDtypeStruct((1, width), jnp.float32, manual_axis_type=kind),
        ),
        in_specs=[
            # Held once: two would not leave room for 2,928 tokens, and copying the next image's
            # meanwhile would save some 4 % of the time at any size.
            pl.BlockSpec((n, n), lambda: (0, 0), pipeline_mode=pl.Buffered(1)),
            whole(),
        ],
        out_specs=(whole(), whole(), whole()),
        scratch_shapes=[
            pltpu.VMEM((_up(keep, CHUNK), width), jnp.float32),
            pltpu.VMEM((1, width), jnp.float32),
            pltpu.VMEM((1, width), jnp.float32),
            pltpu.VMEM((1, width), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=VMEM + 2**22),
        interpret=kernels.interpreted(),
        name="resprune_picks",
    )(gram, given)
    return made


def chunks_before(k: jax.Array) -> jax.Array:
    """How many chunks hold the rows before step k, () int32."""
    return lax.div(k + CHUNK - 1, CHUNK)


def _picks(
    gram: Any,
    given: Any,
    picks: Any,
    totals: Any,
    drift: Any,
    rows: Any,
    products: Any,
    energy: Any,
    score: Any,
    *,
    keep: int,
) -> None:
    """The kernel.

    Args:
        gram: (N, N), read only.
        given: (CONDITIONS, W), W being N in whole registers.
        picks: (R, 128) written row by row.
        totals: (R, 128), the residual energy after each pick.
        drift: (1, W), of the state.
        rows: (K in whole chunks, W), the factor; rows to come are 0.
        products: (1, W), the pivot's row of G; lanes behind N stay 0.
        energy: (1, W), of the state.
        score: (1, W), of the state.
        keep: K.
    """
    n, width = gram.shape[1], given.shape[1]
    places = lax.broadcasted_iota(jnp.int32, (1, width), 1)
    lanes = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    picks[...] = jnp.full(picks.shape, n, jnp.int32)
    totals[...] = jnp.zeros(totals.shape, jnp.float32)
    rows[...] = jnp.zeros(rows.shape, jnp.float32)
    products[...] = jnp.zeros((1, width), jnp.float32)
    drift[...] = jnp.ones((1, width), jnp.float32)
    energy[...] = given[pl.ds(ENERGY, 1), :]
    score[...] = given[pl.ds(SCORE, 1), :]

    def step(k: jax.Array, carry: jax.Array) -> jax.Array:
        pick, left = kernels.choose(score[...], places)
        products[:, :n] = gram[pl.ds(pick, 1), :]
        tile = pl.multiple_of(pick - lax.rem(pick, LANES), LANES)
        inside = lanes == pick - tile

        def explain(chunk: jax.Array, known: jax.Array) -> jax.Array:
            some = pl.ds(pl.multiple_of(chunk * CHUNK, CHUNK), CHUNK)
            column = jnp.where(inside, rows[some, pl.ds(tile, LANES)], 0.0)  # [C, 128]
            column = jnp.sum(column, axis=1, keepdims=True)  # [C, 1]
            explained = (column * rows[some, :]).reshape(CHUNK // 8, 8, width)
            return known + jnp.sum(explained, axis=0)

        zeros = jnp.zeros((8, width), jnp.float32)
        known = lax.fori_loop(0, chunks_before(k), explain, zeros)  # [8, W]
        new, state, total = kernels.advance(
            State(energy[...], score[...], drift[...]),
            tuple(given[pl.ds(i, 1), :] for i in (SQUARES, SHARES, GATE)),
            places,
            pick,
            left,
            products[...] - jnp.sum(known, axis=0, keepdims=True),
        )
        rows[pl.ds(k, 1), :] = new
        energy[...], score[...], drift[...] = state
        at, now = pl.ds(lax.div(k, LANES), 1), lanes == lax.rem(k, LANES)
        picks[at, :] = jnp.where(now & left, pick, picks[at, :])
        totals[at, :] = jnp.where(now, total, totals[at, :])
        return carry

    lax.fori_loop(0, keep, step, jnp.int32(0))


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read from and written to HBM for one image."""
    # The tokens once, G out of the product and into VMEM.
    return n * d * itemsize + 8.0 * n * n + 4.0 * (CONDITIONS + 1) * n + 8.0 * keep
