"""The lazy engine: few rows at a time, tokens that resemble each other, scales, when it is chosen.

The engine matrix of `test_selection.py` runs it at its own sizes; here blocks are so small, and so
few rows are made together, that every problem asks for more rows many times, in both of its loops.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resprune_jax import engines, prepare, select
from resprune_jax.certificate import certify
from resprune_jax.engines import gram, lazy
from resprune_jax.experiments.bench.problems import ALPHA, Size, make_problem
from resprune_jax.relevance import gate
from tests.selection.batches import Batch, Shape, batch

SHAPE = Shape(6, 96, 64, 80)
SIZES = [
    {"block": 0, "rows": 4},
    {"block": 0, "rows": 32},
    {"block": 7, "rows": 3},  # a block needs rows three times
    {"block": 8, "rows": 40},  # of the last rows some were made before
]


@cache
def program(keep: int, **sizes: int) -> Callable[..., lazy.Made]:
    """The engine alone, without its guard, on a batch."""

    def one(tokens, relevance, alpha, first, valid):
        relevance = jnp.where(valid, relevance, 0.0)
        weight = gate(relevance / jnp.maximum(jnp.max(relevance), 1e-30), alpha)
        image = lazy.Tokens(tokens, lazy.squared_norms(tokens, valid), jnp.int32(0))
        return lazy.counted(image, weight, first, valid, keep, **sizes)

    return jax.jit(jax.vmap(one))


def counted(problems: Batch, keep: int, **sizes: int) -> lazy.Made:
    """Rows and blocks of these sizes on a batch, fetched to the host."""
    asked = (problems.options[name] for name in ("relevance", "alpha", "first", "valid"))
    return jax.tree.map(np.asarray, program(keep, **sizes)(problems.tokens, *asked))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_step_certificate_of_few_rows_at_a_time(sizes: dict[str, int]):
    steps = made_rows = doubted = far = 0
    for rng_seed in range(4):
        problems = batch(SHAPE, rng_seed)
        made = counted(problems, SHAPE.keep, **sizes)
        assert np.all(made.rows % sizes["rows"] == 0)
        assert np.all(made.rows < SHAPE.n + sizes["rows"]), "a row was made twice"
        for row, problem in enumerate(problems.problems):
            squares = np.square(problem.tokens.astype(np.float64)).sum(axis=1).max()
            if not 2.0**-84 <= squares <= 2.0**100:
                far += 1  # `select` does not look at what it makes of them
                continue
            if made.outcome.growth[row] > gram.MOST_GROWTH:
                doubted += 1  # the guard would have the feature engine do it
                continue
            result = certify(
                problems.tokens[row], made.outcome.indices[row],
                count=min(SHAPE.keep, problem.count), **problem.conditions,
            )  # fmt: skip
            assert result.ok, f"{problem.kind}: {result.violations[:3]}"
            steps, made_rows = steps + result.steps, made_rows + int(made.rows[row])
    print(f"{sizes}: {steps} steps, {made_rows} rows made, {doubted} doubted, {far} out of scale")
    assert steps > 900


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_makes_the_picks_and_energies_of_the_gram_engine(sizes: dict[str, int]):
    """Equal one for one on problems without ties, from fewer rows than there are tokens."""
    shape = Shape(4, 240, 256, 24)
    problems = batch(shape, 3, kind="gaussian", n=230, d=256)
    made = counted(problems, shape.keep, **sizes)
    names = ("relevance", "alpha", "first", "valid")
    options = {name: problems.options[name] for name in names}
    other = select(problems.tokens, shape.keep, engine="gram", **options)
    np.testing.assert_array_equal(made.outcome.indices, other.indices)
    totals = made.outcome.totals / made.outcome.totals[:, :1]
    np.testing.assert_allclose(totals, other.energy / other.energy[:, :1], atol=1e-6)
    print(f"{sizes}: {made.rows.tolist()} rows for {shape.keep} picks of 230")
    assert np.all(made.rows <= shape.keep + 3 * max(sizes["rows"], sizes["block"]))


@pytest.mark.deep
@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ({"block": 0, "rows": 4}, 4),  # nothing is kept from one pick to the next
        ({"block": 7, "rows": 3}, 21),
        ({"block": 4, "rows": 8}, 32),
        ({"block": 8, "rows": 40}, 120),  # fewer than 40 rows are missing in the end
    ],
    ids=str,
)
def test_rows_that_gave_way_are_made_again(sizes: dict[str, int], room: int):
    """The picks do not depend on how many rows there is room for."""
    again = 0
    for kind in ("gaussian", "clustered", "low-rank"):
        problems = batch(Shape(3, 96, 64, 60), 7, kind=kind, n=96, d=64)
        plain = counted(problems, 60, **sizes)
        few = counted(problems, 60, **sizes, store=1)
        for field in ("indices", "totals", "growth"):
            other = getattr(plain.outcome, field)
            np.testing.assert_array_equal(getattr(few.outcome, field), other)
        print(f"{sizes} {kind}: {plain.rows.tolist()} rows, {few.rows.tolist()} with room for few")
        assert np.all(few.rows >= plain.rows)
        again += int((few.rows - plain.rows).sum())
    assert lazy.room_for(96, sizes["block"], sizes["rows"], 1) == room
    assert (again > 0) == (room < 96)


@pytest.mark.deep
@pytest.mark.parametrize(("n", "d", "keep"), [(25_000, 32, 40), (43_200, 64, 16), (60_000, 16, 33)])
def test_many_tokens_do_not_take_a_gram_matrix(n: int, d: int, keep: int):
    """300 pictures in a prompt: 4 N^2 bytes are 7 GiB and more. Compiled, and never run."""
    ask = jax.ShapeDtypeStruct((n, d), jnp.float32)
    choose = jax.jit(partial(select, keep=keep, engine=engines.resolve("auto", n, keep, d)))
    taken = choose.lower(ask).compile().memory_analysis().temp_size_in_bytes
    print(f"{n} tokens, {keep} kept: {taken >> 20} MiB")
    assert taken <= sum(engines.memory("lazy", n, d, keep)) < 1.2 * lazy.STORE


@pytest.mark.parametrize(
    ("n", "d", "keep", "max_bytes", "want"),
    [
        (43_200, 192, 64, 2**31, "lazy"),
        (43_200, 192, 64, 2**29, "feature"),  # the rows alone take as much
        (43_200, 192, 43_200, 2**31, "feature"),  # the factor takes 7 GiB
        (10_549, 3584, 3516, 2**31, "lazy"),
        (10_549, 3584, 8000, 2**31, "lazy"),  # `blocked` is faster, and takes too much
        (10_549, 3584, 8000, 2**34, "blocked"),
        (576, 4096, 64, 2**31, "lazy"),
        (144, 192, 100, 2**31, "gram"),
        (10**6, 4096, 64, 2**31, "feature"),  # the smallest, where nothing fits
    ],
)
def test_auto_takes_what_fits(n: int, d: int, keep: int, max_bytes: int, want: str):
    assert engines.resolve("auto", n, keep, d, max_bytes=max_bytes) == want
    assert engines.resolve("gram", n, keep, d, max_bytes=1) == "gram"  # an engine that was named


@pytest.mark.deep
@pytest.mark.parametrize(
    ("n", "keep"), [(576, 64), (576, 128), (576, 192), (2928, 325), (2928, 976)]
)
def test_rows_made_of_clustered_tokens(n: int, keep: int):
    """Tokens as the benchmarks draw them: a row for each pick, and one to two blocks of others."""
    problem = make_problem(Size(n, 4096, keep), 1, "float32")
    given = (problem.relevance, np.full(1, ALPHA, np.float32), problem.first, np.ones((1, n), bool))
    made = program(keep)(problem.tokens, *given)
    print(f"{n} -> {keep}: {int(made.rows[0])} rows")
    assert made.rows[0] <= keep + 2 * lazy.BLOCK


@pytest.mark.deep
@pytest.mark.parametrize("block", [0, 8])
def test_tokens_that_resemble_each_other_cost_rows_and_not_correctness(block: int):
    """Ten near copies of each direction: every pick takes all of its row's neighbours with it."""
    n, keep, rows = 120, 12, 8
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0][:12] * np.linspace(2, 1, 12)[:, None]
    tokens = np.repeat(basis, 10, axis=0) + 1e-3 * rng.normal(size=(n, 64))
    tokens = tokens.astype(np.float32)[None]
    ones, valid = np.ones((1, n), np.float32), np.ones((1, n), bool)
    run = program(keep, block=block, rows=rows)
    made = run(tokens, ones, np.zeros(1, np.float32), np.zeros(1, np.int32), valid)
    result = certify(tokens[0], np.asarray(made.outcome.indices[0]), first=0)
    assert result.ok, result.violations[:3]
    assert len({int(i) // 10 for i in made.outcome.indices[0]}) == 12
    print(f"block {block}: {int(made.rows[0])} rows for {keep} picks of {n}")
    assert 8 * keep <= made.rows[0] <= n


@pytest.mark.parametrize("block", [0, 8])
def test_no_row_stands_for_another_when_the_tier_changes(block: int):
    """Three tokens that the text asks for, then the rest by energy alone, inside of one block.

    The foresight looks at the tier of the next pick, so that it knows nothing of the others.
    """
    n, keep = 40, 12
    tokens = np.random.default_rng(1).normal(size=(1, n, 64)).astype(np.float32)
    tokens *= np.geomspace(30, 1, n, dtype=np.float32)[:, None]  # the first ones come next
    relevance = np.zeros((1, n), np.float32)
    relevance[0, -3:] = 1.0
    given = (relevance, np.ones(1, np.float32), np.int32([n - 1]), np.ones((1, n), bool))
    made = program(keep, block=block, rows=4)(tokens, *given)
    result = certify(
        tokens[0],
        np.asarray(made.outcome.indices[0]),
        first=n - 1,
        relevance=relevance[0],
        alpha=1.0,
    )
    assert result.ok and result.decided == keep, result.violations[:3]
    assert set(np.asarray(made.outcome.indices[0])[:3].tolist()) == {n - 3, n - 2, n - 1}


@pytest.mark.deep
@pytest.mark.parametrize("exponent", [-90, -25, 25, 58, 90])
def test_an_image_out_of_scale(exponent: int):
    """Far from 1 the feature engine does it, and the images beside it are left alone."""
    problems = batch(Shape(3, 96, 64, 20), 5, kind="clustered", n=90, d=60)
    options = {k: problems.options[k] for k in ("relevance", "alpha", "first", "valid")}
    plain = select(problems.tokens, 20, engine="lazy", **options)
    tokens = np.array(problems.tokens)
    tokens[1] *= np.float32(2.0**exponent)
    made = select(tokens, 20, engine="lazy", **options)
    np.testing.assert_array_equal(made.indices, plain.indices)
    for row in (0, 2):
        np.testing.assert_array_equal(made.energy[row], plain.energy[row])
    if abs(exponent) == 25:
        np.testing.assert_array_equal(made.energy[1], plain.energy[1] * np.float32(4.0**exponent))
    else:
        other = select(tokens, 20, engine="feature", **options)
        np.testing.assert_array_equal(made.energy[1], other.energy[1])
        assert made.energy[1, 0] in (0.0, np.inf) or exponent == 58


@pytest.mark.deep
@pytest.mark.parametrize("blocked_from", [1, 2**19])
def test_it_runs_under_shard_map_and_vmap(blocked_from: int, monkeypatch: pytest.MonkeyPatch):
    """Everything that a loop carries must vary over the mesh as the result does."""
    monkeypatch.setattr(lazy, "BLOCKED_FROM", blocked_from)
    keep = 10 + blocked_from % 2  # another program for each
    tokens = np.asarray(batch(Shape(2, 90, 40, keep), 1, kind="gaussian", n=90, d=40).tokens)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    choose = partial(select, keep=keep, engine="lazy")
    divided = jax.shard_map(
        lambda t: choose(t).indices, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    plain = select(tokens, keep, engine="gram").indices
    np.testing.assert_array_equal(jax.jit(divided)(tokens), plain)
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda t: choose(t).indices))(tokens), plain)


@pytest.mark.deep
def test_auto_takes_it_for_one_selection_on_an_image(monkeypatch: pytest.MonkeyPatch):
    for n, keep, want in [(576, 128, "lazy"), (576, 300, "gram"), (144, 48, "gram"),
                          (10549, 3516, "lazy"), (10549, 8000, "blocked")]:  # fmt: skip
        assert engines.resolve("auto", n, keep) == want
        assert engines.resolve("auto", n, keep, shared=True) != "lazy"
    taken: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        def factor(*given: Any) -> Any:
            taken.append(name)
            return engine(*given)

        engine = engines.ENGINES[name]
        return factor

    for name in ("lazy", "gram"):
        monkeypatch.setitem(engines.ENGINES, name, noting(name))
    tokens = batch(Shape(1, 300, 40, 9), 1, kind="gaussian", n=300, d=40).tokens[0]
    one = select(tokens, 9)
    many = select(prepare(tokens), 9, alpha=np.zeros(2, np.float32))
    assert taken == ["lazy", "gram"]
    np.testing.assert_array_equal(many.indices, np.stack([one.indices] * 2))
