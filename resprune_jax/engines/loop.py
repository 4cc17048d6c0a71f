"""The greedy loop that every engine shares: which token is next, and what is written down.

An engine brings only its residual update, the cost of a step. The order of choice (tiers, ties,
exhaustion) lies here once, so that engines cannot come to disagree about it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

EXHAUSTED = 2e-6
"""A token is exhausted when its residual energy is at most this fraction of its squared norm."""

CLOSED = -1.0
"""The energy written for a token that may not be chosen: padding, and what was chosen before."""

_GATED, _UNGATED, _EXHAUSTED, _CLOSED = 3, 2, 1, 0  # the tiers of choice, best first

Basis = TypeVar("Basis")

Update = Callable[[jax.Array, jax.Array, jax.Array, Basis], tuple[jax.Array, Basis]]
"""(step k, pick p, 1 / residual energy of p, basis) -> (energy p explains of each token, basis).

The inverse is 0 for a pick that spans no new direction: it must then explain nothing."""


class Outcome(NamedTuple):
    """What an engine gives back.

    Attributes:
        indices: (K,) int32 in order of choice, N where no valid token was left.
        totals: (K + 1,) float32, total residual energy before each pick and after the last.
        growth: () float32, the largest expected squared rounding of a residual, relative to the
            token's squared norm and to that of the Gram matrix itself (`gram.py`); 0 where the
            residuals do not come from a Gram matrix.
    """

    indices: jax.Array
    totals: jax.Array
    growth: jax.Array


class View(NamedTuple):
    """What a rule sees of the tokens of one image (`resprune_jax.rules`).

    Energies and norms are in units in which the largest squared norm lies in [1, 4): no rule may
    depend on the unit of the tokens.

    Attributes:
        energy: (N,) float32, residual energy of every token, 0 where it is chosen or padding.
        norms: (N,) float32, squared norms.
        relevance: (N,) float32, as given, divided by its largest entry.
        gate: (N,) float32, relevance^alpha.
        places: (N, 2) float32, (row, column), or None.
        step: () int32, how many tokens are chosen.
    """

    energy: jax.Array
    norms: jax.Array
    relevance: jax.Array
    gate: jax.Array
    places: jax.Array | None
    step: jax.Array


class Guide(NamedTuple):
    """In place of a gate: a rule, and what it reads.

    Attributes:
        rule: a `resprune_jax.rules.Rule`.
        gate: (N,) float32.
        relevance: (N,) float32.
        places: (N, 2) float32 or None.
    """

    rule: Any
    gate: jax.Array
    relevance: jax.Array
    places: jax.Array | None

    def view(self, energy: jax.Array, norms: jax.Array, step: jax.Array) -> View:
        """What the rule sees before this step."""
        return View(jnp.maximum(energy, 0.0), norms, self.relevance, self.gate, self.places, step)


class Progress(NamedTuple):
    """Where the greedy loop stands before a step.

    Attributes:
        energy: (N,) float32, residual energy of every token, CLOSED where it may not be chosen.
        score: (N,) float32, what the next pick is chosen by (`scores`).
        total: () float32, the residual energy of all tokens together.
        indices: (K,) int32, the picks so far, in order of choice.
        totals: (K + 1,) float32, `total` before each step and after the last.
        memory: what a rule carries from pick to pick.
    """

    energy: jax.Array
    score: jax.Array
    total: jax.Array
    indices: jax.Array
    totals: jax.Array
    memory: Any = ()


def row(matrix: jax.Array, index: jax.Array) -> jax.Array:
    """matrix[index] along the first axis, for an index known to lie inside."""
    return lax.dynamic_index_in_dim(matrix, index, 0, False, allow_negative_indices=False)


def with_row(matrix: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """The matrix with one row replaced, for an index known to lie inside."""
    return lax.dynamic_update_index_in_dim(matrix, value, index, 0, allow_negative_indices=False)


def scores(gate: jax.Array, energy: jax.Array, norms: jax.Array) -> jax.Array:
    """What the next pick is chosen by, (N,): the largest score, the lowest index on a tie.

    Tiers: gate > 0 and not exhausted, by gate times energy; gate = 0 and not exhausted, by energy;
    exhausted, by gate. The score is -1 outside of the first tier that is not empty, and never
    negative inside it.
    """
    return _tiers(gate > 0, gate * energy, gate, energy, norms)


def _tiers(
    wanted: jax.Array, score: jax.Array, gate: jax.Array, energy: jax.Array, norms: jax.Array
) -> jax.Array:
    """`scores` with this score inside the first tier, of the tokens that are wanted."""
    tier = _tier_of(wanted, energy, norms)
    top = jnp.max(tier)
    inside = jnp.where(top == _GATED, score, jnp.where(top == _UNGATED, energy, gate))
    return jnp.where((tier == top) & (tier > _CLOSED), inside, -1.0)


def _tier_of(wanted: jax.Array, energy: jax.Array, norms: jax.Array) -> jax.Array:
    """The tier of each token, int32."""
    alive = jnp.where(wanted, _GATED, _UNGATED)
    tier = jnp.where(energy <= EXHAUSTED * norms, _EXHAUSTED, alive)
    return jnp.where(energy < 0, _CLOSED, tier).astype(jnp.int32)


def tiers(gate: jax.Array, energy: jax.Array, norms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the tier of each token, 0 for those that may not be chosen; its score among its tier).

    What `scores` makes of it takes the best tier first; who compares pairs needs no second pass.
    """
    tier = _tier_of(gate > 0, energy, norms)
    score = jnp.where(tier == _GATED, gate * energy, jnp.where(tier == _UNGATED, energy, gate))
    return tier, score


def ruled(guide: Guide, energy: jax.Array, norms: jax.Array, step: jax.Array, memory: Any) -> Any:
    """`scores` by a rule: first what it wants (a score above 0), then by energy, then by gate."""
    score = guide.rule.score(guide.view(energy, norms, step), memory).astype(jnp.float32)
    return _tiers(score > 0, score, guide.gate, energy, norms)


def best(score: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next pick, () int32, and whether any token is left, () bool; else it means nothing.

    On a CPU the scores must lie in memory, as what a loop carries does: the compiler could compute
    them once for the maximum and again, rounded otherwise, for its place.
    """
    largest = jnp.max(score)
    if jax.default_backend() == "cpu":
        # The CPU compiler makes scalar code of an argmax; these two reductions run in vectors.
        places = lax.iota(jnp.int32, score.shape[0])
        pick = jnp.min(jnp.where(score == largest, places, score.shape[0] - 1))
    else:
        pick = jnp.argmax(score).astype(jnp.int32)
    return pick, largest >= 0


def begin(
    norms: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    gate: jax.Array | Guide | None = None,
) -> Progress:
    """Nothing is chosen, and `first` comes next; arguments as `greedy`.

    Under shard_map what a loop carries must vary over the same axes before and after a turn: every
    constant to begin with is therefore made like `first`, which varies as the result does.
    """
    nothing = jnp.zeros_like(first, dtype=jnp.float32)
    total = jnp.sum(norms) + nothing
    seed = (lax.iota(jnp.int32, norms.shape[0]) == first) & jnp.any(valid)
    memory: Any = ()
    if isinstance(gate, Guide):
        made = gate.rule.start(gate.view(norms, norms, jnp.zeros_like(first)))
        memory = jax.tree.map(lambda x: jnp.asarray(x) + jnp.zeros_like(first, x.dtype), made)
    return Progress(
        energy=jnp.where(valid, norms, CLOSED) + nothing,
        score=jnp.where(seed, 1.0, -1.0),
        total=total,
        indices=jnp.full_like(first, norms.shape[0], shape=(keep,), dtype=jnp.int32),
        totals=jnp.broadcast_to(total, (keep + 1,)),
        memory=memory,
    )


def inverse(energy: jax.Array, norms: jax.Array, pick: jax.Array, left: jax.Array) -> jax.Array:
    """1 / residual energy of the pick; 0 if it is exhausted, or if nothing was left to pick.

    An exhausted pick spans no new direction: dividing by its residual would be dividing by
    rounding noise, so its inverse is 0 and the residuals of the others stay as they are.
    """
    own = row(energy, pick)
    active = left & (own > EXHAUSTED * row(norms, pick))
    return jnp.where(active, 1.0 / jnp.where(active, own, 1.0), 0.0)


def step(
    progress: Progress,
    k: jax.Array,
    pick: jax.Array,
    left: jax.Array,
    gate: jax.Array | Guide,
    norms: jax.Array,
    basis: Basis,
    update: Update[Basis],
) -> tuple[Progress, Basis]:
    """Make step k with this pick: let the engine say what it explains, and write it down.

    Where `left` is false nothing is picked, and of the progress only the entries of step k change.
    """
    n = norms.shape[0]
    explained, basis = update(k, pick, inverse(progress.energy, norms, pick, left), basis)
    closed = (progress.energy < 0) | (left & (lax.iota(jnp.int32, n) == pick))
    energy = jnp.where(closed, CLOSED, jnp.maximum(progress.energy - explained, 0.0))  # [N]
    # The same numbers summed in another order could seem to rise.
    total = jnp.minimum(jnp.sum(jnp.maximum(energy, 0.0)), progress.total)
    memory = progress.memory
    if isinstance(gate, Guide):
        known = gate.rule.chosen(gate.view(progress.energy, norms, k), memory, pick)
        memory = jax.tree.map(lambda new, old: jnp.where(left, new, old), known, memory)
        score = ruled(gate, energy, norms, k + 1, memory)
    else:
        score = scores(gate, energy, norms)
    progress = Progress(
        energy=energy,
        score=score,
        total=total,
        indices=with_row(progress.indices, jnp.where(left, pick, n), k),
        totals=with_row(progress.totals, total, k + 1),
        memory=memory,
    )
    return progress, basis


def steps(
    progress: Progress,
    start: int,
    stop: int,
    gate: jax.Array | Guide,
    norms: jax.Array,
    basis: Basis,
    update: Update[Basis],
) -> tuple[Progress, Basis]:
    """Make the steps `start` to `stop` - 1; the other arguments as `greedy`."""

    def one(k: jax.Array, state: tuple[Progress, Basis]) -> tuple[Progress, Basis]:
        progress, basis = state
        pick, left = best(progress.score)
        return step(progress, k, pick, left, gate, norms, basis, update)

    return lax.fori_loop(start, stop, one, (progress, basis))


def greedy(
    norms: jax.Array,
    gate: jax.Array | Guide,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    basis: Basis,
    update: Update[Basis],
) -> tuple[Progress, Basis]:
    """Run `keep` greedy steps of residual-energy selection on one image.

    Args:
        norms: (N,) float32, squared norms of the tokens, 0 for padding.
        gate: (N,) float32, g(r) >= 0, or a rule in its place.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps, at most N.
        basis: what `update` carries from step to step.
        update: the engine's residual update.

    Returns:
        (the progress after the last step, the last basis).
    """
    progress = begin(norms, first, valid, keep, gate)
    return steps(progress, 0, keep, gate, norms, basis, update)
