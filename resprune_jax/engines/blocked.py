"""The `blocked` engine: pivoted Cholesky for many tokens, the earlier rows read once a block.

`gram` reads every earlier row of the factor at every pick, N K^2 / 2 numbers in all, and is bound
by memory. Here a block of b picks is foreseen first:

1. The candidates are the tokens of best score, a few times b. Their own little Schur complement,
   m x m, is enough to run the greedy rule among them alone and so to foresee b picks.
2. One matrix product gives what the earlier rows explain of those b tokens' products with every
   token.
3. The greedy loop that all engines share then makes its picks among *all* tokens, whose energies
   it updates exactly. A pick that was foreseen finds its products ready, in whatever order; at the
   first one that was not, the block ends early and the next begins with it.

So the foresight never decides anything, and a wrong one costs time only. N K (K / 2b + b) numbers
are read, and the arithmetic of step 2, N K^2, runs in matrix products.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .gram import Factor, Norms, extend, largest_growth, no_rows, norms_of
from .loop import CLOSED, Outcome, Progress, begin, best, row, scores, step, steps
from .product import dot
from .visits import one_by_one

CANDIDATES = 4
"""Candidates for each pick of a block."""

BLOCKED_FROM = 2**19
"""The size of the factor, N K, from which on it leaves the caches and blocks pay."""

PANEL = 512
"""Picks whose rows of the factor are kept in one array: a block reads the panels before its own
and its own at full width."""


class Counted(NamedTuple):
    """An outcome, and how the blocks went.

    Attributes:
        outcome: as of every engine.
        blocks: () int32, how many there were.
        early: () int32, how many ended before their last pick because it was not foreseen.
    """

    outcome: Outcome
    blocks: jax.Array
    early: jax.Array


Look = Callable[[Any, Sequence[jax.Array], Progress, Norms], tuple[jax.Array, jax.Array, Any]]
"""(what it holds, the panels so far, the progress, norms) -> (foreseen tokens (b,) int32, the next
pick among them; their inner products with every token (b, N); what it holds now).

An entry of N is no token."""


class _State(NamedTuple):
    k: jax.Array  # picks made
    held: Any  # by the foresight
    progress: Progress
    drift: jax.Array  # [N]
    panel: jax.Array  # [N, picks of the panel + b], columns of picks to come are 0
    blocks: jax.Array
    early: jax.Array


class _Turn(NamedTuple):
    now: jax.Array  # picks made
    ready: jax.Array  # the last pick was foreseen
    progress: Progress
    basis: Factor  # the rows of this block


def block_size(n: int) -> int:
    """Picks of a block: more tokens make the product larger and the picks few beside it."""
    return 32 if n < 5000 else 64


def factor(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky in blocks; arguments as `gram.factor`."""
    return counted(gram, gate, first, valid, keep).outcome


def counted(
    gram: jax.Array,
    gate: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    *,
    block: int | None = None,
    candidates: int | None = None,
    panel: int = PANEL,
) -> Counted:
    """`factor`, with a count of the blocks.

    Args:
        gram: (N, N) float32, the Gram matrix of scaled tokens, 0 for padding; only read.
        gate: (N,) float32.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.
        block: most picks of a block; default by N.
        candidates: how many tokens the foresight looks at; default `CANDIDATES` times the block.
        panel: picks of a panel.
    """
    n = gram.shape[0]
    block = min(keep, block_size(n) if block is None else block)
    candidates = min(n, max(block, CANDIDATES * block if candidates is None else candidates))

    # One problem after the other: one is large enough for the machine, and the blocks of two
    # problems do not end together.
    @one_by_one
    def alone(gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array) -> Counted:
        def look(
            held: tuple[()], panels: Sequence[jax.Array], progress: Progress, norms: Norms
        ) -> tuple[jax.Array, jax.Array, tuple[()]]:
            foreseen = _foresee(gram, panels, progress, gate, norms, block, candidates)
            return foreseen, jnp.take(gram, foreseen, axis=0, mode="clip"), held

        norms = norms_of(gram)
        return in_blocks(look, (), norms, gate, first, valid, keep, block, panel)[0]

    return alone(gram, gate, first, valid)


def in_blocks(
    look: Look,
    held: Any,
    norms: Norms,
    gate: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    block: int,
    width: int = PANEL,
) -> tuple[Counted, Any]:
    """The greedy loop in blocks, whatever foresees their picks.

    Args:
        look: the foresight.
        held: what it holds at first.
        norms: of the tokens.
        gate: (N,) float32.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.
        block: most picks of a block.
        width: picks of a panel.

    Returns:
        (the outcome with a count of the blocks, what the foresight holds at the end).
    """
    n = gate.shape[0]
    progress = begin(norms.squares, first, valid, keep)
    drift = no_rows(first, 0, n).drift
    blocks = early = k = jnp.zeros_like(first)
    panels: list[jax.Array] = []
    for start in range(0, keep, width):
        stop = min(keep, start + width)

        def one_block(state: _State, start: int = start, stop: int = stop) -> _State:
            before = [*panels, state.panel]
            foreseen, products, held = look(state.held, before, state.progress, norms)
            for panel in before:
                own = jnp.take(panel, foreseen, axis=0, mode="clip")  # [b, picks]
                products = products - dot(panel, own).T
            end, progress, own_factor = _picks(
                state.k, state.progress, foreseen, products, state.drift, gate, norms, stop
            )
            wanted = jnp.minimum(state.k + block, stop)
            return _State(
                end,
                held,
                progress,
                own_factor.drift,
                # Columns behind the last pick hold zeros, and the next block writes over them.
                lax.dynamic_update_slice(
                    state.panel, own_factor.rows.T, (jnp.int32(0), state.k - start)
                ),
                state.blocks + 1,
                state.early + (end < wanted),
            )

        panel = jnp.zeros_like(first, shape=(n, stop - start + block), dtype=jnp.float32)
        state = _State(k, held, progress, drift, panel, blocks, early)
        state = lax.while_loop(lambda s, stop=stop: s.k < stop, one_block, state)  # type: ignore[misc]
        k, held, progress, drift, panel, blocks, early = state
        panels.append(panel)
    outcome = Outcome(progress.indices, progress.totals, largest_growth(drift, valid))
    return Counted(outcome, blocks, early), held


def ranks(progress: Progress, gate: jax.Array, norms: Norms) -> tuple[jax.Array, jax.Array]:
    """(the next pick () int32; (N,) how soon each token may be picked: that one is infinite)."""
    pick, _ = best(progress.score)
    places = lax.iota(jnp.int32, gate.shape[0])
    # Not the scores of the progress: before the first step they only name the seed token.
    ranked = scores(gate, progress.energy, norms.squares)
    return pick, jnp.where(places == pick, jnp.inf, ranked)


def _foresee(
    gram: jax.Array,
    panels: Sequence[jax.Array],
    progress: Progress,
    gate: jax.Array,
    norms: Norms,
    block: int,
    candidates: int,
) -> jax.Array:
    """The picks that the next steps are likely to make, (b,) int32; the first is certain."""
    pick, ranked = ranks(progress, gate, norms)
    _, among = lax.top_k(ranked, candidates)  # [m]
    schur = jnp.take(jnp.take(gram, among, axis=0, mode="clip"), among, axis=1, mode="clip")
    for panel in panels:
        own = jnp.take(panel, among, axis=0, mode="clip")
        schur = schur - dot(own, own)  # [m, m]
    here = Norms(norms.squares[among], norms.shares[among])

    def update(
        k: jax.Array, pick: jax.Array, inverse: jax.Array, basis: Factor
    ) -> tuple[jax.Array, Factor]:
        return extend(basis, k, pick, inverse, row(schur, pick), here)

    energy = progress.energy[among]
    start = begin(here.squares, jnp.zeros_like(pick), energy > CLOSED, block)
    start = start._replace(energy=energy)
    basis = no_rows(pick, block, candidates)
    end, _ = steps(start, 0, block, gate[among], here.squares, basis, update)
    # Where the candidates ran out the entry is `candidates`: any token will do in its place.
    return jnp.take(among, end.indices, mode="clip").at[0].set(pick)


def _picks(
    k: jax.Array,
    progress: Progress,
    foreseen: jax.Array,
    products: jax.Array,
    drift: jax.Array,
    gate: jax.Array,
    norms: Norms,
    stop: int,
) -> tuple[jax.Array, Progress, Factor]:
    """Make the picks of one block: at most b, until one was not foreseen.

    Returns:
        (picks made so far (), the progress, the rows of these picks (b, N) with the drift).
    """
    last = jnp.minimum(k + foreseen.shape[0], stop)

    def turn(state: _Turn) -> _Turn:
        pick, left = best(state.progress.score)
        here = foreseen == pick
        ready = jnp.any(here) | ~left

        def update(
            at: jax.Array, pick: jax.Array, inverse: jax.Array, basis: Factor
        ) -> tuple[jax.Array, Factor]:
            own = row(products, jnp.argmax(here).astype(jnp.int32))
            return extend(basis, at - k, pick, inverse, own, norms)

        progress, basis = step(
            state.progress, state.now, pick, left & ready, gate, norms.squares, state.basis, update
        )
        # What a step without a pick wrote, the next block writes over.
        return _Turn(state.now + ready, ready, progress, basis)

    start = _Turn(
        k, jnp.ones_like(k, dtype=bool), progress, Factor(jnp.zeros_like(products), drift)
    )
    end = lax.while_loop(lambda s: (s.now < last) & s.ready, turn, start)
    return end.now, end.progress, end.basis


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    block = block_size(n)
    # The tokens and G; the rows before it once a block, its own rows once a pick.
    return n * d * itemsize + 4.0 * n * n + 4.0 * n * keep * (keep / (2 * block) + block)
