"""What the greedy loop decides by: the paper's rule, and variants of it; write your own likewise.

A rule gives every token a score at every step, from its residual energy, squared norm, relevance
and place and the step, and may carry a state of its own from pick to pick. The loop takes the
highest score above 0; where no token has one, the largest residual energy; and last the tokens of
which nothing is left outside the span of the chosen ones. The seed token is not scored.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .engines.loop import View
from .relevance import gate

__all__ = ["CoveredNouns", "Distance", "FallingAlpha", "ResidualEnergy", "Rule", "View"]


@dataclass(frozen=True)
class Rule:
    """A rule: subclass it as a frozen dataclass registered as a pytree.

    Numbers and arrays are leaves, so that a sweep can vmap over them. A field that may hold an
    array for each row of a batch says so, `field(metadata={"per_row": N})`, with N the number of
    its axes for one row.
    """

    def start(self, view: View) -> Any:
        """The state before the first pick: a pytree of arrays; nothing by default."""
        return ()

    def score(self, view: View, state: Any) -> jax.Array:
        """How much each token is wanted next.

        Args:
            view: the tokens of one image.
            state: what `start` or the last `chosen` gave.

        Returns:
            (N,) float; 0 or less: only if nothing else is left.
        """
        raise NotImplementedError(f"{type(self).__name__} has no score")

    def chosen(self, view: View, state: Any, pick: jax.Array) -> Any:
        """The state after a pick.

        Args:
            view: the tokens before it.
            state: likewise.
            pick: () int32.

        Returns:
            A pytree like `state`.
        """
        return state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidualEnergy(Rule):
    """The paper's rule: relevance^alpha times residual energy."""

    def score(self, view: View, state: Any) -> jax.Array:
        """See `Rule.score`."""
        return view.gate * view.energy


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distance(Rule):
    """The paper's rule times 1 - strength exp(-D^2 / (2 width^2)), D to the nearest chosen token.

    Needs `places`.

    Attributes:
        strength: in [0, 1]; 0 is the paper's rule.
        width: in the unit of the places.
    """

    strength: float = 0.5
    width: float = 2.0

    def start(self, view: View) -> Any:
        """Squared distances to the nearest chosen token: none is near."""
        return jnp.full(view.energy.shape, jnp.inf)

    def score(self, view: View, state: Any) -> jax.Array:
        """See `Rule.score`."""
        near = jnp.exp(-state / (2 * self.width**2))
        return view.gate * view.energy * (1 - self.strength * near)

    def chosen(self, view: View, state: Any, pick: jax.Array) -> Any:
        """See `Rule.chosen`."""
        assert view.places is not None
        apart = jnp.sum(jnp.square(view.places - view.places[pick]), axis=-1)
        return jnp.minimum(state, apart)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CoveredNouns(Rule):
    """Relevance that decays where a noun is covered.

    A noun counts (1 - w) times as much after each chosen token, w in [0, 1] being the token's
    relevance to it; a token's relevance is the largest of what is left over the nouns.

    Attributes:
        by_noun: (N, M) or (B, N, M), relevance to each noun, in [0, 1].
        alpha: its exponent.
    """

    by_noun: jax.Array | np.ndarray = field(metadata={"per_row": 2})
    alpha: float = 0.75

    def start(self, view: View) -> Any:
        """(M,) what is left of each noun: all."""
        return jnp.ones(self.by_noun.shape[-1])

    def score(self, view: View, state: Any) -> jax.Array:
        """See `Rule.score`."""
        return gate(jnp.max(self.by_noun * state, axis=-1), jnp.asarray(self.alpha)) * view.energy

    def chosen(self, view: View, state: Any, pick: jax.Array) -> Any:
        """See `Rule.chosen`."""
        return state * (1 - jnp.asarray(self.by_noun)[pick])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FallingAlpha(Rule):
    """The paper's rule with alpha decay^(k - 1) at the k-th pick behind the seed token.

    Attributes:
        alpha: at the first of them.
        decay: in (0, 1]; 1 is the paper's rule.
    """

    alpha: float = 0.75
    decay: float = 0.95

    def score(self, view: View, state: Any) -> jax.Array:
        """See `Rule.score`."""
        alpha = self.alpha * jnp.power(self.decay, view.step - 1.0)
        return gate(view.relevance, alpha) * view.energy
