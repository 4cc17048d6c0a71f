"""The exact oracle against an even slower one."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from resprune_jax.certificate import certify
from resprune_jax.errors import CallError
from resprune_jax.exact import EXHAUSTED, greedy, reconstruction_error
from tests.selection.problems import KINDS, RELEVANCES, draw, pad


def slow_energies(tokens: NDArray[Any], chosen: list[int]) -> NDArray[np.float64]:
    """Residual energies by one least-squares fit of every token on the chosen ones."""
    values = tokens.astype(np.float64)
    basis = values[chosen]
    lengths = np.linalg.norm(basis, axis=1, keepdims=True)
    basis = (basis / np.where(lengths > 0, lengths, 1.0)).T
    if not chosen:
        return (values**2).sum(axis=1)
    weights = np.linalg.lstsq(basis, values.T, rcond=1e-12)[0]
    return ((values - (basis @ weights).T) ** 2).sum(axis=1)


def test_greedy_is_the_rule_with_least_squares_at_every_step() -> None:
    """Each pick is the argmax of the rule, by energies that share no code with the oracle."""
    steps = decided = exhausted = ungated = 0
    for rng_seed in range(160):
        kind, relevance = KINDS[rng_seed % len(KINDS)], RELEVANCES[rng_seed % len(RELEVANCES)]
        problem = draw(rng_seed, max_n=24, max_d=40, kind=kind, relevance=relevance)
        exact = greedy(problem.tokens, 24, **problem.conditions)
        picks = exact.indices.tolist()
        assert sorted(set(picks)) == sorted(picks), problem.kind
        assert len(picks) == problem.count and len(exact.energy) == len(picks) + 1
        norms = slow_energies(problem.tokens, [])
        gates = np.ones(len(norms))
        if problem.relevance is not None and problem.alpha:
            relevant = problem.relevance.astype(np.float64)
            gates = np.where(relevant > 0, relevant, 0.0) ** problem.alpha
            assert (gates[relevant == 0] == 0).all()
        basis: list[int] = []
        for step, pick in enumerate(picks):
            energies = slow_energies(problem.tokens, basis)
            np.testing.assert_allclose(
                exact.energy[step], energies.sum(), rtol=1e-9, atol=1e-12 * norms.sum()
            )
            left = [i for i in range(len(norms)) if i not in picks[:step]]
            spent = energies <= EXHAUSTED * norms

            def order(i: int, e: Any = energies, s: Any = spent, g: Any = gates) -> Any:
                tier = 2 if s[i] else (0 if g[i] > 0 else 1)
                return (tier, -(g[i] if tier == 2 else e[i] * (g[i] if tier == 0 else 1.0)), i)

            if step == 0:
                best = max(left, key=lambda i: (norms[i], -i))
                best = problem.first if problem.first is not None else best
            else:
                best = min(left, key=order)
            if exact.lead[step] > 1e-6 or (energies[left] <= 1e-9 * norms[left]).all():
                assert pick == best, (problem.kind, step)
                decided += 1
            elif not spent[pick]:
                # A tie up to rounding: the oracle's pick is as good, in the same tier.
                assert order(pick)[0] == order(best)[0], (problem.kind, step)
                assert order(pick)[1] <= order(best)[1] + 1e-9 * norms[best], (problem.kind, step)
            steps += 1
            exhausted += bool(spent[pick])
            ungated += bool(not spent[pick] and gates[pick] == 0 and (gates > 0).any())
            if not spent[pick]:
                basis.append(pick)
    print(f"{steps} steps: {decided} compared one for one, {exhausted} exhausted, {ungated} gate 0")
    assert decided > 0.6 * steps and exhausted > 100 and ungated > 20


def test_final_energy_is_the_exact_reconstruction_error() -> None:
    """The last energy against least squares on the tokens as they are."""
    worst = 0.0
    for rng_seed in range(40):
        problem = draw(2000 + rng_seed, max_n=100, max_d=400)
        exact = greedy(problem.tokens, 1 + rng_seed, **problem.conditions)
        error = reconstruction_error(problem.tokens, exact.indices)
        worst = max(worst, abs(error - exact.energy[-1]) / max(exact.energy[0], 1e-300))
    print(f"40 problems, worst difference {worst:.2e} of the initial total")
    # Exhausted picks do not enter the oracle's basis: that is worth 2e-6 at most.
    assert worst <= EXHAUSTED


def test_reconstruction_error_leaves_out_fill_and_padding() -> None:
    problem = draw(5, n=20, d=8, kind="gaussian", dtype="float32")
    padded = pad(problem, 30)
    plain = reconstruction_error(problem.tokens, [3, 4, 20, 20])
    assert plain == pytest.approx(reconstruction_error(problem.tokens, [4, 3]))
    assert plain == pytest.approx(
        reconstruction_error(padded.tokens, [3, 4, 30], valid=padded.valid)
    )
    assert reconstruction_error(problem.tokens, [20]) == pytest.approx(
        float((problem.tokens.astype(np.float64) ** 2).sum())
    )


def test_padding_changes_nothing() -> None:
    """The picks of the padded problem are those of the problem, moved along."""
    for rng_seed in range(60):
        problem = draw(3000 + rng_seed, max_n=40, max_d=30)
        exact = greedy(problem.tokens, 30, **problem.conditions)
        for interleave in (False, True):
            padded = pad(problem, 64, rng_seed=rng_seed, interleave=interleave)
            assert padded.valid is not None and padded.valid.sum() == problem.count
            again = greedy(padded.tokens, 30, **padded.conditions)
            assert (again.indices == np.flatnonzero(padded.valid)[exact.indices]).all()
            np.testing.assert_array_equal(again.energy, exact.energy)


def test_near_real_size_is_quick_and_right() -> None:
    """N = 700, d = 4096, K = 192, checked by projections at a few prefixes."""
    problem = draw(7, n=700, d=4096, kind="clustered", dtype="bfloat16", relevance="with zeros")
    exact = greedy(problem.tokens, 192, **problem.conditions)
    for k in (1, 17, 48):
        error = slow_energies(problem.tokens, exact.indices[:k].tolist()).sum()
        assert exact.energy[k] == pytest.approx(error, rel=1e-9)
    found = certify(problem.tokens, exact.indices, energy=exact.energy, **problem.conditions)
    assert found.ok and found.decided > 150
    print(f"{found.decided} of {found.steps} steps decided")


def test_ties_exhaustion_and_zero_tokens_by_hand() -> None:
    same = np.ones((4, 3), dtype=np.float32)
    assert greedy(same, 4).indices.tolist() == [0, 1, 2, 3]
    assert greedy(
        same, 4, relevance=np.float32([0.1, 0.2, 0.0, 0.2]), alpha=0.5
    ).indices.tolist() == [
        0,
        1,
        3,
        2,
    ]
    nothing = greedy(np.zeros((3, 2), dtype=np.float32), 5)
    assert nothing.indices.tolist() == [0, 1, 2] and nothing.energy.tolist() == [0.0] * 4
    assert certify(np.zeros((3, 2)), [0, 1, 2], energy=np.zeros(4)).ok
    assert not certify(np.zeros((3, 2)), [0, 1, 2], energy=np.ones(4)).ok
    # Gate 0 at relevance 0 is exact, and off at alpha = 0.
    tokens = np.diag([1.0, 3.0, 2.0])
    assert greedy(tokens, 3, relevance=[1e-30, 0, 0], alpha=0.25, first=2).indices[1] == 0
    assert greedy(tokens, 3, relevance=[1e-30, 0, 0], alpha=0.0, first=2).indices[1] == 1


def test_scale_by_a_power_of_two_changes_nothing() -> None:
    for rng_seed in range(20):
        problem = draw(4000 + rng_seed, max_n=60, max_d=60, kind="clustered", dtype="float32")
        exact = greedy(problem.tokens, 60, **problem.conditions)
        scaled = greedy(problem.tokens * np.float32(2.0**-40), 60, **problem.conditions)
        assert (scaled.indices == exact.indices).all()
        np.testing.assert_array_equal(scaled.energy, exact.energy * 2.0**-80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "keep is 0; expected at least 1"),
        ({"first": 4}, "first is 4; expected the index of a valid token below 4"),
        ({"first": 1, "valid": [True, False, True, True]}, "first is 1"),
        ({"valid": [False] * 4}, "no token is valid"),
        ({"valid": [True]}, r"valid has shape \(1,\); expected \(4,\)"),
        ({"relevance": [1.0]}, r"relevance has shape \(1,\); expected \(4,\)"),
        ({"relevance": [1.0, np.nan, 1.0, 1.0]}, "relevance is not finite"),
        ({"tokens": np.ones(4)}, r"tokens have shape \(4,\)"),
        ({"tokens": np.full((4, 2), np.nan)}, "tokens are not all finite"),
    ],
)
def test_wrong_calls(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"tokens": np.eye(4), "keep": 2} | change
    with pytest.raises(CallError, match=message):
        greedy(call.pop("tokens"), call.pop("keep"), **call)


def test_the_generator_makes_what_it_says() -> None:
    """Sizes reach their ends, every kind occurs, everything is finite in float32."""
    problems = [draw(rng_seed) for rng_seed in range(120)]
    sizes = [p.tokens.shape for p in problems]
    assert min(n for n, _ in sizes) <= 3 and max(n for n, _ in sizes) > 600
    assert min(d for _, d in sizes) <= 3 and max(d for _, d in sizes) > 2000
    assert {p.kind.split()[0] for p in problems} == set(KINDS)
    assert {p.tokens.dtype.name for p in problems} == {"float32", "bfloat16"}
    for p in problems:
        total = (p.tokens.astype(np.float64) ** 2).sum()
        assert np.isfinite(p.tokens.astype(np.float32)).all() and total < 1e38, p.kind
    assert draw(3).kind == draw(3).kind and (draw(3).tokens == draw(3).tokens).all()
