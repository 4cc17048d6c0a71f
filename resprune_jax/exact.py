"""The float64 oracle of the greedy rule: explicit projection, slow and obvious, in NumPy alone.

It shares no code with the engines. Energies are the squared norms of residual vectors that are
held explicitly, v_i - Q Q^T v_i, never a running difference of scalars. `certificate.py` checks the
picks of an engine against it.
"""

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CallError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

#: A token is exhausted when its residual energy is at most this share of its squared norm.
EXHAUSTED = 2e-6
#: A token is clearly exhausted, in every float32 reading, when its residual energy plus this many
#: times its float32 rounding (see `Projection.rounding`) is at most EXHAUSTED. Behind a pick of
#: which little was left, float32 no longer knows what is exhausted, and no order is demanded.
MARGIN = 8.0
#: The slack of the step certificate, as a share of a token's squared norm.
TAU = 1e-5
#: Gates nearer than this, relative to the larger one, are not told apart among exhausted tokens.
GATE_MARGIN = 1e-6
#: Equal numbers may come out this far apart, relative to their scale.
_ROUNDING = 1e-13
_FLOAT32_EPS = 2.0**-24


@dataclass(frozen=True)
class ExactSelection:
    """What `greedy` chose, n = min(keep, number of valid tokens) picks.

    Attributes:
        indices: (n,) token indices in order of choice.
        energy: (n + 1,) total ungated residual energy before each pick and after the last.
        lead: (n,) how far each pick leads every other candidate, in units of the certificate's
            slack; a step is decided (no engine within the certificate can pick otherwise) where
            it exceeds 1.
    """

    indices: Int
    energy: Float
    lead: Float

    @property
    def decided(self) -> NDArray[np.bool_]:
        """(n,) where the lead exceeds the slack: an engine with this prefix must pick the same."""
        return self.lead > 1.0


class Projection:
    """The residuals of all tokens against an orthonormal basis that grows pick by pick.

    The products are einsums: equal rows come out equal, and no threads wait for each other.
    """

    def __init__(self, tokens: Float) -> None:
        """Start from (n, d) tokens, with nothing chosen."""
        # A float32 inner product adds d rounded terms, in some 64 sums side by side.
        terms = max(1.0, np.count_nonzero(tokens.any(axis=0)) / 64)
        tokens = _in_own_span(tokens)
        self.residuals = tokens.copy()  # [n, d], v_i - Q Q^T v_i
        self.basis = np.zeros((0, tokens.shape[1]))  # [k, d], rows q
        self.norms = _squared_norms(tokens)  # [n]
        self.energies = self.norms.copy()  # [n]
        # The squared length by which a float32 residual is expected to be off.
        self.drift = terms * _FLOAT32_EPS**2 * self.norms  # [n]

    def copy(self) -> "Projection":
        """An independent projection with the same basis."""
        other = copy.copy(self)
        other.residuals, other.drift = self.residuals.copy(), self.drift.copy()
        return other

    def rounding(self) -> Float:
        """[n] how far a float32 energy is expected to be off.

        A direction q that float32 takes from a pick p is off by an angle of about
        eps |v_p| / sqrt(E_p), and by what the directions before it left in p; that angle moves
        the share (q . v_i)^2 that it takes from token i. The errors add up as independent ones.
        """
        return 2.0 * np.sqrt(self.norms * self.drift)

    def append(self, token: int) -> None:
        """Project the direction of a token's residual out of every residual."""
        squared_angle = self.drift[token] / self.energies[token]
        direction = self.residuals[token]
        # Twice is enough: the second pass removes what rounding left of the first.
        for _ in range(2):
            shares = np.einsum("kd,d->k", self.basis, direction)
            direction = direction - np.einsum("k,kd->d", shares, self.basis)
        direction = direction / np.sqrt(np.einsum("d,d->", direction, direction))
        self.basis = np.vstack([self.basis, direction])
        shares = np.einsum("nd,d->n", self.residuals, direction)
        self.residuals -= np.outer(shares, direction)
        self.energies = _squared_norms(self.residuals)
        self.drift += squared_angle * shares**2


@dataclass(frozen=True)
class Instance:
    """A selection problem in float64, without its padding."""

    tokens: Float  # [n, d]
    norms: Float  # [n], squared norms
    relevance: Float | None  # [n]
    gates: Float  # [n]
    where: Int  # [n], the index of each token among all of them
    size: int  # N, padding included
    first: int | None  # position among the n


def greedy(
    tokens: ArrayLike,
    keep: int,
    *,
    relevance: ArrayLike | None = None,
    alpha: float = 0.0,
    first: int | None = None,
    valid: ArrayLike | None = None,
) -> ExactSelection:
    """Select visual tokens by the greedy residual-energy rule, exactly.

    Args:
        tokens: (N, d) visual tokens of any float dtype.
        keep: tokens to choose; capped at the number of valid tokens.
        relevance: (N,) text relevance, or None for no text.
        alpha: strength of textual guidance; the gate is relevance^alpha where relevance > 0 and
            exactly 0 elsewhere, and 1 everywhere for alpha = 0.
        first: index of the seed token; None takes the largest norm.
        valid: (N,) bool, False for padding.

    Returns:
        The picks, the total residual energies and the lead of every pick.

    Raises:
        CallError: shapes that do not agree, no valid token, tokens that are not finite, or a first
            token that is out of range or padding.

    Implements the greedy surrogate of the paper's reconstruction objective with the tiers of
    choice: gate > 0 and not exhausted, by gate times energy; then gate = 0 and not exhausted, by
    energy; then exhausted tokens, by gate; ties go to the lowest index.
    """
    if keep < 1:
        raise CallError(f"keep is {keep}; expected at least 1")
    problem = read_problem(tokens, relevance, alpha, first, valid)
    norms, gates = problem.norms, problem.gates
    projection = Projection(problem.tokens)
    left = np.ones(len(norms), dtype=bool)
    picks: list[int] = []
    totals = [projection.energies.sum()]
    leads: list[float] = []
    for step in range(min(keep, len(norms))):
        energies = projection.energies
        if step == 0:
            pick = _largest(norms, norms, left) if problem.first is None else problem.first
            leads.append(lead_of_first(problem, pick))
        else:
            pick = best_candidate(energies, norms, gates, left)
            leads.append(
                lead_of(pick, energies, clearly_exhausted(projection, projection), problem, left)
            )
        left[pick] = False
        picks.append(pick)
        if energies[pick] > EXHAUSTED * norms[pick]:
            projection.append(pick)
        # Residuals of chosen tokens are rounding; the sum over all is the exact total.
        totals.append(projection.energies.sum())
    return ExactSelection(problem.where[picks], np.array(totals), np.array(leads))


def reconstruction_error(
    tokens: ArrayLike, indices: ArrayLike, *, valid: ArrayLike | None = None
) -> float:
    """The squared Frobenius norm of V - P_S V, by least squares.

    Args:
        tokens: (N, d) visual tokens V.
        indices: the subset S in any order; entries of N (nothing chosen) are left out.
        valid: (N,) bool, False for padding, which does not count.

    Returns:
        The exact squared reconstruction error.
    """
    problem = read_problem(tokens, None, 0.0, None, valid)
    every = np.asarray(tokens).astype(np.float64)
    chosen = np.asarray(indices, dtype=np.int64)
    columns = every[chosen[chosen < len(every)]]
    columns = columns[_squared_norms(columns) > 0]
    # The span does not depend on the lengths; at unit length the rank is told by one threshold.
    columns = (columns / np.sqrt(_squared_norms(columns))[:, None]).T
    if columns.size == 0:
        return float(problem.norms.sum())
    weights = np.linalg.lstsq(columns, problem.tokens.T, rcond=1e-10)[0]
    return float(_squared_norms(problem.tokens - (columns @ weights).T).sum())


def read_problem(
    tokens: ArrayLike,
    relevance: ArrayLike | None,
    alpha: float,
    first: int | None,
    valid: ArrayLike | None,
) -> Instance:
    """Check the arguments and drop the padding."""
    values = np.asarray(tokens).astype(np.float64)
    if values.ndim != 2:
        raise CallError(f"tokens have shape {values.shape}; expected (N, d), one problem at a time")
    size = len(values)
    real = np.ones(size, dtype=bool) if valid is None else np.asarray(valid, dtype=bool)
    if real.shape != (size,):
        raise CallError(f"valid has shape {real.shape}; expected ({size},)")
    where = np.flatnonzero(real).astype(np.int64)
    if len(where) == 0:
        raise CallError("no token is valid; expected at least one")
    if not np.isfinite(values[where]).all():
        raise CallError("the tokens are not all finite; the oracle takes finite tokens only")
    relevant = None
    gates = np.ones(len(where))
    if relevance is not None:
        relevant = np.asarray(relevance).astype(np.float64)
        if relevant.shape != (size,):
            raise CallError(f"relevance has shape {relevant.shape}; expected ({size},)")
        relevant = relevant[where]
        if not np.isfinite(relevant).all():
            raise CallError("the relevance is not finite everywhere; expected finite numbers")
        if alpha != 0.0:
            gates = np.zeros(len(where))
            gates[relevant > 0] = relevant[relevant > 0] ** alpha
    seed = None
    if first is not None:
        if not (0 <= first < size and real[first]):
            raise CallError(f"first is {first}; expected the index of a valid token below {size}")
        seed = int(np.flatnonzero(where == first)[0])
    kept = values[where]
    return Instance(kept, _squared_norms(kept), relevant, gates, where, size, seed)


def _squared_norms(rows: Float) -> Float:
    """[n, d] -> [n]."""
    return np.einsum("nd,nd->n", rows, rows)


def _in_own_span(tokens: Float) -> Float:
    """The tokens in an orthonormal basis of their own span where that is smaller: [n, min(n, d)].

    Lengths and angles, and so all projections, stay what they are.
    """
    if tokens.shape[1] <= tokens.shape[0]:
        return tokens
    return np.asarray(np.linalg.qr(tokens.T, mode="r")).T


def best_candidate(energies: Float, norms: Float, gates: Float, left: NDArray[np.bool_]) -> int:
    """The candidate that the rule picks; the lowest index where several are equal."""
    alive = left & (energies > EXHAUSTED * norms)
    if (alive & (gates > 0)).any():
        return _largest(gates * energies, gates * norms, alive & (gates > 0))
    if alive.any():
        return _largest(energies, norms, alive)
    return _largest(gates, gates, left)


def _largest(scores: Float, scale: Float, among: NDArray[np.bool_]) -> int:
    """The lowest index whose score is the largest, up to float64 rounding of its scale."""
    best = scores[among].max()
    return int(np.flatnonzero(among & (scores >= best - _ROUNDING * scale))[0])


def lead_of_first(problem: Instance, pick: int, tau: float = TAU) -> float:
    """The lead of the first pick: endless where it was given, else by squared norm."""
    if problem.first is not None:
        return float("inf")
    others = np.delete(problem.norms, pick)
    return _ratio(problem.norms[pick] - others, tau * (problem.norms[pick] + others))


def lead_of(
    pick: int,
    energies: Float,
    spent: NDArray[np.bool_],
    problem: Instance,
    left: NDArray[np.bool_],
    tau: float = TAU,
) -> float:
    """By how many slacks the best candidate leads every other one (infinite: nothing can tie)."""
    norms, gates = problem.norms, problem.gates
    rest = left.copy()
    rest[pick] = False
    if not rest.any():
        return float("inf")
    if energies[pick] <= EXHAUSTED * norms[pick]:
        # Everything left is exhausted. Decided only if so in every reading, and by a clear rule.
        if not (spent[rest].all() and spent[pick]):
            return 0.0
        beaten = gates[pick] > gates * (1 + GATE_MARGIN)
        beaten |= equally_relevant(problem, pick) & (np.arange(len(norms)) > pick)
        return float("inf") if beaten[rest].all() else 0.0
    # The pick must also be seen as not exhausted.
    lead = float(energies[pick] / (tau * norms[pick]))
    if gates[pick] > 0:
        same = rest & (gates > 0)
        weights = gates
    else:
        same = rest & (gates == 0)
        weights = np.ones(len(norms))
        if not spent[rest & (gates > 0)].all():
            return 0.0
    ahead = weights[pick] * energies[pick] - weights[same] * energies[same]
    return min(
        lead, _ratio(ahead, tau * (weights[pick] * norms[pick] + weights[same] * norms[same]))
    )


def _ratio(ahead: Float, slack: Float) -> float:
    """The smallest ahead / slack; 0 / 0 (two zero tokens) is a tie, nothing at all is endless."""
    ratios = np.divide(ahead, slack, out=np.zeros_like(ahead), where=slack > 0)
    return float(ratios.min(initial=np.inf))


def equally_relevant(problem: Instance, pick: int) -> NDArray[np.bool_]:
    """Which tokens have the gate of `pick` in any arithmetic."""
    if problem.relevance is None:
        return np.ones(len(problem.gates), dtype=bool)
    both_zero = (problem.gates == 0) & (problem.gates[pick] == 0)
    return both_zero | (problem.relevance == problem.relevance[pick]) | _all_one(problem.gates)


def _all_one(gates: Float) -> bool:
    """Whether the gate is off."""
    return bool((gates == 1).all())


def clearly_exhausted(low: Projection, high: Projection) -> NDArray[np.bool_]:
    """Which tokens are clearly exhausted."""
    return high.energies + MARGIN * low.rounding() <= EXHAUSTED * low.norms
