"""Image work that is shared: one Gram matrix, any number of selections; memory and chunks."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax import CallError, Prepared, Selection, prepare, select
from resprune_jax.engines.product import gram_product, gram_products, tile_bounds
from resprune_jax.relevance import relevance
from resprune_jax.selection import rows_at_once
from tests.compiles import backend_compiles
from tests.selection.batches import Shape, batch
from tests.selection.problems import draw
from tests.selection.test_selection import SMALL, forced_pivots

N, D, KEEP = 120, 96, 40
FIELDS = ("indices", "energy", "count")


def image(rng_seed: int = 0, n: int = N, d: int = D) -> np.ndarray:
    """Tokens without ties."""
    return draw(rng_seed, n=n, d=d, kind="clustered", dtype="float32").tokens


def sweep(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """5 alphas, 3 relevances and 5 seed tokens: the conditions of 75 selections."""
    rng = np.random.default_rng(1)
    text = tokens[rng.integers(len(tokens), size=4)] + 0.2 * rng.normal(size=(4, tokens.shape[1]))
    kinds = ("max", "mean", "pooled")
    weights = np.stack([relevance(tokens, jnp.float32(text), aggregate=kind) for kind in kinds])
    alphas, seeds = np.float32([0, 0.25, 0.5, 0.75, 1]), rng.integers(len(tokens), size=5)
    grid = np.stack(np.meshgrid(range(5), range(3), range(5), indexing="ij")).reshape(3, -1)
    return {"alpha": alphas[grid[0]], "relevance": weights[grid[1]], "first": seeds[grid[2]]}


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["gram", "blocked", "feature"])
def test_75_selections_on_one_image_are_one_program(engine: str):
    tokens = image()
    asked = sweep(tokens)
    prepared = prepare(tokens)
    with backend_compiles() as compiles:
        made = select(prepared, KEEP, engine=engine, **asked)
    assert len(compiles) == 1
    with backend_compiles() as compiles:
        select(prepare(image(1)), KEEP, engine=engine, **asked)
        budgets = select(prepared, KEEP, engine=engine, **asked, limit=np.arange(1, 76))
    assert compiles == []
    chex.assert_shape(made.indices, (75, KEEP))
    equal = 0
    for row in range(75):
        own = {name: value[row] for name, value in asked.items()}
        alone = select(tokens, KEEP, engine=engine, **own)
        equal += int((np.asarray(alone.indices) == made.indices[row]).sum())
        np.testing.assert_array_equal(made.indices[row], alone.indices)
        np.testing.assert_allclose(made.energy[row], alone.energy, atol=1e-6 * alone.energy[0])
        count = min(row + 1, KEEP)  # every budget is read off by prefix
        assert budgets.count[row] == count
        np.testing.assert_array_equal(budgets.indices[row][:count], made.indices[row][:count])
    print(f"{engine}: {equal} of {75 * KEEP} picks equal to separate calls, one program")
    assert len(np.unique(np.asarray(made.indices), axis=0)) > 30  # the conditions do matter


def compiled(function: Any, *arguments: Any) -> tuple[int, int]:
    """(temporary and output bytes, generated for these arguments), nothing is run."""
    plan = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return plan.temp_size_in_bytes, plan.output_size_in_bytes


def like(n: int, d: int, dtype: Any = jnp.float32) -> Prepared:
    """The shapes of a prepared image."""
    array = jax.ShapeDtypeStruct
    scalar = array((), jnp.int32), array((), jnp.bool_)
    return Prepared(array((n, d), dtype), array((n,), jnp.bool_), array((n, n), jnp.float32),
                    *scalar)  # fmt: skip


def test_the_gram_matrix_is_not_copied_for_a_selection():
    """75 selections on one image of LLaVA-1.5-7B: what each adds, against its Gram matrix."""
    n, d, keep = 576, 4096, 128
    ask = jax.ShapeDtypeStruct
    bytes_of = {}
    for rows in (1, 75):
        bytes_of[rows], _ = compiled(
            lambda p, r, a, f: select(p, keep, relevance=r, alpha=a, first=f, engine="gram"),
            like(n, d), ask((rows, n), jnp.float32), ask((rows,), jnp.float32),
            ask((rows,), jnp.int32),
        )  # fmt: skip
    each = (bytes_of[75] - bytes_of[1]) / 74
    share = each / (4 * n * n)
    print(
        f"one {bytes_of[1] / 1e6:.1f} MB, each more {share:.2f} G, the factor is {keep / n:.2f} G"
    )
    # The factor, and some of it twice while it grows.
    assert each < 1.4 * 4 * keep * n
    assert bytes_of[75] < 4 * (n * d + 75 * 1.4 * keep * n)


BOUND_SIZES = [(576, 4096, 64), (576, 4096, 128), (576, 4096, 192)]
LARGE_SIZES = [(2340, 4096, 260), (2340, 4096, 780), (2928, 4096, 325), (2928, 4096, 976),
               (10549, 3584, 1172), (10549, 3584, 3516)]  # fmt: skip


def peak_of_one_image(n: int, d: int, keep: int, dtype: Any) -> float:
    """Temporary and output bytes of one selection, as a share of the bound."""
    ask = jax.ShapeDtypeStruct
    choose = lambda t, r, f: select(t, keep, relevance=r, alpha=0.75, first=f)  # noqa: E731
    given = ask((n, d), dtype), ask((n,), jnp.float32), ask((), jnp.int32)
    taken = sum(compiled(choose, *given))
    bound = 2.5 * 4 * n * n + 4 * n * d
    print(f"{n} x {d} -> {keep} {np.dtype(dtype).name}: {taken / 1e6:.1f} MB,"
          f" {taken / bound:.2f} of the bound, {taken / (4 * n * n):.2f} G")  # fmt: skip
    return taken / bound


@pytest.mark.deep
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_memory_of_one_image(dtype: Any):
    """At most 2.5 Gram matrices and the tokens in float32, on the CPU."""
    assert peak_of_one_image(576, 4096, 192, dtype) <= 1


@pytest.mark.exact
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", BOUND_SIZES + LARGE_SIZES, ids=str)
def test_memory_of_one_image_at_every_size(size: tuple[int, int, int], dtype: Any):
    assert peak_of_one_image(*size, dtype) <= 1


@pytest.mark.deep
@pytest.mark.parametrize(
    "engine", ["gram", "feature", pytest.param("blocked", marks=pytest.mark.exact)]
)
def test_a_batch_beyond_max_bytes_is_done_in_chunks(engine: str):
    shape = Shape(5, 256, 128, 32)
    given = batch(shape, 3, kind="clustered", n=250, d=128)
    sizes, made = {}, {}
    for rows in (5, 2, 1):
        most = next(b for b in range(10**4, 10**8, 10**4) if rows_at_once(
            shape.n, shape.d, shape.keep, 5, engine, b, prepared=False) == rows)  # fmt: skip
        program = jax.jit(
            lambda t, o, most=most: select(t, shape.keep, engine=engine, max_bytes=most, **o)
        ).lower(given.tokens, given.options).compile()  # fmt: skip
        made[rows] = program(given.tokens, given.options)
        sizes[rows] = program.memory_analysis().temp_size_in_bytes
        if rows > 1:
            assert sizes[rows] <= most
    print(f"{engine}: temporary bytes by rows at once {sizes}")
    for rows in (2, 1):
        for field in ("indices", "count"):
            np.testing.assert_array_equal(getattr(made[rows], field), getattr(made[5], field))
        np.testing.assert_allclose(made[rows].energy, made[5].energy, rtol=1e-5)
    assert sizes[1] < sizes[5]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("way", "dtype"),
    [("vmap", jnp.float32), *((w, jnp.bfloat16) for w in ("lazy", "gram", "prepare", "vmap"))],
)
def test_more_images_of_a_batch_take_no_more_memory(way: str, dtype: Any):
    """Beside the result: XLA on a CPU would make a float32 copy of a bfloat16 batch."""
    n, d, keep = 256, 384, 64

    def work(tokens: jax.Array) -> Any:
        if way == "prepare":
            made = prepare(tokens)
            return made.gram, made.exponent, made.finite
        if way == "vmap":
            return jax.vmap(lambda own: select(own, keep, engine="lazy"))(tokens)
        return select(tokens, keep, engine=way, max_bytes=10**6)

    assert rows_at_once(n, d, keep, 2, "gram", 10**6, prepared=False) == 1
    taken = [compiled(work, jax.ShapeDtypeStruct((b, n, d), dtype))[0] for b in (2, 10)]
    each = (taken[1] - taken[0]) / 8 / (4 * n * d)
    print(
        f"{way} {np.dtype(dtype).name}: {taken} bytes for 2 and 10 images, {each:.2f} images each"
    )
    assert each < 0.05


@pytest.mark.deep
def test_selections_on_one_image_are_chunked_too():
    tokens = image()
    asked = sweep(tokens)
    prepared = prepare(tokens)
    whole = select(prepared, KEEP, engine="gram", **asked)
    few = select(prepared, KEEP, engine="gram", max_bytes=400_000, **asked)
    assert 1 < rows_at_once(N, D, KEEP, 75, "gram", 400_000, prepared=True) < 75
    np.testing.assert_array_equal(few.indices, whole.indices)


def test_a_prepared_batch_is_the_batch():
    """Padding, bfloat16, and every row's own conditions; also under jit and vmap."""
    given = batch(Shape(4, 64, 48, 24, "bfloat16"), 2)
    options = {k: v for k, v in given.options.items() if k != "valid"}
    valid = given.options["valid"]
    plain = select(given.tokens, 24, engine="gram", **given.options)
    prepared = prepare(given.tokens, valid, saliency=np.ones((4, 64)))
    chex.assert_shape([prepared.gram, prepared.norms, prepared.saliency],
                      [(4, 64, 64), (4, 64), (4, 64)])  # fmt: skip
    norms = np.linalg.norm(np.where(valid[..., None], given.tokens, 0).astype(np.float64), axis=-1)
    np.testing.assert_allclose(prepared.norms, norms, rtol=1e-5)
    made = select(prepared, 24, engine="gram", **options)
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, made), jax.tree.map(np.asarray, plain))

    @jax.jit
    def mapped(tokens: jax.Array, valid: jax.Array, options: dict[str, jax.Array]) -> Selection:
        one = lambda t, v, o: select(prepare(t, v), 24, engine="gram", **o)  # noqa: E731
        return jax.vmap(one)(tokens, valid, options)

    np.testing.assert_array_equal(mapped(given.tokens, valid, options).indices, plain.indices)


@pytest.mark.deep
def test_the_guard_looks_after_every_selection_on_an_image():
    """A relevance that forces a pivot, among others that do not: only its row is done again.

    Without the guard the energies of these images are up to 5e-3 of the total off, upwards: what
    is too low is cut off at zero, so that about half of the images show nothing.
    """
    given = forced_pivots(5)
    first, valid = given.options["first"], given.options["valid"]
    for row in range(4):
        prepared = prepare(given.tokens[row], valid[row])
        weights = np.ones((3, SMALL.n), np.float32)
        weights[1] = given.options["relevance"][row]
        made = select(prepared, 5, engine="gram", relevance=weights, alpha=1.0, first=first[row])
        apart = select(given.tokens[row], 5, engine="feature", relevance=weights[1], alpha=1.0,
                       first=first[row], valid=valid[row])  # fmt: skip
        np.testing.assert_array_equal(made.indices[1], apart.indices)
        np.testing.assert_allclose(made.energy[1], apart.energy, atol=1e-6 * apart.energy[0])


@pytest.mark.parametrize("n", [1, 2, 95, 150, 300])
@pytest.mark.parametrize("exponent", [0, -70, 60])
def test_the_product_by_tiles(n: int, exponent: int):
    """Against float64, at norms that leave the range of float32 too; bit for bit across scales."""
    tokens = image(n, n, 40)
    valid = np.random.default_rng(n).random(n) < 0.8
    valid[0] = True
    tokens[~valid] = np.nan
    made = jax.jit(gram_product)(tokens * np.float32(2.0**exponent), valid)
    plain = jax.jit(gram_product)(tokens, valid)
    np.testing.assert_array_equal(made.gram, plain.gram)
    assert made.exponent - plain.exponent == exponent and made.finite
    exact = np.where(valid[:, None], tokens, 0).astype(np.float64) * 2.0 ** -int(plain.exponent)
    norms = np.linalg.norm(exact, axis=1)
    assert 1 <= norms.max() < 2
    assert np.all(np.abs(made.gram - exact @ exact.T) <= 4e-7 * np.outer(norms, norms))
    np.testing.assert_array_equal(made.gram, np.asarray(made.gram).T)
    assert [stop for _, stop in tile_bounds(n)][-1] == n


@pytest.mark.deep
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_image_that_is_not_finite_or_far_out_of_scale_leaves_its_mates_alone(bad: float):
    tokens = np.stack([image(row, 70, 30) for row in range(4)])
    valid = np.ones((4, 70), bool)
    plain = jax.jit(gram_products)(tokens, valid)
    spoilt = tokens.copy()
    spoilt[1, 3, 5] = bad
    spoilt[2] *= np.float32(2.0**-100)
    made = jax.jit(gram_products)(spoilt, valid)
    assert made.finite.tolist() == [True, False, True, True]
    for row in (0, 2, 3):
        np.testing.assert_array_equal(made.gram[row], plain.gram[row])
        alone = jax.jit(gram_product)(spoilt[row], valid[row])
        np.testing.assert_array_equal(made.gram[row], alone.gram)
    assert made.exponent[2] == plain.exponent[2] - 100
    chosen = select(prepare(spoilt), 3, engine="gram")
    assert np.isnan(chosen.energy).all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"valid": np.ones(6, bool)}, "valid"),
        ({"alpha": np.ones(3), "first": np.zeros(2, int)}, "agree.*alpha 3, first 2"),
        ({"relevance": np.ones((2, 6)), "limit": np.ones(3, int)}, "limit 3, relevance 2"),
        ({"relevance": np.ones(5)}, "relevance"),
        ({"relevance": np.ones((1, 2, 6))}, "relevance"),
        ({"alpha": np.ones((2, 2))}, "alpha"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"max_bytes": 1e9}, "max_bytes"),
        ({"first": 6}, "first"),
    ],
)
def test_a_wrong_call_with_prepared_tokens(changes: dict[str, Any], says: str):
    prepared = prepare(np.ones((6, 5), np.float32))
    with backend_compiles() as compiles, pytest.raises(CallError, match=says):
        select(prepared, 2, **changes)
    assert compiles == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"tokens": np.ones(4, np.float32)},
        {"tokens": np.ones((4, 5), np.int32)},
        {"tokens": np.ones((4, 5), np.float32), "valid": np.ones(5, bool)},
        {"tokens": np.ones((4, 5), np.float32), "saliency": np.ones((4, 5))},
    ],
)
def test_a_wrong_call_of_prepare(arguments: dict[str, Any]):
    with pytest.raises(CallError):
        prepare(**arguments)
