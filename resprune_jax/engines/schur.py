"""The `schur` engine: what earlier picks leave of the Gram matrix, kept as a whole, for GPUs.

`gram` asks at every pick what all earlier rows of the factor explain: a sum over these rows, and a
row to write, which a GPU's compiler makes many kernels of. Here the remainder

    S[p, i] = G[p, i] - sum_{j} L[j, p] L[j, i]

lies in memory, as it was `BLOCK` picks ago at most. A pick takes its row of S, subtracts what the
few picks since then explain, and has the new row of the factor: numbers side by side, no sum. The
one reduction of a pick says which token is next, and how much energy is left. Every `BLOCK` picks
their rows are taken off S, in place.

Every number of S, and of a row, loses the same products in the same order, whenever that is done,
and but for the total no sum runs over tokens: batches, budgets and blocks do not reorder any.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .gram import Norms, largest_growth, norms_of
from .loop import CLOSED, Outcome, inverse, row, tiers

BLOCK = 16
"""Picks between two changes of S: each reads and writes all of it; but a pick's row costs a product
for every pick since."""


class _Next(NamedTuple):
    """What the reduction of a step says."""

    pick: jax.Array  # () int32
    tier: jax.Array  # () int32 of the pick, 0 where no token is left
    total: jax.Array  # () residual energy of all tokens


class _State(NamedTuple):
    """Before a step; all but S and the next pick are (N,)."""

    remainder: jax.Array  # [N, N] S
    energy: jax.Array  # CLOSED where a token may not be chosen
    drift: jax.Array  # as in `gram.Factor`
    picks: jax.Array  # entry k: the pick of step k
    totals: jax.Array  # entry k: the residual energy before step k
    next: _Next


def factor(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky on the Schur complement; arguments as `gram.factor`."""
    return blocks_of(gram, gate, first, valid, keep, BLOCK)


def blocks_of(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int, block: int
) -> Outcome:
    """`factor` with so many picks between two changes of S."""
    n = gram.shape[0]
    norms = norms_of(gram)
    nothing = jnp.zeros_like(first, dtype=jnp.float32)  # for which see `loop.begin`
    energy = jnp.where(valid, norms.squares, CLOSED) + nothing
    state = _State(
        remainder=gram + nothing,
        energy=energy,
        drift=jnp.ones_like(first, shape=(n,), dtype=jnp.float32),
        picks=jnp.full_like(first, n, shape=(n,), dtype=jnp.int32),
        totals=jnp.zeros_like(first, shape=(n,), dtype=jnp.float32),
        next=_Next(first, jnp.any(valid).astype(jnp.int32), jnp.sum(norms.squares) + nothing),
    )

    def one_block(at: tuple[jax.Array, _State]) -> tuple[jax.Array, _State]:
        start, state = at
        rows: list[jax.Array] = []
        for k in range(block):
            # The last block may have steps that nobody asked for: nothing is left for them.
            asked = start + k < keep
            new, state = _step(state, start + k, asked, rows, gate, norms)
            rows.append(new)
        return start + block, state._replace(remainder=_without(state.remainder, rows))

    begun = (jnp.zeros_like(first), state)
    # A multiple of the step: a loop from 0 below 1 by steps of more XLA leaves out altogether.
    stop = -(-keep // block) * block
    _, state = lax.while_loop(lambda at: at[0] < stop, one_block, begun)
    # The same numbers summed in another order could seem to rise.
    totals = lax.cummin(jnp.concatenate([state.totals[:keep], state.next.total[None]]))
    return Outcome(state.picks[:keep], totals, largest_growth(state.drift, valid))


def _step(
    state: _State,
    k: jax.Array,
    asked: jax.Array,
    rows: list[jax.Array],
    gate: jax.Array,
    norms: Norms,
) -> tuple[jax.Array, _State]:
    """Make step k, as `loop.step` with `gram.extend` does.

    Args:
        state: before it.
        k: () int32.
        asked: () whether it is to be made; else only its own entries are written.
        rows: (N,) each, of the factor, that S does not know yet.
        gate: (N,).
        norms: of the tokens.

    Returns:
        (the new row of the factor (N,), the state after the step).
    """
    pick, tier, total = state.next
    left = asked & (tier > 0)
    places = lax.iota(jnp.int32, gate.shape[0])
    share = inverse(state.energy, norms.squares, pick, left)
    own = row(state.remainder, pick)
    for earlier in rows:
        own = own - row(earlier, pick) * earlier
    new = jnp.where(share > 0, own * jnp.sqrt(share), 0.0)
    explained = new * new
    ratio = row(norms.squares, pick) * share * explained * norms.shares
    grown = state.drift + row(state.drift, pick) * ratio * (1 + ratio)
    closed = (state.energy < 0) | (left & (places == pick))
    energy = jnp.where(closed, CLOSED, jnp.maximum(state.energy - explained, 0.0))
    return new, state._replace(
        energy=energy,
        drift=jnp.where(share > 0, grown, state.drift),
        picks=jnp.where(places == k, jnp.where(left, pick, gate.shape[0]), state.picks),
        totals=jnp.where(places == k, total, state.totals),
        next=_next(energy, gate, norms.squares),
    )


def _next(energy: jax.Array, gate: jax.Array, norms: jax.Array) -> _Next:
    """The next pick by the tiers of `loop.scores`, and the residual energy, in one reduction."""
    tier, score = tiers(gate, energy, norms)
    places = lax.iota(jnp.int32, gate.shape[0])

    def better(one: tuple[jax.Array, ...], other: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        tier, score, place, total = one
        tier_too, score_too, place_too, total_too = other
        ahead = (score > score_too) | ((score == score_too) & (place < place_too))
        wins = (tier > tier_too) | ((tier == tier_too) & ahead)
        return (
            jnp.where(wins, tier, tier_too),
            jnp.where(wins, score, score_too),
            jnp.where(wins, place, place_too),
            total + total_too,
        )

    start = (jnp.int32(0), jnp.float32(-1), jnp.int32(gate.shape[0] - 1), jnp.float32(0))
    tier, _, pick, total = lax.reduce(
        (tier, score, places, jnp.maximum(energy, 0.0)), start, better, (0,)
    )
    return _Next(pick, tier, total)


def _without(remainder: jax.Array, rows: list[jax.Array]) -> jax.Array:
    """S without what these rows of the factor explain, in their order."""
    for new in rows:
        remainder = remainder - new[:, None] * new[None, :]
    return remainder


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    # The tokens, G, S once a block; of a pick the rows of its block.
    blocks = -(-keep // BLOCK)
    return n * d * itemsize + 8.0 * n * n * (1 + blocks) + 4.0 * n * keep * (BLOCK / 2 + 8)
