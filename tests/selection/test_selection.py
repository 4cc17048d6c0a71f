"""The engines against the float64 oracle, and the properties that the contract lists.

Every test uses one of `SHAPES`; sizes vary through padding, zero columns and limits.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax import CallError, Selection, engines, select
from resprune_jax.certificate import certify
from resprune_jax.engines import gram
from resprune_jax.engines.product import gram_product
from resprune_jax.exact import greedy, reconstruction_error
from tests.compiles import backend_compiles
from tests.selection.batches import Batch, Shape, Tally, batch, options, run
from tests.selection.problems import Problem, pad

ENGINES = (
    "feature", "gram", "blocked", "lazy", pytest.param("schur", marks=pytest.mark.deep),
)  # fmt: skip
SMALL = Shape(16, 24, 6, 24)  # keeps everything: every tier is reached
MEDIUM = Shape(8, 128, 160, 96)
WIDE = Shape(4, 96, 512, 64)
LARGE = Shape(2, 576, 256, 192)
HALF = Shape(8, 128, 160, 96, "bfloat16")
SHAPES = {SMALL: 12, MEDIUM: 10, WIDE: 10, LARGE: 8, HALF: 8}  # and how many batches of each
FIRST = 2
"""Batches of each that `make test` judges; the others are in make test-deep."""
SEEDS = st.integers(0, 2**31 - 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", ["first", pytest.param("rest", marks=pytest.mark.deep)])
def test_step_certificate(part: str, shape: Shape, engine: str):
    """Every step of hundreds of problems; equal to the oracle up to its first undecided step."""
    tally, equal = Tally(), 0
    batches = range(FIRST) if part == "first" else range(FIRST, SHAPES[shape])
    for rng_seed in batches:
        problems = batch(shape, rng_seed)
        chosen = run(shape, problems, engine)
        for row, problem in enumerate(problems.problems):
            tally.certify(shape, problems, row, chosen)
            if rng_seed < batches.start + 2:
                exact = greedy(problem.tokens, shape.keep, **problem.conditions)
                sure = len(exact.indices) if exact.decided.all() else int(exact.decided.argmin())
                np.testing.assert_array_equal(chosen.indices[row][:sure], exact.indices[:sure])
                equal += sure
    print(
        f"{engine} {shape}: {tally}, worst energy error {tally.worst_energy:.1e}, {equal} picks"
        " equal one for one"
    )
    assert tally.decided > 0.5 * (tally.steps - tally.spent)


def faulty(name: str, problems: Batch) -> dict[str, np.ndarray]:
    """The arguments that a faulty engine would in effect have worked on."""
    if name == "gate without alpha":
        return {"alpha": np.where(problems.options["alpha"] > 0, 1.0, 0.0)}
    if name == "gate without its zero":
        return {"relevance": np.maximum(problems.options["relevance"], 0.02)}
    if name == "unmasked padding":
        return {"valid": np.ones_like(problems.options["valid"])}
    rounded = jnp.asarray(problems.tokens).astype(jnp.bfloat16).astype(jnp.float32)
    return {"tokens": np.asarray(rounded)}


@pytest.mark.deep
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "fault",
    ["gate without alpha", "gate without its zero", "unmasked padding", "Gram matrix in bfloat16"],
)
def test_the_certificate_catches_planted_faults(fault: str, engine: str):
    caught = rows = 0
    for rng_seed in range(4):
        problems = batch(MEDIUM, rng_seed, n=120, d=160, relevance="with zeros", kind="clustered")
        chosen = run(MEDIUM, problems, engine, **faulty(fault, problems))
        for row, problem in enumerate(problems.problems):
            if problem.alpha in (0.0, 1.0) and fault.startswith("gate"):
                continue
            rows += 1
            caught += not problems.certify(row, chosen).ok
    print(f"{fault} in {engine}: caught in {caught} of {rows} problems")
    assert caught >= 0.9 * rows


def forced_pivots(rng_seed: int) -> Batch:
    """The gate forces a pick of which next to nothing was left, and which explains another token.

    In a random basis: c, then p = c + (some 3e-3) q, almost c again, while all of q still waits.
    """
    rng = np.random.default_rng(rng_seed)
    given = batch(SMALL, rng_seed)
    problems = []
    for row in range(SMALL.rows):
        c, q, *others = np.linalg.qr(rng.normal(size=(SMALL.d, SMALL.d)))[0]
        tokens = np.stack([c, c + rng.uniform(2, 4) * 1e-3 * q, 0.9 * q, *others[:2]])
        relevance = np.array([1, 1, 1e-8, 1e-9, 1e-9], np.float32)
        problem = Problem(tokens.astype(np.float32), relevance, 1.0, 0, None, "forced pivot")
        problem = pad(problem, SMALL.n, rng_seed=row)
        given.tokens[row] = problem.tokens
        problems.append(problem)
    return Batch(problems, given.tokens, options(problems, SMALL))


@pytest.mark.parametrize(
    "engine", ["gram", "blocked", pytest.param("schur", marks=pytest.mark.deep)]
)
def test_an_engine_on_the_gram_matrix_knows_when_to_doubt_itself(engine: str):
    """Where the rounding of G is magnified, the feature engine takes over: no step is lost."""

    @jax.jit
    @jax.vmap
    def alone(tokens: jax.Array, relevance: jax.Array, first: jax.Array, valid: jax.Array):
        made = gram_product(tokens, valid)
        return engines.ENGINES[engine](made.gram, relevance, first, valid, SMALL.keep)

    lost = doubted = rows = 0
    for rng_seed in range(10):
        given = forced_pivots(rng_seed)
        chosen = run(SMALL, given, engine)
        asked = (given.options[name] for name in ("relevance", "first", "valid"))
        bare = jax.tree.map(np.asarray, alone(given.tokens, *asked))
        for row, problem in enumerate(given.problems):
            assert given.certify(row, chosen).ok
            result = certify(problem.tokens, bare.indices[row], count=5, energy=bare.totals[row],
                             **problem.conditions)  # fmt: skip
            lost += not result.ok
            doubted += bool(bare.growth[row] > gram.MOST_GROWTH)
            rows += 1
    print(f"{engine}: {rows} problems, {doubted} doubted, {lost} wrong without the guard")
    assert doubted == rows and lost > rows // 4


@pytest.mark.deep
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS)
def test_permutation_of_tokens(engine: str, rng_seed: int):
    problems = batch(MEDIUM, rng_seed)
    order = np.random.default_rng(rng_seed).permutation(MEDIUM.n)
    moved = {
        "tokens": problems.tokens[:, order],
        "relevance": problems.options["relevance"][:, order],
        "valid": problems.options["valid"][:, order],
        "first": np.argsort(order)[problems.options["first"]],
    }
    chosen = run(MEDIUM, problems, engine, **moved)
    back = Selection(np.append(order, MEDIUM.n)[chosen.indices], chosen.energy, chosen.count)
    for row in range(MEDIUM.rows):
        result = problems.certify(row, back)
        # Ties between equal tokens go by index, which a permutation changes.
        assert not [v for v in result.violations if "index is higher" not in v], result.violations


@pytest.mark.deep
@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS)
def test_orthogonal_change_of_basis(engine: str, rng_seed: int):
    problems = batch(MEDIUM, rng_seed)
    rng = np.random.default_rng(rng_seed)
    turn = np.linalg.qr(rng.normal(size=(MEDIUM.d, MEDIUM.d)))[0]
    turned = (problems.tokens.astype(np.float64) @ turn).astype(np.float32)
    chosen = run(MEDIUM, problems, engine, tokens=turned)
    for row, problem in enumerate(problems.problems):
        result = problems.certify(row, chosen, tokens=turned[row])
        assert result.ok, f"{problem.kind}: {result.violations[:3]}"
        # The turned tokens were rounded again: what has next to nothing left in one basis may have
        # a little more than nothing in the other, so the order of exhausted tokens is not asked.
        result = problems.certify(row, chosen)
        wrong = [v for v in result.violations if "both exhausted" not in v]
        assert not wrong, f"{problem.kind}: {wrong[:3]}"


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS, exponent=st.integers(-40, 40))
def test_rescaling_by_a_power_of_two_is_exact(engine: str, rng_seed: int, exponent: int):
    problems = batch(MEDIUM, rng_seed, kind="clustered")
    plain = run(MEDIUM, problems, engine)
    factor = np.float32(2.0**exponent)
    scaled = run(MEDIUM, problems, engine, tokens=problems.tokens * factor)
    np.testing.assert_array_equal(scaled.indices, plain.indices)
    np.testing.assert_array_equal(scaled.energy, plain.energy * factor**2)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS)
def test_a_duplicate_of_a_chosen_token_is_exhausted(engine: str, rng_seed: int):
    """20 distinct tokens four times each: the first 20 picks hold each of them once."""
    rng = np.random.default_rng(rng_seed)
    problems = batch(MEDIUM, rng_seed, n=80, kind="gaussian", relevance="none")
    copy = rng.permutation(np.repeat(np.arange(20), 4))
    tokens = problems.tokens.copy()
    for row, problem in enumerate(problems.problems):
        full_rank = rng.normal(size=(20, MEDIUM.d)).astype(np.float32)
        tokens[row, np.flatnonzero(problem.valid)] = full_rank[copy]
    chosen = run(MEDIUM, problems, engine, tokens=tokens)
    for row, problem in enumerate(problems.problems):
        source = np.full(MEDIUM.n + 1, -1)
        source[np.flatnonzero(problem.valid)] = copy
        picked = source[chosen.indices[row]]
        assert sorted(picked[:20]) == list(range(20))
        # The copies follow by index: the gate is the same for all.
        assert np.all(np.diff(chosen.indices[row][20:80]) > 0)
        assert len(set(chosen.indices[row][:80])) == 80


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS)
def test_what_padding_holds_has_no_effect(engine: str, rng_seed: int):
    problems = batch(MEDIUM, rng_seed)
    plain = run(MEDIUM, problems, engine)
    rng = np.random.default_rng(rng_seed)
    fill = rng.choice([0.0, np.nan, np.inf, 1e30, -7.0], size=(MEDIUM.rows, MEDIUM.n))
    valid = problems.options["valid"]
    other = run(
        MEDIUM, problems, engine,
        tokens=np.where(valid[..., None], problems.tokens, fill[..., None]).astype(np.float32),
        relevance=np.where(valid, problems.options["relevance"], np.abs(fill)).astype(np.float32)
        if not np.isnan(fill[~valid]).any()
        else problems.options["relevance"],
    )  # fmt: skip
    chex.assert_trees_all_equal(other, plain)
    kept = other.indices[other.indices < MEDIUM.n]
    assert valid[np.nonzero(other.indices < MEDIUM.n)[0], kept].all()


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(rng_seed=SEEDS, limit=st.integers(1, MEDIUM.keep))
def test_prefix_property(engine: str, rng_seed: int, limit: int):
    problems = batch(MEDIUM, rng_seed)
    whole = run(MEDIUM, problems, engine)
    limited = run(MEDIUM, problems, engine, limit=np.full(MEDIUM.rows, limit))
    prefix = whole.prefix(limit)
    np.testing.assert_array_equal(limited.indices[:, :limit], prefix.indices)
    np.testing.assert_array_equal(limited.energy[:, : limit + 1], prefix.energy)
    np.testing.assert_array_equal(limited.count, prefix.count)
    assert np.all(limited.indices[:, limit:] == MEDIUM.n)
    assert np.all(limited.energy[:, limit:] == limited.energy[:, limit : limit + 1])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_does_not_see_its_batch_mates(engine: str):
    problems = batch(MEDIUM, 5)
    plain = run(MEDIUM, problems, engine)
    turned = {name: np.roll(value, 3, axis=0) for name, value in problems.options.items()}
    rolled = run(MEDIUM, problems, engine, tokens=np.roll(problems.tokens, 3, axis=0), **turned)
    for field in ("indices", "energy", "count"):
        np.testing.assert_array_equal(
            getattr(rolled, field), np.roll(getattr(plain, field), 3, axis=0)
        )
    chex.assert_trees_all_equal(run(MEDIUM, problems, engine), plain)  # and repeats bit for bit


@pytest.mark.parametrize("engine", ENGINES)
def test_tolerance_stops_at_the_first_sufficient_pick(engine: str):
    problems = batch(MEDIUM, 9, n=120, kind="clustered")
    whole = run(MEDIUM, problems, engine)
    stopped = run(MEDIUM, problems, engine, tolerance=0.05)
    ends = set()
    for row in range(MEDIUM.rows):
        count, share = int(stopped.count[row]), whole.energy[row] / whole.energy[row][0]
        assert count == MEDIUM.keep or share[count] <= 0.05
        assert np.all(share[1:count] > 0.05)
        np.testing.assert_array_equal(stopped.indices[row][:count], whole.indices[row][:count])
        ends.add(count)
    assert len(ends) > 3  # a budget for each image, not one for all


@pytest.mark.parametrize("engine", ENGINES)
def test_the_last_energy_is_the_reconstruction_error(engine: str):
    problems = batch(WIDE, 2, n=90, kind="clustered")
    chosen = run(WIDE, problems, engine)
    for row, problem in enumerate(problems.problems):
        want = reconstruction_error(problem.tokens, chosen.indices[row], valid=problem.valid)
        np.testing.assert_allclose(
            chosen.energy[row][-1], want, atol=1e-5 * chosen.energy[row][0], rtol=0
        )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_fails_alone(engine: str, bad: float):
    problems = batch(MEDIUM, 4)
    plain = run(MEDIUM, problems, engine)
    tokens, weight = problems.tokens.copy(), problems.options["relevance"].copy()
    tokens[2, np.flatnonzero(problems.options["valid"][2])[0], 5] = bad
    weight[4, np.flatnonzero(problems.options["valid"][4])[0]] = bad
    chosen = run(MEDIUM, problems, engine, tokens=tokens, relevance=jnp.asarray(weight))
    for row in range(MEDIUM.rows):
        if row in (2, 4):
            assert chosen.count[row] == 0
            assert np.isnan(chosen.energy[row]).all() and (chosen.indices[row] == MEDIUM.n).all()
        else:
            np.testing.assert_array_equal(chosen.indices[row], plain.indices[row])


def test_a_seed_token_that_is_padding_fails_its_row():
    problems = batch(MEDIUM, 4, n=100)
    first = problems.options["first"].copy()
    first[1] = np.flatnonzero(~problems.options["valid"][1])[0]
    chosen = run(MEDIUM, problems, "gram", first=jnp.asarray(first))
    assert np.isnan(chosen.energy[1]).all() and chosen.count[1] == 0
    assert np.isfinite(chosen.energy[0]).all()


def test_a_sweep_compiles_once():
    problems = batch(MEDIUM, 6)
    run(MEDIUM, problems, "gram")
    with backend_compiles() as compiles:
        run(MEDIUM, batch(MEDIUM, 7), "gram", alpha=0.5, limit=9, tolerance=0.1, first=None)
        run(MEDIUM, problems, "auto", alpha=problems.options["alpha"], relevance=None, valid=None)
        select(problems.tokens, MEDIUM.keep)
    assert compiles == []


def test_it_composes_with_jit_and_vmap():
    problems = batch(MEDIUM, 8)
    alphas = jnp.asarray([0.0, 0.75, 1.25])
    weight, valid = (jnp.asarray(problems.options[k]) for k in ("relevance", "valid"))

    @jax.jit
    def sweep(tokens: jax.Array, weight: jax.Array) -> Selection:
        one = lambda a: select(tokens, MEDIUM.keep, relevance=weight, alpha=a, valid=valid)  # noqa: E731
        return jax.vmap(one)(alphas)

    swept = sweep(jnp.asarray(problems.tokens), weight)
    sweep(jnp.asarray(problems.tokens) * 2, weight)
    chex.assert_shape(swept.indices, (3, MEDIUM.rows, MEDIUM.keep))
    for i, alpha in enumerate(alphas):
        chosen = run(MEDIUM, problems, "gram", alpha=alpha, first=None)
        np.testing.assert_array_equal(swept.indices[i], chosen.indices)


def test_selection_views():
    chosen = Selection(
        jnp.asarray([[5, 0, 3], [2, 7, 7]], jnp.int32),
        jnp.asarray([[9.0, 4.0, 2.0, 1.0], [3.0, 1.0, 1.0, 1.0]]),
        jnp.asarray([3, 1], jnp.int32),
    )
    assert chosen.image_order().tolist() == [[0, 3, 5], [2, 7, 7]]
    assert np.argwhere(chosen.mask(7)).tolist() == [[0, 0], [0, 3], [0, 5], [1, 2]]
    short = chosen.prefix(2)
    chex.assert_shape([short.indices, short.energy], [(2, 2), (2, 3)])
    assert short.count.tolist() == [2, 1]
    for k, says in ((0, r"prefix must be .* at least 1, got 0"), (4, r"prefix\(4\)")):
        with pytest.raises(CallError, match=says):
            chosen.prefix(k)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keep": 0}, "keep"),
        ({"keep": 2.5}, "keep"),
        ({"keep": True}, "keep"),
        ({"tokens": np.ones((3, 4, 5, 6), np.float32)}, "tokens"),
        ({"tokens": np.ones((0, 4), np.float32)}, "tokens"),
        ({"tokens": np.ones((4, 5), np.int32)}, "floating"),
        ({"relevance": np.ones(3)}, "relevance"),
        ({"relevance": -np.ones(4)}, "relevance"),
        ({"relevance": np.full(4, np.nan)}, "relevance"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": np.nan}, "alpha"),
        ({"valid": np.ones((1, 4))}, "valid"),
        ({"first": 4}, "first"),
        ({"first": -1}, "first"),
        ({"limit": 0}, "limit"),
        ({"limit": np.ones(2)}, "limit"),
        ({"tolerance": 1e-6}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"engine": "fast"}, "engine"),
    ],
)
def test_a_wrong_call_is_refused_before_any_compile(changes, says):
    arguments = {"tokens": np.ones((4, 5), np.float32), "keep": 2, **changes}
    with backend_compiles() as compiles, pytest.raises(CallError, match=says):
        select(arguments.pop("tokens"), arguments.pop("keep"), **arguments)
    assert compiles == []
