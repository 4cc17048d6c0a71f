"""The guard of the engines that work on the Gram matrix: they know when to doubt themselves."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import feature
from .gram import MOST_GROWTH
from .loop import Guide, Outcome
from .product import clean, scale
from .visits import one_by_one

_telling: ContextVar[bool] = ContextVar("_telling", default=False)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Let selections that are traced here tell their doubts and not put them right.

    A GPU's programs wait for the host at every loop whose turns are not known before, were it for
    none at all. Who looks at the result anyway, as the programs of a model do, saves that: a
    selection then holds its `doubtful`, and one that is gets made again with the guard inside.
    """
    token = _telling.set(True)
    try:
        yield
    finally:
        _telling.reset(token)


def told() -> bool:
    """Whether doubts are told by selections that are traced now."""
    return _telling.get()


def doubted(found: Outcome) -> jax.Array:
    """Whether the expected rounding of an engine's picks is too large, () bool."""
    return found.growth > MOST_GROWTH


def guarded(
    found: Outcome,
    tokens: jax.Array,
    exponent: jax.Array,
    norms: jax.Array,
    gate: jax.Array | Guide,
    first: jax.Array,
    valid: jax.Array,
    keep: int,
) -> tuple[jax.Array, jax.Array]:
    """The picks, made again by `feature` where the rounding of G grew too large.

    A problem in which the expected rounding grows towards the slack of the certificate is done
    again by the engine whose residuals do not come from G.

    Args:
        found: what the engine gave back.
        tokens: (N, d), as the caller gave them.
        exponent: () int32, of the scale at which the engine worked.
        norms: (N,) float32, squared norms at that scale.
        gate: (N,) float32, or a rule in its place.
        first: () int32, the seed token.
        valid: (N,) bool.
        keep: static number of steps.

    Returns:
        (indices (keep,) int32, energy totals (keep + 1,) float32).
    """

    # One problem after the other: together they would hold a float32 copy of the tokens each.
    @one_by_one
    def decide(
        doubtful: jax.Array, indices: jax.Array, totals: jax.Array, tokens: jax.Array,
        exponent: jax.Array, norms: jax.Array, gate: jax.Array | Guide, first: jax.Array,
        valid: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        def redo() -> tuple[jax.Array, jax.Array]:
            scaled = scale(clean(tokens, valid), -exponent)
            other = feature.factor(scaled, gate, first, valid, keep, norms)
            return other.indices, other.totals

        return lax.cond(doubtful, redo, lambda: (indices, totals))

    def turn(state: Any) -> Any:
        return jnp.zeros_like(state[0]), *decide(
            *state, tokens, exponent, norms, gate, first, valid
        )

    # A loop of at most one turn around it: under vmap a condition alone would look at every
    # problem of a batch in turn, while a loop takes no turn at all unless a problem asks for one.
    state = (doubted(found), found.indices, found.totals)
    _, indices, totals = lax.while_loop(lambda s: s[0], turn, state)
    return indices, totals
