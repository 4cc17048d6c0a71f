"""The step certificate: what "exact" means for an engine in float32.

An engine's own picks are replayed in float64 by explicit projection, and every step is checked,
also after a near-tie that the engine decided differently from the oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import CallError
from .exact import (
    EXHAUSTED,
    GATE_MARGIN,
    TAU,
    Float,
    Instance,
    Projection,
    best_candidate,
    clearly_exhausted,
    equally_relevant,
    lead_of,
    lead_of_first,
    read_problem,
)

#: Reported energies agree with the replay to this share of the initial total.
ENERGY_TOLERANCE = 1e-5
#: Below this share of the squared norm float32 sees no direction that a pick could add.
UNSEEN = 1e-7


@dataclass
class Certificate:
    """What `certify` found.

    Attributes:
        ok: no violation.
        steps: steps replayed.
        exhausted: steps whose pick was exhausted: nothing was left to choose by.
        decided: of the others, those at which the oracle's lead over every other candidate
            exceeds the slack; where ok, the engine's pick there is the oracle's.
        worst_slack: the smallest tau that the picks need at any step. The exhaustion rule alone
            can need up to EXHAUSTED; the rest is the engine's rounding.
        worst_energy: the largest distance of a reported energy from the replay, as a share of the
            initial total; 0 where no energy was given.
        violations: one readable line each.
    """

    steps: int = 0
    exhausted: int = 0
    decided: int = 0
    worst_slack: float = 0.0
    worst_energy: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations


def certify(
    tokens: ArrayLike,
    indices: ArrayLike,
    *,
    count: int | None = None,
    relevance: ArrayLike | None = None,
    alpha: float = 0.0,
    first: int | None = None,
    valid: ArrayLike | None = None,
    energy: ArrayLike | None = None,
    tau: float = TAU,
) -> Certificate:
    """Check an engine's picks, step by step, against a float64 replay of the same picks.

    The certificate of a step with pick p: for every other candidate i,
    g_p (E_p + tau |v_p|^2) >= g_i (E_i - tau |v_i|^2), and the same with plain energies among
    candidates whose gate is 0. Beside it the tiers: no clearly exhausted pick while a candidate
    is left that clearly is not (E_i > tau |v_i|^2), and among clearly exhausted ones the larger
    gate first, the lower index at equal relevance. Clearly exhausted: E + MARGIN roundings of
    float32 are at most EXHAUSTED |v|^2.

    A pick whose energy is near the bound of exhaustion may have entered the engine's basis or
    not. The replay follows both readings from there on and takes each energy as the interval
    between them; a pick made before a live candidate was seen as not exhausted, so it entered.

    Args:
        tokens: (N, d) visual tokens, exactly as the engine got them.
        indices: (K,) picks in order of choice; entries beyond `count` hold N.
        count: how many entries are real; None expects min(K, number of valid tokens).
        relevance: (N,) text relevance as the engine got it, or None.
        alpha: strength of textual guidance.
        first: the seed token the engine was given; None expects the largest norm.
        valid: (N,) bool, False for padding.
        energy: (K + 1,) total residual energies the engine reported, or None. The first
            count + 1 must agree with the replay to 1e-5 of the initial total; none may increase.
        tau: the slack, a share of a token's squared norm.

    Returns:
        The certificate, with a line for each violation.

    Raises:
        CallError: shapes that do not agree, or a problem that `greedy` refuses too.
    """
    problem = read_problem(tokens, relevance, alpha, first, valid)
    picks = np.asarray(indices, dtype=np.int64)
    if picks.ndim != 1:
        raise CallError(f"indices have shape {picks.shape}; expected (K,)")
    if count is None:
        count = min(len(picks), len(problem.norms))
    if not 0 <= count <= len(picks):
        raise CallError(f"count is {count}; expected 0 to {len(picks)}, the number of indices")
    found = Certificate()
    if not (picks[count:] == problem.size).all():
        found.violations.append(f"entries beyond count {count} do not all hold {problem.size}")
    position = {int(token): i for i, token in enumerate(problem.where)}

    # Every energy lies between those of the larger basis (low) and of the smaller one (high).
    low = high = Projection(problem.tokens)
    left = np.ones(len(problem.norms), dtype=bool)
    totals = [(low.energies.sum(), high.energies.sum())]
    for step, token in enumerate(picks[:count].tolist()):
        found.steps += 1
        if token not in position:
            what = "padding" if 0 <= token < problem.size else f"outside 0 to {problem.size - 1}"
            found.violations.append(f"step {step}: pick {token} is {what}")
        elif not left[position[token]]:
            found.violations.append(f"step {step}: pick {token} was chosen before")
        else:
            pick = position[token]
            spent = clearly_exhausted(low, high)
            if step == 0:
                found.decided += lead_of_first(problem, pick, tau) > 1.0
                left[pick] = False
                _check_first(problem, pick, tau, found)
            else:
                best = best_candidate(high.energies, problem.norms, problem.gates, left)
                if high.energies[pick] <= EXHAUSTED * problem.norms[pick]:
                    found.exhausted += 1
                elif low is high:
                    found.decided += lead_of(best, high.energies, spent, problem, left, tau) > 1.0
                left[pick] = False
                _check_step(
                    step, pick, low.energies, high.energies, spent, problem, left, tau, found
                )
            alive = bool((left & (low.energies > tau * problem.norms)).any())
            low, high = _extend(low, high, pick, alive, tau)
        totals.append((low.energies.sum(), high.energies.sum()))
    if energy is not None:
        _check_energy(np.asarray(energy, dtype=np.float64), np.array(totals), len(picks), found)
    return found


def _extend(
    low: Projection, high: Projection, pick: int, alive: bool, tau: float
) -> tuple[Projection, Projection]:
    """Add a pick to the larger basis if it may count, to the smaller one if it must.

    `alive`: a clearly live candidate is left, so only a pick seen as not exhausted may go first.
    """
    norm = low.norms[pick]
    may = bool(high.energies[pick] > UNSEEN * norm)
    must = bool(low.energies[pick] > (EXHAUSTED if alive else tau) * norm)
    if may != must and low is high:
        high = low.copy()
    if may and low.energies[pick] > 0.1 * UNSEEN * norm:
        low.append(pick)
    if must and high is not low:
        high.append(pick)
    return low, high


def _check_first(problem: Instance, pick: int, tau: float, found: Certificate) -> None:
    """The first pick is the given one, or has the largest norm."""
    name = problem.where[pick]
    if problem.first is not None:
        if pick != problem.first:
            given = problem.where[problem.first]
            found.violations.append(f"step 0: pick {name} is not the given first token {given}")
        return
    _compare(0, "larger norm", pick, problem.norms, problem.norms, problem, tau, found)


def _compare(
    step: int,
    rule: str,
    pick: int,
    low: Float,
    high: Float,
    problem: Instance,
    tau: float,
    found: Certificate,
    weights: Float | None = None,
    among: NDArray[np.bool_] | None = None,
) -> None:
    """The certificate's inequality between the pick and the candidates `among`."""
    norms = problem.norms
    weights = np.ones(len(norms)) if weights is None else weights
    among = np.ones(len(norms), dtype=bool) if among is None else among
    behind = weights * low - weights[pick] * high[pick]  # [n]
    scale = weights * norms + weights[pick] * norms[pick]  # [n]
    needs = np.divide(behind, scale, out=np.zeros_like(behind), where=among & (scale > 0))
    worst = int(np.argmax(needs))
    found.worst_slack = max(found.worst_slack, float(needs[worst]))
    if needs[worst] > tau:
        found.violations.append(
            f"step {step}: pick {problem.where[pick]} stands behind token {problem.where[worst]} "
            f"({rule}: {weights[pick] * high[pick]:.6g} against {weights[worst] * low[worst]:.6g}, "
            f"needs a slack of {needs[worst]:.3g}, allowed {tau:.3g})"
        )


def _check_step(
    step: int,
    pick: int,
    low: Float,
    high: Float,
    spent: NDArray[np.bool_],
    problem: Instance,
    left: NDArray[np.bool_],
    tau: float,
    found: Certificate,
) -> None:
    """All rules of one step after the first; `left` no longer holds the pick."""
    norms, gates = problem.norms, problem.gates

    def violated(bad: NDArray[np.bool_], why: Callable[[Any], str]) -> None:
        for other in np.flatnonzero(bad)[:1]:
            found.violations.append(
                f"step {step}: pick {problem.where[pick]} before token {problem.where[other]}, "
                + why(other)
            )

    _compare(step, "gate times energy", pick, low, high, problem, tau, found, gates, left)
    alive = left & (low > tau * norms)
    if gates[pick] == 0:
        plain = left & (gates == 0)
        _compare(step, "energy at gate 0", pick, low, high, problem, tau, found, None, plain)
    if spent[pick]:
        violated(
            alive,
            lambda i: f"though exhausted, while that one keeps {low[i] / norms[i]:.3g} of its norm",
        )
        violated(
            left & spent & (gates > gates[pick] * (1 + GATE_MARGIN)),
            lambda i: f"both exhausted, though its gate {gates[pick]:.6g} is below {gates[i]:.6g}",
        )
        violated(
            left & spent & equally_relevant(problem, pick) & (np.arange(len(norms)) < pick),
            lambda i: "both exhausted at the same gate, though its index is higher",
        )


def _check_energy(reported: Float, totals: Float, size: int, found: Certificate) -> None:
    """Reported energies agree with the replay, [steps + 1, (low, high)], and never increase."""
    if reported.shape != (size + 1,):
        raise CallError(f"energy has shape {reported.shape}; expected ({size + 1},)")
    rises = np.flatnonzero(~(reported[1:] <= reported[:-1]))
    for step in rises[:1].tolist():
        found.violations.append(
            f"step {step}: energy goes from {reported[step]:.9g} to {reported[step + 1]:.9g}"
        )
    # Float32 has no finite number above its largest, and may flush those below its smallest.
    limits = np.finfo(np.float32)
    totals = np.minimum(totals, float(limits.max))
    reported = np.minimum(reported[: len(totals)], float(limits.max))
    away = np.maximum(totals[:, 0] - reported, reported - totals[:, 1]) - float(limits.tiny)
    away = np.where(np.isnan(away), np.inf, np.maximum(away, 0.0))
    worst = int(np.argmax(away))
    if away[worst] > 0:
        found.worst_energy = float(away[worst]) / totals[0, 0] if totals[0, 0] > 0 else np.inf
    if found.worst_energy > ENERGY_TOLERANCE:
        found.violations.append(
            f"energy[{worst}] is {reported[worst]:.9g}, the replay has {totals[worst, 0]:.9g} "
            f"to {totals[worst, 1]:.9g}: off by {found.worst_energy:.3g} of the initial total"
        )
