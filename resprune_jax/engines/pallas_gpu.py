"""The `pallas_gpu` engine: the whole greedy loop of an image in one launch of a Triton kernel.

The recursion is that of `gram`. XLA's loop costs several launches a pick, some microseconds each
however small the image; here one program (one thread block) makes all picks of one image, and a
batch, or many questions about one image, is the grid: `vmap` adds the axis.

One program has one multiprocessor's bandwidth, so the kernel is for images of up to about 1,000
tokens, where the latency of a pick counts and not the bytes. What the loop carries of a token
(energy, score, drift) stays in the registers of the thread that owns it. The factor does not fit
there; it lies in global memory, in practice in the multiprocessor's first-level cache.

Reads after writes. Triton orders nothing between the threads of a program but what goes through
its own reductions, so the kernel keeps to this:

- A row of the factor is written once, at its step, and read at later steps only. A barrier of the
  thread block ends each step: it makes what any thread wrote visible to all, which the pivot's
  column needs, since other threads may have written it.
- No entry is written a second time, so no read can be overtaken by a later write; one barrier a
  step is enough.
- Entries not written yet are masked out, never multiplied by 0: the memory is not cleared.
- Loops are not pipelined (`num_stages=1`): a pipelined loop would fetch ahead of the barrier.
- Picks and totals are only written.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from . import kernels
from .kernels import CONDITIONS, ENERGY, GATE, SCORE, SHARES, SQUARES, State
from .loop import Outcome

MOST_TOKENS = 1024
"""Tokens of an image up to which one program is enough."""

UNROLLED = 8
"""Rows of the factor that are in flight together: a read takes far longer than its sum."""

_THREAD = 4
"""Tokens that a thread owns."""


def fits(n: int, keep: int) -> bool:
    """Whether one program serves a problem of N tokens, whatever K."""
    return n <= MOST_TOKENS


def factor(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky in one launch; arguments as `gram.factor`.

    The size must be one that `fits`.
    """
    n = gram.shape[0]
    width = pl.next_power_of_2(max(n, 32 * _THREAD))  # Triton's vectors have no other lengths
    given = kernels.conditions(gram, gate, first, valid, width)
    kind = jax.typeof(given).manual_axis_type
    picks, totals, growth, _ = pl.pallas_call(
        partial(_picks, keep=keep),
        out_shape=(
            jax.ShapeDtypeStruct((keep,), jnp.int32, manual_axis_type=kind),
            jax.ShapeDtypeStruct((keep + 1,), jnp.float32, manual_axis_type=kind),
            jax.ShapeDtypeStruct((1,), jnp.float32, manual_axis_type=kind),
            jax.ShapeDtypeStruct((keep, n), jnp.float32, manual_axis_type=kind),
        ),
        compiler_params=plgpu.CompilerParams(
            num_warps=min(8, width // (32 * _THREAD)), num_stages=1
        ),
        interpret=kernels.interpreted(),
        name="resprune_picks",
    )(gram, given)
    return Outcome(picks, totals, growth[0])


def _picks(
    gram: Any, given: Any, picks: Any, totals: Any, growth: Any, rows: Any, *, keep: int
) -> None:
    """The kernel.

    Args:
        gram: (N, N), read only.
        given: (CONDITIONS, W), W being N up to a power of two.
        picks: (K,), written only.
        totals: (K + 1,), the residual energy before each pick and after the last, written only.
        growth: (1,), see `Outcome`, written only; the drift of padding stays 1.
        rows: (K, N), the factor.
        keep: K.
    """
    n, width = gram.shape[1], given.shape[1]
    places = lax.iota(jnp.int32, width)
    # Indices, not a slice: one that ends behind the last token is refused, masked or not.
    real = places < n

    def one(matrix: Any, index: jax.Array, ready: jax.Array) -> jax.Array:
        return plgpu.load(matrix.at[index, places], mask=ready & real, other=0.0)  # [W]

    def step(k: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, before = carry
        pick, left = kernels.choose(state.score, places)

        def explain(chunk: jax.Array, known: jax.Array) -> jax.Array:
            for j in range(UNROLLED):
                at = chunk * UNROLLED + j
                own = plgpu.load(rows.at[at, pick], mask=at < k, other=0.0)  # ()
                known += own * one(rows, at, at < k)
            return known

        zeros = jnp.zeros((width,), jnp.float32)
        known = lax.fori_loop(0, lax.div(k + UNROLLED - 1, UNROLLED), explain, zeros)
        tokens = given[SQUARES, :], given[SHARES, :], given[GATE, :]
        products = one(gram, pick, left) - known
        new, state, total = kernels.advance(state, tokens, places, pick, left, products)
        plgpu.store(rows.at[k, places], new, mask=real)
        picks[k] = jnp.where(left, pick, n)
        # The same numbers summed in another order could seem to rise.
        total = jnp.minimum(total, before)
        totals[k + 1] = total
        if not kernels.interpreted():  # which runs in order
            plgpu.debug_barrier()
        return state, total

    start = State(given[ENERGY, :], given[SCORE, :], jnp.ones((width,), jnp.float32))
    total = jnp.sum(given[SQUARES, :])
    end, _ = lax.fori_loop(0, keep, step, (start, total))
    totals[0] = total
    growth[0] = jnp.max(end.drift)


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    # The tokens, G once and the pivots' rows of it; the rows of the factor before each pick.
    return n * d * itemsize + 4.0 * (n * n + n * keep * (2 + keep / 2) + CONDITIONS * n)
