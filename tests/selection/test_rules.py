"""Rules of one's own in the greedy loop, against a loop that asks them token by token."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import CallError, prepare, select
from resprune_jax.rules import CoveredNouns, Distance, FallingAlpha, ResidualEnergy, Rule, View
from tests.compiles import backend_compiles
from tests.methods.oracles.tokens.greedy import greedy
from tests.methods.oracles.tokens.rules import (
    covered_rule,
    distance_rule,
    falling_rule,
    paper_rule,
)

N, D, M, K, B = 24, 16, 3, 10, 4
ENGINES = ("feature", "gram")


@dataclass(frozen=True)
class Scene:
    """B problems; the first token of each is the longest."""

    tokens: np.ndarray
    relevance: np.ndarray
    by_noun: np.ndarray
    places: np.ndarray


def scene(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(B, N, D)) * np.exp(rng.normal(size=(B, N, 1)) * 0.4)
    by_noun = rng.random((B, N, M))
    places = np.stack(np.divmod(np.arange(N), 6), axis=-1).astype(float)
    narrow = [np.asarray(x, np.float32) for x in (tokens, by_noun.max(axis=-1), by_noun)]
    return Scene(*narrow, np.broadcast_to(places, (B, N, 2)))


def cases(s: Scene) -> dict[str, tuple[Rule, dict[str, Any], list[Any]]]:
    """Rule, arguments of `select`, and the oracle's score for each row."""
    # The loop divides relevance by its largest entry: a factor of all scores, so no pick changes.
    rows = range(B)
    return {
        "paper": (ResidualEnergy(), {"alpha": 0.75}, [paper_rule(0.75) for _ in rows]),
        "distance": (
            Distance(strength=0.9, width=1.5),
            {"alpha": 0.5, "places": s.places},
            [distance_rule(0.5, 0.9, 1.5, s.places[row]) for row in rows],
        ),
        "covered": (
            CoveredNouns(s.by_noun, alpha=2.0),
            {},
            [covered_rule(2.0, s.by_noun[row]) for row in rows],
        ),
        "falling": (FallingAlpha(3.0, 0.6), {}, [falling_rule(3.0, 0.6) for _ in rows]),
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name",
    [
        "paper",
        "covered",
        *(pytest.param(n, marks=pytest.mark.deep) for n in ("distance", "falling")),
    ],
)
def test_picks_are_those_of_a_loop_that_asks_token_by_token(name: str, engine: str) -> None:
    decided = 0
    for seed in range(12):
        s = scene(seed)
        rule, given, asked = cases(s)[name]
        made = select(s.tokens, K, relevance=s.relevance, rule=rule, engine=engine, **given)
        for row in range(B):
            relevance = s.by_noun[row] if name == "covered" else s.relevance[row]
            expected = greedy(
                s.tokens[row], asked[row], K, relevance=relevance, places=s.places[row]
            )
            assert made.indices[row].tolist() == expected.indices
            decided += K - 1
    plain = select(s.tokens, K, relevance=s.relevance, alpha=0.75)
    assert (name == "paper") == (plain.indices.tolist() == made.indices.tolist())
    print(f"{name}, {engine}: {decided} picks")


def test_the_papers_rule_gives_what_no_rule_gives() -> None:
    """Energies and picks, also past the rank, with gates of 0 and with padding."""
    rng = np.random.default_rng(5)
    for trial in range(20):
        low = rng.normal(size=(B, N, 3)) @ rng.normal(size=(B, 3, D))
        relevance = np.maximum(rng.normal(size=(B, N)), 0).astype(np.float32)
        valid = rng.random((B, N)) < 0.8
        given = {"relevance": relevance, "alpha": rng.random(B), "valid": valid}
        for engine in ENGINES:
            tokens = low.astype(np.float32)
            limit = [9, 3, 7, 1]
            own = select(tokens, K, rule=ResidualEnergy(), engine=engine, limit=limit, **given)
            plain = select(tokens, K, engine=engine, limit=limit, **given)
            assert own.indices.tolist() == plain.indices.tolist(), (trial, engine)
            np.testing.assert_array_equal(own.energy, plain.energy)


def test_a_rule_runs_under_jit_and_vmap_and_compiles_once() -> None:
    s = scene(3)
    rule, given, _ = cases(s)["distance"]
    batch = select(s.tokens, K, relevance=s.relevance, rule=rule, **given)

    @jax.jit
    def one(tokens: Any, relevance: Any, places: Any, rule: Rule) -> jax.Array:
        made = select(tokens, K, relevance=relevance, alpha=0.5, rule=rule, places=places)
        return made.indices

    each = jax.vmap(one, in_axes=(0, 0, 0, None))(s.tokens, s.relevance, s.places, rule)
    assert each.tolist() == batch.indices.tolist()
    with backend_compiles() as compiles:
        for strength in (0.1, 0.4):
            other = Distance(strength=strength, width=2.0)
            select(s.tokens, K, relevance=s.relevance, rule=other, **given)
    assert len(compiles) == 0
    shared = select(prepare(s.tokens[0]), K, relevance=s.relevance, rule=rule,
                    alpha=0.5, places=s.places[0])  # fmt: skip
    again = select(np.broadcast_to(s.tokens[0], s.tokens.shape), K, relevance=s.relevance,
                   rule=rule, **given)  # fmt: skip
    assert shared.indices.tolist() == again.indices.tolist()


class Undecorated(Rule):
    pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scoreless(Rule):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rule": ResidualEnergy(), "engine": "lazy"}, "paper's rule alone"),
        ({"rule": ResidualEnergy(), "engine": "blocked"}, "paper's rule alone"),
        ({"rule": ResidualEnergy}, "a rule is an instance"),
        ({"rule": Undecorated()}, "a rule is an instance"),
        ({"rule": Scoreless()}, "Scoreless decides nothing"),
        ({"rule": 3}, "a rule is an instance"),
        ({"places": np.zeros((N, 2))}, "read by a rule"),
        ({"rule": Distance(), "places": np.zeros((N, 3))}, "places has shape"),
        ({"rule": CoveredNouns(np.zeros((B + 1, N, M)))}, "by_noun"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError, match=said):
        select(scene(0).tokens, K, **given)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nothing(Rule):
    """Wants no token."""

    def score(self, view: View, state: Any) -> jax.Array:
        return -jnp.ones_like(view.energy)


def test_where_a_rule_wants_nothing_the_largest_residual_is_taken() -> None:
    s = scene(9)
    plain = select(s.tokens, K)
    assert select(s.tokens, K, rule=Nothing()).indices.tolist() == plain.indices.tolist()
