"""What the Pallas kernels share: the arithmetic of a step, their arguments, and where they may run.

A kernel makes all picks of one image in one launch. It brings only the movement of rows between
its memories; the order of choice is `loop.scores`, the same as everywhere, and what is written down
of a pick is here once.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from .gram import largest_growth, norms_of
from .loop import CLOSED, EXHAUSTED, Outcome, begin, scores
from .product import diagonal

SQUARES, SHARES, GATE, ENERGY, SCORE, CONDITIONS = range(6)
"""The rows of `conditions`, and how many there are."""

_interpreting = False


class State(NamedTuple):
    """What a step changes of every token, each (..., N) float32 as in `loop.Progress`."""

    energy: jax.Array
    score: jax.Array
    drift: jax.Array


@contextlib.contextmanager
def interpreting() -> Iterator[None]:
    """Let the kernels run in Pallas's interpreter, on any machine: for tests, far too slow else."""
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


def interpreted() -> bool:
    """Whether kernels that are traced now are for the interpreter."""
    return _interpreting


def undivided() -> bool:
    """Whether a program that is traced now runs on one device, or device by device (shard_map).

    XLA cannot divide a kernel among devices as it does its own operations: the TPU's compiler
    refuses it, and on GPUs every device would be sent all of the data.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:  # arrays may still be spread over any of the devices
        return jax.device_count() == 1
    return mesh.size == 1 or all(kind == AxisType.Manual for kind in mesh.axis_types)


def compute_capability() -> tuple[int, int] | None:
    """Of the first device, as NVIDIA numbers its GPUs; None: it is none of them."""
    said = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.devices()[0], "compute_capability", "")))
    return (int(said[1]), int(said[2])) if said else None


def conditions(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, width: int
) -> jax.Array:
    """What a kernel knows of each token before the first step, (CONDITIONS, width) float32.

    Args:
        gram: (N, N) float32.
        gate: (N,) float32.
        first: () int32, the seed token.
        valid: (N,) bool.
        width: at least N; what is added is closed like padding.
    """
    norms = norms_of(gram)
    start = begin(norms.squares, first, valid, 0)
    rows = jnp.stack([norms.squares, norms.shares, gate, start.energy, start.score])
    added = ((0, 0), (0, width - gram.shape[0]))
    closed = jnp.asarray([0.0, 0.0, 0.0, CLOSED, -1.0], jnp.float32)[:, None]
    rows = jnp.pad(rows, added)
    return jnp.where(lax.broadcasted_iota(jnp.int32, rows.shape, 1) < gram.shape[0], rows, closed)


def outcome(
    gram: jax.Array, valid: jax.Array, picks: jax.Array, totals: jax.Array, drift: jax.Array
) -> Outcome:
    """What an engine gives back, from what a kernel wrote.

    Args:
        gram: (N, N) float32.
        valid: (N,) bool.
        picks: (K,) int32, N where no token was left.
        totals: (K,) float32, the residual energy after each pick.
        drift: (N,) float32, the last one.
    """
    before = jnp.sum(diagonal(gram))
    # The same numbers summed in another order could seem to rise.
    totals = lax.cummin(jnp.concatenate([before[None], totals]))
    return Outcome(picks, totals, largest_growth(drift, valid))


def choose(score: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next pick, () int32, and whether any token is left, () bool: `loop.best` in a kernel.

    The lowest place wins a tie; it is found by two reductions that every compiler has.

    Args:
        score: (..., W) float32, read from memory.
        places: (..., W) int32, 0 to W - 1.
    """
    largest = jnp.max(score)
    return jnp.min(jnp.where(score == largest, places, places.size - 1)), largest >= 0


def advance(
    state: State,
    tokens: tuple[jax.Array, ...],
    places: jax.Array,
    pick: jax.Array,
    left: jax.Array,
    products: jax.Array,
) -> tuple[jax.Array, State, jax.Array]:
    """Make one pick: `loop.step` with `gram.extend`, in operations that kernels have.

    Args:
        state: before the pick, each (..., W).
        tokens: squared norms, one over them, and the gate, each (..., W).
        places: (..., W) int32, 0 to W - 1.
        pick: () int32.
        left: () bool; where it is false nothing is picked.
        products: (..., W) of the pick with every token, without what earlier rows explain.

    Returns:
        (the new row of the factor (..., W), the state after the pick, the residual energy ()).
    """
    squares, shares, gate = tokens
    here = places == pick

    def own(vector: jax.Array) -> jax.Array:
        # The value at the pick, kept as a vector of one: no trip through scalar registers.
        return jnp.sum(jnp.where(here, vector, 0.0), keepdims=True)

    energy = own(state.energy)
    square = own(squares)
    active = (energy > EXHAUSTED * square) & left
    inverse = jnp.where(active, 1.0 / jnp.where(active, energy, 1.0), 0.0)
    row = products * jnp.sqrt(inverse)
    explained = row * row
    ratio = square * inverse * explained * shares
    drift = state.drift + own(state.drift) * ratio * (1 + ratio)
    closed = (state.energy < 0) | (here & left)
    remains = jnp.where(closed, CLOSED, jnp.maximum(state.energy - explained, 0.0))
    total = jnp.sum(jnp.maximum(remains, 0.0))
    return row, State(remains, scores(gate, remains, squares), drift), total
