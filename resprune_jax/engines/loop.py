"""The greedy loop that every engine shares: which token is next, and what is written down.

An engine brings only its residual update, the cost of a step. The order of choice (tiers, ties,
exhaustion) lies here once, so that engines cannot come to disagree about it.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

EXHAUSTED = 2e-6
"""A token is exhausted when its residual energy is at most this fraction of its squared norm."""

Basis = TypeVar("Basis")

Update = Callable[[jax.Array, jax.Array, jax.Array, Basis], tuple[jax.Array, Basis]]
"""(step k, pick p, 1 / residual energy of p, basis) -> (energy p explains of each token, basis).

The inverse is 0 for a pick that spans no new direction: it must then explain nothing."""


class _State(NamedTuple, Generic[Basis]):
    energy: jax.Array  # [N] residual energy of every token, exactly 0 once chosen
    open: jax.Array  # [N] may still be chosen
    indices: jax.Array  # [K]
    totals: jax.Array  # [K + 1]
    basis: Basis


def best(gate: jax.Array, energy: jax.Array, exhausted: jax.Array, open_: jax.Array) -> jax.Array:
    """The next pick: the best token of the first tier that is not empty.

    Tiers: gate > 0 and not exhausted, by gate times energy; gate = 0 and not exhausted, by energy;
    exhausted, by gate. `argmax` gives ties to the lowest index.
    """
    gated = open_ & ~exhausted & (gate > 0)
    ungated = open_ & ~exhausted & (gate <= 0)
    score = jnp.where(
        jnp.any(gated),
        jnp.where(gated, gate * energy, -1.0),
        jnp.where(
            jnp.any(ungated),
            jnp.where(ungated, energy, -1.0),
            jnp.where(open_, gate, -1.0),
        ),
    )
    return jnp.argmax(score).astype(jnp.int32)


def greedy(
    norms: jax.Array,
    gate: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
    basis: Basis,
    update: Update[Basis],
) -> tuple[jax.Array, jax.Array, Basis]:
    """Run `keep` greedy steps of residual-energy selection on one image.

    Args:
        norms: (N,) float32, squared norms of the tokens, 0 for padding.
        gate: (N,) float32, g(r) >= 0.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps, at most N.
        basis: what `update` carries from step to step.
        update: the engine's residual update.

    Returns:
        (indices (keep,) int32 in order of choice, N where no valid token was left;
        total residual energy (keep + 1,) float32 before each pick and after the last;
        the last basis).
    """
    n = norms.shape[0]

    def step(k: jax.Array, state: _State[Basis]) -> _State[Basis]:
        exhausted = state.energy <= EXHAUSTED * norms
        pick = jnp.where(k == 0, first, best(gate, state.energy, exhausted, state.open))
        left = jnp.any(state.open)
        # An exhausted pick spans no new direction: dividing by its residual would be dividing by
        # rounding noise, so its inverse is 0 and the residuals of the others stay as they are.
        active = left & ~exhausted[pick]
        inverse = jnp.where(active, 1.0 / jnp.where(active, state.energy[pick], 1.0), 0.0)
        explained, basis = update(k, pick, inverse, state.basis)
        energy = jnp.maximum(state.energy - explained, 0.0)
        energy = jnp.where(left & (jnp.arange(n) == pick), 0.0, energy)  # [N]
        return _State(
            energy=energy,
            open=state.open & (jnp.arange(n) != pick),
            indices=state.indices.at[k].set(jnp.where(left, pick, n)),
            # The same numbers summed in another order could seem to rise.
            totals=state.totals.at[k + 1].set(jnp.minimum(jnp.sum(energy), state.totals[k])),
            basis=basis,
        )

    start = _State(
        energy=norms,
        open=valid,
        indices=jnp.full((keep,), n, jnp.int32),
        totals=jnp.full((keep + 1,), jnp.sum(norms)),
        basis=basis,
    )
    end = lax.fori_loop(0, keep, step, start)
    return end.indices, end.totals, end.basis
