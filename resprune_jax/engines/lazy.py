"""The `lazy` engine: the Gram matrix row by row, and only the rows that picks need.

`gram` and `blocked` pay for a whole Gram matrix, N^2 d / 2 on a CPU, of which the recursion reads
K rows: those of the picks. Here the rows are made when they are about to be needed. Residual
energies only fall, and mostly slowly, so the tokens of best score now hold the next picks. A block
foresees b of them; rows that are missing are made c at a time in one matrix product, the best
first, and kept. K picks then cost little more than K N d: on clustered tokens 160 rows for 128
picks of 576, 384 for 325 of 2928.

The picks are made by the loops of `gram` or, for large factors, of `blocked`: the foresight never
decides anything, and never more than N rows are made (rounded up). For one selection on an image;
many selections on the same image share its Gram matrix.

The rows are kept while N of them fit into `STORE`. Of more tokens the latest are: a row that is
asked for again is made again, which is rare, as a pick is done with its row.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .blocked import BLOCKED_FROM, in_blocks, ranks
from .gram import (
    Factor,
    Norms,
    extend,
    largest_growth,
    lengthened,
    no_rows,
    parts_of,
    shares_of,
)
from .loop import Outcome, Progress, begin, best, row, step
from .product import dot, exponent_of, scale
from .visits import one_by_one


class Tokens(NamedTuple):
    """What the engine works on.

    Attributes:
        tokens: (N, d), any float dtype, at a scale at which their products lie inside float32.
        squares: (N,) float32, squared norms of the tokens times 2^-exponent, 0 for padding.
        exponent: () int32.
    """

    tokens: jax.Array
    squares: jax.Array
    exponent: jax.Array


class Rows(NamedTuple):
    """The rows of the Gram matrix that were made.

    Attributes:
        made: (R, N) float32, in the order in which they were asked for; where R are fewer than
            all, the first ones give way to the latest.
        place: (N,) int32, where each token's row lies; -1 where there is none.
        number: () int32, how many rows were made.
        tokens: (R,) int32, whose row lies there, N where none does; None where there is room for
            all.
    """

    made: jax.Array
    place: jax.Array
    number: jax.Array
    tokens: jax.Array | None


class Made(NamedTuple):
    """An outcome, and how it came about.

    Attributes:
        outcome: as of every engine.
        rows: () int32, rows of the Gram matrix that were made.
    """

    outcome: Outcome
    rows: jax.Array


ROWS = 32
"""Rows made together: fewer run slower, of more a larger part is never needed."""

BLOCK = 64
"""Picks that a block foresees."""

STORE = 2**29
"""Bytes of the rows that are kept: all of them up to 11,585 tokens."""

_NEAR = (2.0**-84, 2.0**100)
"""Where the largest squared norm of tokens must lie for their products to be exact in float32: none
overflows, and what underflows is less than 2^-24 of a squared norm together."""


def factor(
    image: Tokens,
    gate: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
) -> Outcome:
    """Greedy selection by pivoted Cholesky, rows of G on demand.

    Args:
        image: the tokens.
        gate: (N,) float32.
        first: () int32, the seed token.
        valid: (N,) bool; what the tokens of padding hold has no effect: their products fill columns
            of their own.
        keep: static number of steps.
    """
    return counted(image, gate, first, valid, keep).outcome


def counted(
    image: Tokens,
    gate: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    *,
    block: int | None = None,
    rows: int = ROWS,
    store: int = STORE,
) -> Made:
    """`factor`, with a count of the rows of the Gram matrix.

    Args:
        image: the tokens.
        gate: (N,) float32.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.
        block: most picks of a block, 0 for no blocks; default by the size of the factor.
        rows: made together.
        store: bytes of the rows that are kept.
    """
    n = gate.shape[0]
    if block is None:
        block = block_of(n, keep)
    block, rows = min(keep, block), min(rows, n)
    room = room_for(n, block, rows, store)

    # One problem after the other: one is large enough for the machine, and a row that only some
    # problems of a batch need would be made for all.
    @one_by_one
    def alone(image: Tokens, gate: jax.Array, first: jax.Array, valid: jax.Array) -> Made:
        tokens, squares, exponent = image
        norms = Norms(squares, shares_of(squares))
        # Times 1, which XLA cannot know before the norms are there: else it would convert bfloat16
        # tokens early, and hold them beside what the norms are made of.
        one = jnp.where(squares[0] < 0, 2.0, 1.0)
        whole = tokens if tokens.dtype == jnp.float32 else tokens.astype(jnp.float32) * one
        make = _maker(whole, exponent, rows)
        choose = partial(_in_blocks, block=block) if block else _one_by_one
        return choose(make, norms, gate, first, valid, keep, room)

    return alone(image, gate, first, valid)


def block_of(n: int, keep: int) -> int:
    """Most picks of a block, 0 for no blocks: N K is the size of the factor."""
    return BLOCK if n * keep >= BLOCKED_FROM else 0


def room_for(n: int, block: int, rows: int = ROWS, store: int = STORE) -> int:
    """How many rows are kept, a multiple of `rows`.

    A block needs its rows together. Each time that rows are made, one at least is of those that it
    lacks, and it stays until so many others have come: with `rows` times the picks of a block none
    of them can push out one that the block has waited for.

    Args:
        n: tokens, N.
        block: most picks of a block.
        rows: made together.
        store: bytes that they may take, where a block needs no more.
    """
    return rows * min(-(-n // rows), max(1, block, store // (4 * n * rows)))


Make = Callable[[Rows, jax.Array], Rows]
"""(rows, (N,) how soon each token may be picked) -> more rows: of the soonest that have none."""


def _maker(tokens: jax.Array, exponent: jax.Array, rows: int) -> Make:
    def make(held: Rows, ranked: jax.Array) -> Rows:
        _, wanted = lax.top_k(jnp.where(held.place < 0, ranked, -2.0), rows)
        asked = jnp.take(tokens, wanted, axis=0, mode="clip")
        # The tall matrix on the left: the other way round takes half as long again on a CPU, and
        # without a barrier XLA turns the product around.
        products = scale(lax.optimization_barrier(dot(tokens, asked)).T, -2 * exponent)  # [rows, N]
        start, place, lying = held.number, held.place, held.tokens
        if lying is not None:  # the rows that lay here make room
            start = start % held.made.shape[0]
            old = lax.dynamic_slice_in_dim(lying, start, rows)
            places = start + lax.iota(jnp.int32, rows)
            there = jnp.take(place, old, mode="fill", fill_value=-1) == places
            place = place.at[jnp.where(there, old, place.shape[0])].set(-1, mode="drop")
            lying = lax.dynamic_update_slice_in_dim(lying, wanted.astype(jnp.int32), start, 0)
        return Rows(
            lax.dynamic_update_slice(held.made, products, (start, jnp.int32(0))),
            place.at[wanted].set(start + lax.iota(jnp.int32, rows)),
            held.number + rows,
            lying,
        )

    return make


def _none(first: jax.Array, n: int, room: int) -> Rows:
    """No rows yet; the last ones made may be of tokens that have theirs already."""
    return Rows(
        jnp.zeros_like(first, shape=(room, n), dtype=jnp.float32),
        jnp.full_like(first, -1, shape=(n,), dtype=jnp.int32),
        jnp.zeros_like(first, dtype=jnp.int32),
        None if room >= n else jnp.full_like(first, n, shape=(room,), dtype=jnp.int32),
    )


class _State(NamedTuple):
    k: jax.Array  # picks made
    held: Rows
    progress: Progress
    basis: Factor


def _one_by_one(
    make: Make, norms: Norms, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int,
    room: int,
) -> Made:  # fmt: skip
    """The loop of `gram`: all earlier rows of the factor are read at every pick."""
    n = gate.shape[0]

    def ready(state: _State) -> jax.Array:
        pick, left = best(state.progress.score)
        return (row(state.held.place, pick) >= 0) | ~left

    def pick_one(state: _State) -> _State:
        pick, left = best(state.progress.score)
        own = row(state.held.made, jnp.maximum(row(state.held.place, pick), 0))

        def update(
            k: jax.Array, pick: jax.Array, inverse: jax.Array, basis: Factor
        ) -> tuple[jax.Array, Factor]:
            return extend(basis, k, pick, inverse, own, norms)

        progress, basis = step(
            state.progress, state.k, pick, left, gate, norms.squares, state.basis, update
        )
        return _State(state.k + 1, state.held, progress, basis)

    progress = begin(norms.squares, first, valid, keep)
    basis = no_rows(first, 0, n)
    state = _State(jnp.zeros_like(first), _none(first, n, room), progress, basis)
    for start, stop in parts_of(keep):

        def some(state: _State, stop: int = stop) -> _State:
            _, ranked = ranks(state.progress, gate, norms)
            held = lax.while_loop(
                lambda h: ~ready(state._replace(held=h)), lambda h: make(h, ranked), state.held
            )
            return lax.while_loop(
                lambda s: (s.k < stop) & ready(s), pick_one, state._replace(held=held)
            )

        state = state._replace(basis=lengthened(state.basis, stop - start))
        state = lax.while_loop(lambda s, stop=stop: s.k < stop, some, state)  # type: ignore[misc]
    growth = largest_growth(state.basis.drift, valid)
    outcome = Outcome(state.progress.indices, state.progress.totals, growth)
    return Made(outcome, state.held.number)


def _in_blocks(
    make: Make, norms: Norms, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int,
    room: int, block: int,
) -> Made:  # fmt: skip
    """The loop of `blocked`: the earlier rows of the factor are read once a block."""
    n = gate.shape[0]

    def look(
        held: Rows, _panels: Sequence[jax.Array], progress: Progress, norms: Norms
    ) -> tuple[jax.Array, jax.Array, Rows]:
        _, ranked = ranks(progress, gate, norms)
        soonest, foreseen = lax.top_k(ranked, block)
        held = lax.while_loop(
            lambda h: jnp.any((h.place[foreseen] < 0) & (soonest >= 0)),
            lambda h: make(h, ranked),
            held,
        )
        place = held.place[foreseen]
        products = jnp.take(held.made, place, axis=0, mode="clip")
        return jnp.where(place < 0, n, foreseen).astype(jnp.int32), products, held

    nothing = _none(first, n, room)
    found, held = in_blocks(look, nothing, norms, gate, first, valid, keep, block)
    return Made(found.outcome, held.number)


def squared_norms(tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """(..., N) float32 of tokens (..., N, d), 0 for padding."""
    tokens = tokens.astype(jnp.float32)
    axes = tuple(range(tokens.ndim - 1))
    squares = lax.dot_general(
        tokens, tokens, (((tokens.ndim - 1,),) * 2, (axes,) * 2), precision=lax.Precision.HIGHEST
    )
    # Without a barrier the sum over all tokens would be made of the products themselves, which
    # then lie in memory, as large as the tokens.
    return jnp.where(valid, lax.optimization_barrier(squares), 0.0)


@one_by_one
def norms_in_scale(tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, ...]:
    """Squared norms of tokens (..., N, d), of which most need not be scaled for that.

    Returns:
        (squared norms (..., N) of the tokens times 2^-exponent; the exponent (...) int32; whether
        all tokens are finite (...); whether they lie so far from 1 that they had to be scaled).
    """
    squares = squared_norms(tokens, valid)
    largest = jnp.max(squares, axis=-1)
    near = (largest >= _NEAR[0]) & (largest <= _NEAR[1])
    near &= jnp.all(jnp.isfinite(squares), axis=-1)  # a maximum may pass over NaN

    def again(state: Any) -> Any:
        asked = valid & state[0]  # as in `product._by_tiles`: else it would be computed always
        largest = jnp.max(jnp.abs(jnp.where(asked[..., None], tokens, 0)), axis=(-2, -1))
        by_entry = exponent_of(largest.astype(jnp.float32))
        # Masked and converted again, lest a copy of the tokens be held for both.
        asked = lax.optimization_barrier(asked)
        entries = jnp.where(asked[..., None], tokens, 0).astype(jnp.float32)
        scaled = squared_norms(scale(entries, -by_entry[..., None, None]), asked)
        # Entries of at most 2 cannot overflow: what is not finite was not finite in the tokens.
        finite = near | jnp.all(jnp.isfinite(scaled), axis=-1)
        scaled = jnp.where(near[..., None], squares, scaled)
        return jnp.zeros_like(state[0]), scaled, jnp.where(near, 0, by_entry), finite

    state = (jnp.any(~near), squares, jnp.zeros_like(near, dtype=jnp.int32), near)
    _, squares, by_entry, finite = lax.while_loop(lambda s: s[0], again, state)
    by_norm = exponent_of(jnp.max(squares, axis=-1)) // 2
    return scale(squares, -2 * by_norm[..., None]), by_entry + by_norm, finite, ~near


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    made = min(n, -(-keep // ROWS) * ROWS + ROWS)
    block = block_of(n, keep)
    # The tokens for their norms and once every ROWS rows; the rows, written and read; the factor as
    # `gram` or `blocked` reads it.
    passes = n * d * itemsize * (1 + made / ROWS)
    factor = keep / (2 * block) + block if block else 0.625 * keep
    return passes + 8.0 * n * made + 4.0 * n * keep * factor
