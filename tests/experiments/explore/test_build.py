"""What a page is told of a model: orders, energies and answers as `LVLM.generate` gives them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax import select
from resprune_jax.errors import CallError
from resprune_jax.exact import reconstruction_error
from resprune_jax.experiments.explore import build
from resprune_jax.experiments.explore.build import Row, make_run, residual_energy
from resprune_jax.methods import get_method


def tokens_of(kind: str, n: int, d: int, rng_seed: int = 0) -> np.ndarray:
    """Tokens of full rank, of low rank, with copies, or with zeros among them."""
    rng = np.random.default_rng(rng_seed)
    tokens = rng.standard_normal((n, d))
    if kind == "low rank":
        tokens = tokens[:, : d // 3] @ rng.standard_normal((d // 3, d))
    if kind == "copies":
        tokens[n // 2 :] = tokens[: n - n // 2] * rng.uniform(0.1, 9, (n - n // 2, 1))
    if kind == "zeros":
        tokens[rng.permutation(n)[: n // 2]] = 0
    return tokens


@pytest.mark.parametrize("kind", ["full", "low rank", "copies", "zeros"])
@pytest.mark.parametrize(("n", "d"), [(20, 30), (30, 12), (9, 9)])
def test_energy_left_out_is_the_error_of_least_squares(kind: str, n: int, d: int) -> None:
    tokens = tokens_of(kind, n, d)
    order = np.random.default_rng(1).permutation(n)
    found = residual_energy(tokens, order)
    total = np.square(tokens).sum()
    for keep in range(n + 1):
        want = reconstruction_error(tokens, order[:keep])
        assert abs(found[keep] - want) < 1e-8 * total, (kind, keep)
    assert (np.diff(found) <= 0).all()


@pytest.mark.deep
def test_energy_is_what_a_selection_measures() -> None:
    tokens = tokens_of("full", 40, 64)
    made = select(tokens, 40)
    found = residual_energy(tokens, np.asarray(made.indices))
    assert abs(found - np.asarray(made.energy)).max() < 1e-5 * found[0]


def row(keep: int, chosen: Sequence[int], text: str = "x", energy: Any = None) -> Row:
    return Row(keep, text, np.asarray(chosen), energy, ("cup",), "a lexicon")


@given(st.permutations(range(8)), st.sets(st.integers(1, 7)), st.data())
@settings(max_examples=60)
def test_a_budget_has_its_own_choice_only_where_it_differs(
    order: list[int], keeps: set[int], data: st.DataObject
) -> None:
    tokens = tokens_of("full", 8, 10)
    rows, want = [row(8, order)], {8: tuple(order)}
    for keep in sorted(keeps, reverse=True):
        chosen = order[:keep]
        if data.draw(st.booleans()):
            chosen = data.draw(st.permutations(range(8)))[:keep]
        rows.append(row(keep, chosen))
        want[keep] = tuple(chosen)
    run = make_run("?", "resprune", rows, tokens, None, True)
    for keep in range(1, 9):
        assert run.kept(keep) == want.get(keep, tuple(order[:keep]))
    for answer in run.answers:
        assert (answer.order is None) == (want[answer.keep] == tuple(order[: answer.keep]))
        if answer.order is not None:
            left = reconstruction_error(tokens, answer.order)
            assert answer.energy is not None and abs(answer.energy - left) < 1e-5
    free = make_run("?", "svdprune", rows, tokens, None, False)
    assert free.order == free.energy == ()
    assert [free.kept(answer.keep) for answer in free.answers] == [want[r.keep] for r in rows]


def test_budgets_as_counts() -> None:
    assert build.counts_of([1 / 3, 2 / 9, 0.001, 48, 500, None], 144) == [144, 48, 32, 1]
    assert build.counts_of([], 9) == [9]


@pytest.mark.parametrize(
    ("name", "settings_", "why"),
    [
        ("downsample", {}, "makes the picture smaller"),
        ("tome", {}, "merges tokens"),
        ("visionzip", {}, "merges tokens"),
        ("sparsevlm", {}, "merges tokens"),
        ("divprune", {"sort": False}, "merges tokens"),
        ("fastv", {"keep_average": 4}, "is told by its settings"),
    ],
)
def test_what_no_picture_shows_is_refused_by_name(
    name: str, settings_: dict[str, Any], why: str
) -> None:
    with pytest.raises(CallError, match=rf"--method {name} cannot be shown on a picture: it {why}"):
        build.check_shown(get_method(name, settings_), name)
