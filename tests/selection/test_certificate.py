"""The certificate of a selection against planted wrong sequences."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resprune_jax.certificate import certify
from resprune_jax.errors import CallError
from resprune_jax.exact import (
    EXHAUSTED,
    TAU,
    ExactSelection,
    greedy,
)
from tests.selection.problems import Problem, draw, pad


def replay(problem: Problem, exact: ExactSelection, **others: Any) -> Any:
    """The certificate of a selection."""
    return certify(problem.tokens, exact.indices, **(problem.conditions | others))


def test_the_certificate_accepts_the_oracle() -> None:
    """Also padded, with float32 energies, and with decided steps counted alike."""
    steps = decided = exhausted = 0
    for rng_seed in range(150):
        problem = draw(1000 + rng_seed, max_n=120, max_d=300)
        if rng_seed % 3:
            size = problem.count + rng_seed % 7
            problem = pad(problem, size, rng_seed=rng_seed, interleave=rng_seed % 3 == 2)
        keep = 1 + rng_seed % 90
        exact = greedy(problem.tokens, keep, **problem.conditions)
        found = replay(problem, exact, energy=exact.energy.astype(np.float32))
        assert found.ok, (problem.kind, found.violations)
        assert found.steps == len(exact.indices) == min(keep, problem.count)
        assert found.worst_slack <= EXHAUSTED and found.worst_energy < 2e-7
        # The replay counts no step after a pick that could be read either way.
        assert found.decided <= exact.decided.sum()
        steps += found.steps
        decided += found.decided
        exhausted += found.exhausted
    share = decided / (steps - exhausted)
    print(f"{steps} steps: {exhausted} exhausted, {decided} of the others decided ({share:.1%})")
    assert exhausted > 500 and share > 0.9


# --- what the certificate must catch -------------------------------------------------------------


@pytest.fixture(scope="module")
def problem() -> Problem:
    """Clear leads: 40 tokens, every second one relevant, the last ten copies of the first."""
    rng = np.random.default_rng(11)
    tokens = rng.normal(size=(40, 64)) * np.exp(rng.normal(size=(40, 1)))
    tokens[30:] = tokens[:10]
    relevance = np.where(np.arange(40) % 2 == 0, rng.uniform(0.1, 1.0, 40), 0.0)
    relevance[30:] = relevance[:10] / 2
    return Problem(
        tokens.astype(np.float32), relevance.astype(np.float32), 0.75, None, None, "planted"
    )


def planted(problem: Problem, picks: NDArray[Any], **others: Any) -> str:
    """The violations of a wrong sequence, which must not pass."""
    found = certify(problem.tokens, picks, **(problem.conditions | others))
    assert not found.ok, "a planted fault passed"
    return " / ".join(found.violations)


def test_the_planted_problem_itself_passes(problem: Problem) -> None:
    exact = greedy(problem.tokens, 40, **problem.conditions)
    assert replay(problem, exact, energy=exact.energy).ok
    assert exact.decided.sum() >= 35


def test_catches_every_swap_of_two_picks_in_a_row(problem: Problem) -> None:
    exact = greedy(problem.tokens, 40, **problem.conditions)
    swapped = 0
    for step in np.flatnonzero(exact.decided[:-1]):
        picks = exact.indices.copy()
        picks[[step, step + 1]] = picks[[step + 1, step]]
        assert f"step {step}:" in planted(problem, picks)
        swapped += 1
    print(f"{swapped} swaps caught")
    assert swapped >= 30


def test_catches_a_repeat_padding_and_what_is_out_of_range(problem: Problem) -> None:
    exact = greedy(problem.tokens, 10, **problem.conditions)
    picks = exact.indices.copy()
    picks[7] = picks[2]
    assert "step 7: pick" in planted(problem, picks)
    assert "was chosen before" in planted(problem, picks)
    for wrong, what in [(41, "outside"), (-1, "outside"), (40, "outside")]:
        picks[7] = wrong
        assert f"step 7: pick {wrong} is {what}" in planted(problem, picks)
    padded = pad(problem, 50)
    exact = greedy(padded.tokens, 10, **padded.conditions)
    picks = exact.indices.copy()
    picks[4] = 45
    assert "step 4: pick 45 is padding" in planted(padded, picks)
    # An engine that forgets the mask picks padding at once: it is built to win.
    unmasked = greedy(padded.tokens, 10, relevance=padded.relevance, alpha=padded.alpha)
    assert "is padding" in planted(padded, unmasked.indices)


def test_catches_what_lies_beyond_the_count(problem: Problem) -> None:
    exact = greedy(problem.tokens, 6, **problem.conditions)
    picks = np.append(exact.indices, [40, 40])
    assert certify(problem.tokens, picks, count=6, **problem.conditions).ok
    assert "step 6: pick 40 is outside" in planted(problem, picks)
    assert "do not all hold 40" in planted(problem, np.append(exact.indices, [40, 0]), count=6)


def test_catches_a_wrong_gate(problem: Problem) -> None:
    for relevance, alpha in [
        (None, 0.75),
        (problem.relevance, 0.0),
        (problem.relevance, 1.25),
        (np.maximum(problem.relevance, 0.05), 0.75),
    ]:
        wrong = greedy(problem.tokens, 40, relevance=relevance, alpha=alpha)
        assert "gate" in planted(problem, wrong.indices)
    # The other way round: a gate where none was asked for.
    gated = greedy(problem.tokens, 40, **problem.conditions)
    assert "stands behind" in planted(problem, gated.indices, alpha=0.0)


def test_catches_a_wrong_first_token(problem: Problem) -> None:
    exact = greedy(problem.tokens, 5, relevance=problem.relevance, alpha=0.75, first=3)
    assert exact.indices[0] == 3
    assert "larger norm" in planted(problem, exact.indices)
    assert "step 0: pick 3 is not the given first token 4" in planted(
        problem, exact.indices, first=4
    )


def test_catches_a_stale_energy_table(problem: Problem) -> None:
    """Top-K by the first step's scores, as an engine without updates would pick."""
    assert problem.relevance is not None
    norms = (problem.tokens.astype(np.float64) ** 2).sum(axis=1)
    gates = np.where(problem.relevance > 0, problem.relevance, 0.0) ** 0.75
    order = np.argsort(-gates * norms, kind="stable")
    first = int(np.argmax(norms))
    picks = np.array([first] + [i for i in order.tolist() if i != first])[:20]
    assert "gate times energy" in planted(problem, picks)


def test_catches_the_wrong_order_of_exhausted_tokens(problem: Problem) -> None:
    exact = greedy(problem.tokens, 40, **problem.conditions)
    assert problem.relevance is not None
    tail = exact.indices[30:]
    assert (tail >= 30).any() and exact.energy[30] < 1e-20 * exact.energy[0]
    gates = problem.relevance[tail]
    assert (gates > 0).sum() > 4 and (gates == 0).sum() > 4
    assert (np.diff(gates) <= 0).all() and (np.diff(tail[gates == 0]) > 0).all()
    by_index = np.concatenate([exact.indices[:30], np.sort(tail)])
    assert "both exhausted, though its gate" in planted(problem, by_index)
    backwards = exact.indices.copy()
    backwards[30:][gates == 0] = backwards[30:][gates == 0][::-1]
    assert "both exhausted at the same gate" in planted(problem, backwards)


def test_catches_an_exhausted_pick_that_its_length_would_hide() -> None:
    """A long duplicate against a short live token: the plain inequality allows a factor 1e-5."""
    tokens = np.array([[1000.0, 0], [1000.0, 0], [0, 0.1]], dtype=np.float32)
    assert certify(tokens, [0, 2, 1]).ok
    wrong = certify(tokens, [0, 1, 2])
    assert wrong.worst_slack <= TAU
    assert wrong.violations == [
        "step 1: pick 1 before token 2, though exhausted, while that one keeps 1 of its norm"
    ]


def test_catches_gate_zero_before_a_live_relevant_token() -> None:
    tokens = np.diag([3.0, 2.0, 1.0]).astype(np.float32)
    relevance = np.array([1.0, 0.0, 0.01], dtype=np.float32)
    assert certify(tokens, [0, 2, 1], relevance=relevance, alpha=1.0).ok
    assert not certify(tokens, [0, 1, 2], relevance=relevance, alpha=1.0).ok
    # Within gate 0 the plain energy rules.
    relevance = np.array([1.0, 0.0, 0.0], dtype=np.float32)
    wrong = certify(tokens, [0, 2, 1], relevance=relevance, alpha=1.0)
    assert "energy at gate 0" in wrong.violations[0]
    assert certify(tokens, [0, 1, 2], relevance=relevance, alpha=1.0).ok


def test_catches_wrong_energies(problem: Problem) -> None:
    exact = greedy(problem.tokens, 12, **problem.conditions)
    right = exact.energy.astype(np.float32)
    assert replay(problem, exact, energy=right).ok
    for change, what in [
        (lambda e: np.where(np.arange(13) == 5, e + 3e-5 * e[0], e), "energy[5]"),
        (lambda e: e * 1.00002, "energy[0]"),
        (lambda e: np.append(e[1:], e[-1]), "energy[0]"),
        (lambda e: np.where(np.arange(13) == 7, np.nan, e), "goes from"),
        (lambda e: np.where(np.arange(13) == 12, e[11] * (1 + 1e-6), e), "goes from"),
    ]:
        assert what in planted(problem, exact.indices, energy=change(right))
    # A gated total is another number.
    weighted = right * np.linspace(1, 0.9, 13, dtype=np.float32)
    assert "initial total" in planted(problem, exact.indices, energy=weighted)
    with pytest.raises(CallError, match=r"expected \(13,\)"):
        replay(problem, exact, energy=right[:-1])


def test_accepts_a_near_tie_decided_the_other_way() -> None:
    """Energies within the slack: both orders pass, and the step does not count as decided."""
    tokens = np.diag([2.0, 1.0, 1.0 + 2e-6, 0.5]).astype(np.float32)
    exact = greedy(tokens, 4)
    assert exact.indices.tolist() == [0, 2, 1, 3]
    assert exact.decided.tolist() == [True, False, True, True]
    for picks in ([0, 2, 1, 3], [0, 1, 2, 3]):
        found = certify(tokens, picks)
        assert found.ok and found.decided == 3
    apart = np.diag([2.0, 1.0, 1.0 + 2e-5, 0.5]).astype(np.float32)
    assert greedy(apart, 4).decided.all()
    assert not certify(apart, [0, 1, 2, 3]).ok


def test_a_borderline_pick_is_read_as_the_engine_must_have_read_it() -> None:
    """Token 1 has 3e-6 of its norm left: float32 may or may not see it as exhausted."""
    tokens = np.array(
        [[1, 0, 0], [1, np.sqrt(3e-6), 0], [0, 0.5, 0], [0, 0, 0.1]], dtype=np.float32
    )
    gated: dict[str, Any] = {"relevance": [1.0, 1.0, 0.0, 0.0], "alpha": 1.0}
    # Seen as live, it goes first and uses up token 2; else token 2 goes first and uses it up.
    for picks in ([0, 1, 3, 2], [0, 2, 3, 1]):
        found = certify(tokens, picks, **gated)
        assert found.ok, (picks, found.violations)
    for picks in ([0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 2, 1]):
        assert not certify(tokens, picks, **gated).ok, picks
    # Nothing live behind it: both readings stand, and neither the energy nor a step is decided.
    found = certify(tokens[:2], [0, 1], energy=[2 + 3e-6, 3e-6, 0.0])
    assert found.ok and certify(tokens[:2], [0, 1], energy=[2 + 3e-6, 3e-6, 3e-6]).ok
    near = tokens.copy()
    near[2:] = near[1] * 0.5
    assert certify(near, [0, 1, 2, 3]).ok and certify(near, [0, 2, 1, 3]).ok
    assert certify(near, [0, 2, 1, 3]).decided == 0


def test_float32_limits_of_a_reported_energy() -> None:
    """Totals that float32 cannot hold are compared with what it does hold."""
    for scale in (1e-21, 1e21):
        tokens = (np.eye(3) * [3.0, 2.0, 1.0] * scale).astype(np.float32)
        exact = greedy(tokens, 3)
        with np.errstate(over="ignore"):
            held = exact.energy.astype(np.float32)
        assert certify(tokens, exact.indices, energy=held).ok
