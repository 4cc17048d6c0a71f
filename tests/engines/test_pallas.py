"""The kernels in Pallas's interpreter: the step certificate, planted faults, where they may run.

The interpreter runs a kernel's operations in order on the CPU: it shows what is computed, not what
threads could do to each other. What the TPU's compiler says is in `test_pallas_compiler.py`.
"""

import contextlib
import functools
import logging
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from resprune_jax import CallError, engines, errors, prepare, select
from resprune_jax.certificate import certify
from resprune_jax.engines import kernels, pallas_gpu, pallas_tpu
from resprune_jax.engines.gram import MOST_GROWTH
from resprune_jax.engines.loop import Outcome
from resprune_jax.engines.product import gram_product
from resprune_jax.exact import greedy
from tests.selection.batches import Batch, Shape, Tally, batch, run
from tests.selection.problems import draw
from tests.selection.test_selection import forced_pivots

KERNELS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
SMALL = Shape(16, 24, 6, 24)  # keeps everything: every tier is reached
ODD = Shape(4, 200, 96, 150)  # no whole register of tokens; picks, rows, lanes in several pieces
SHAPES = {SMALL: 4, ODD: 2}  # and how many batches of each


@pytest.fixture(autouse=True)
def interpreter() -> Iterator[None]:
    with kernels.interpreting():
        yield


def alone(engine: str, keep: int) -> Callable[..., Outcome]:
    """An engine on its own for a batch, without the guard that would put its doubts right."""

    def found(tokens: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array) -> Outcome:
        made = gram_product(tokens, valid)
        return engines.ENGINES[engine](made.gram, gate, first, valid, keep)

    return jax.jit(jax.vmap(found))


kept_alone = functools.cache(alone)


def outcome(program: Callable[..., Outcome], given: Batch) -> Outcome:
    asked = (given.options[name] for name in ("relevance", "first", "valid"))
    return jax.tree.map(np.asarray, program(given.tokens, *asked))


@pytest.mark.deep
@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_certificate(shape: Shape, engine: str) -> None:
    tally = Tally()
    sure = same = entries = 0
    for rng_seed in range(SHAPES[shape]):
        problems = batch(shape, rng_seed)
        chosen, other = (run(shape, problems, name) for name in (engine, "gram"))
        for row, problem in enumerate(problems.problems):
            tally.certify(shape, problems, row, chosen)
            entries += shape.keep
            same += int((chosen.indices[row] == other.indices[row]).sum())
            if rng_seed == 0:
                exact = greedy(problem.tokens, shape.keep, **problem.conditions)
                until = len(exact.indices) if exact.decided.all() else int(exact.decided.argmin())
                np.testing.assert_array_equal(chosen.indices[row][:until], exact.indices[:until])
                sure += until
    print(
        f"{engine} {shape}: {tally}, {sure} picks equal to the oracle's one for one,"
        f" {same / entries:.1%} of the entries those of gram"
    )
    assert tally.decided > 0.5 * (tally.steps - tally.spent)
    assert same > 0.9 * entries


@pytest.mark.deep
@pytest.mark.parametrize("engine", KERNELS)
def test_doubts_are_those_of_gram(engine: str) -> None:
    for given in (forced_pivots(3), batch(SMALL, 1)):
        found, other = (outcome(kept_alone(name, SMALL.keep), given) for name in (engine, "gram"))
        doubted = found.growth > MOST_GROWTH
        np.testing.assert_array_equal(doubted, other.growth > MOST_GROWTH)
        np.testing.assert_allclose(found.growth[~doubted], other.growth[~doubted], rtol=0.1)
        print(f"{engine}: {doubted.sum()} of {SMALL.rows} doubted, as by gram")


def without_gate(gate: jax.Array, energy: jax.Array, norms: jax.Array) -> jax.Array:
    return SCORES(jnp.ones_like(gate), energy, norms)


def last_of_equals(score: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest = jnp.max(score)
    return jnp.max(jnp.where(score == largest, places, -1)), largest >= 0


SCORES = kernels.scores
FAULTS: dict[str, tuple[str, Callable]] = {
    "wrong gate": ("scores", without_gate),
    "ties to the highest index": ("choose", last_of_equals),
}


@pytest.mark.deep
@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_planted_faults_are_caught(
    fault: str | None, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is not None:
        monkeypatch.setattr(kernels, *FAULTS[fault])
    shape = Shape(8, 24, 24, 16)
    problems = batch(shape, 11, n=22, d=24, kind="duplicated", relevance="with zeros")
    chosen = outcome(alone(engine, shape.keep), problems)
    caught = 0
    for row, problem in enumerate(problems.problems):
        conditions = problem.conditions | {"first": problems.options["first"][row], "alpha": 1.0}
        caught += not certify(
            problem.tokens, chosen.indices[row], count=shape.keep, **conditions
        ).ok
    print(f"{engine}, {fault}: caught in {caught} of {shape.rows} problems")
    assert caught == 0 if fault is None else caught >= shape.rows // 2


@pytest.mark.parametrize("engine", KERNELS)
def test_questions_about_one_image_share_its_gram_matrix(engine: str) -> None:
    problem = draw(5, n=24, d=24, kind="clustered", relevance="none", dtype="float32")
    asked = np.random.default_rng(0).uniform(0, 1, (4, 24)).astype(np.float32)
    image = prepare(problem.tokens)
    together = select(image, 16, relevance=asked, alpha=0.75, engine=engine)
    for row, relevance in enumerate(asked):
        result = certify(
            problem.tokens, together.indices[row], count=16, energy=together.energy[row],
            relevance=relevance, alpha=0.75,
        )  # fmt: skip
        assert result.ok, result.violations[:3]
    assert len({tuple(row) for row in together.indices.tolist()}) == len(asked)


# Where they may run.


def backend(monkeypatch: pytest.MonkeyPatch, name: str, devices: int = 1) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: name)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(kernels, "_interpreting", False)


def test_the_choice_by_backend_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(576, 128), (1024, 340), (2340, 780), (2928, 976), (10549, 3516)]
    chosen = {}
    for name in ("cpu", "tpu", "gpu"):
        with monkeypatch.context() as patch:
            backend(patch, name)
            chosen[name] = [engines.resolve("auto", *size) for size in sizes]
            backend(patch, name, devices=4)  # XLA cannot divide a kernel
            assert not {engines.resolve("auto", *size) for size in sizes} & set(KERNELS)
            mesh = jax.sharding.AbstractMesh((4,), ("data",))
            with jax.sharding.use_abstract_mesh(mesh):
                assert engines.resolve("auto", 576, 128) not in KERNELS
    assert chosen["tpu"] == ["pallas_tpu"] * 4 + ["blocked"]
    assert chosen["gpu"] == ["pallas_gpu"] + ["schur"] * 4
    assert chosen["cpu"] == ["lazy"] * 5


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        ((9, 0), ["mosaic_gpu"] * 4 + ["schur"]),
        ((8, 0), ["pallas_gpu"] + ["schur"] * 4),
        ((10, 0), ["pallas_gpu"] + ["schur"] * 4),  # it has clusters, and was not timed
        (None, ["pallas_gpu"] + ["schur"] * 4),
    ],
)
def test_a_gpu_with_clusters_takes_the_kernel_that_was_ahead(
    capability: tuple[int, int] | None, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(monkeypatch, "gpu")
    monkeypatch.setattr(kernels, "compute_capability", lambda: capability)
    sizes = [(576, 128), (1024, 340), (2928, 976), (10549, 3516), (20000, 100)]
    assert [engines.resolve("auto", *size) for size in sizes] == chosen
    # Its panels take a Gram matrix; where that does not fit the rows of `lazy` may, or the tokens.
    few = {engines.resolve("auto", 10549, 128, 64, max_bytes=limit) for limit in (10**8, 10**7)}
    assert few <= {"lazy", "feature"}
    backend(monkeypatch, "gpu", devices=4)
    assert engines.resolve("auto", 576, 128) == "schur"


def test_a_kernel_needs_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, "cpu")
    for engine, needs in (("pallas_tpu", "TPU"), ("pallas_gpu", "GPU")):
        with pytest.raises(CallError, match=f"{engine}.* runs on a {needs}, this is a CPU"):
            select(np.ones((4, 5), np.float32), 2, engine=engine)


def test_a_problem_that_is_too_large_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        assert engines.resolve("pallas_tpu", 10549, 3516) == "blocked"
        assert engines.resolve("pallas_gpu", 1100, 10) == "gram"
        assert engines.resolve("pallas_gpu", 1100, 10) == "gram"
    assert [record.message for record in caplog.records] == [
        "engine 'pallas_tpu' does not hold 10549 tokens with 3516 kept: 'blocked' runs instead",
        "engine 'pallas_gpu' does not hold 1100 tokens with 10 kept: 'gram' runs instead",
    ]


def lowered(engine: types.ModuleType, platform: str, n: int, keep: int, rows: int) -> str:
    """The program for another platform, as text."""

    @jax.jit
    @jax.vmap
    def alone(gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array) -> Outcome:
        return engine.factor(gram, gate, first, valid, keep)

    kinds = (((n, n), "float32"), ((n,), "float32"), ((), "int32"), ((n,), "bool"))
    shapes = [jax.ShapeDtypeStruct((rows, *shape), kind) for shape, kind in kinds]
    with on(absent_gpu(platform)):
        return alone.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def absent_gpu(platform: str) -> Any:
    """A mesh of a GPU to lower for where there is none: from jax 0.12 on Triton asks for one."""
    if platform != "cuda" or jax.__version_info__ < (0, 12):
        return None
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    kind = jax.sharding.AxisType.Auto
    return jax.sharding.AbstractMesh((1,), ("data",), (kind,), abstract_device=device)


def on(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize(
    ("platform", "name", "call"), [("tpu", "tpu", "tpu_custom_call"), ("cuda", "gpu", "gpu.triton")]
)
def test_auto_takes_the_kernel_under_shard_map(
    platform: str, name: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend(monkeypatch, name, devices=4)
    gpu = absent_gpu(platform)
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",)) if gpu is None else gpu

    def chosen(tokens: jax.Array) -> jax.Array:
        return select(tokens, 16).indices

    tokens = jax.ShapeDtypeStruct((4, 40, len(call)), jnp.float32)  # traced nowhere else
    divided = jax.shard_map(chosen, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    with on(gpu):
        text = jax.jit(divided).trace(tokens).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(call) == 1


def test_the_gpu_kernel_lowers_to_one_triton_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, "gpu")
    for n, keep, rows in ((576, 128, 32), (40, 40, 2), (1024, 340, 1)):
        text = lowered(pallas_gpu, "cuda", n, keep, rows)
        assert text.count("custom_call @__gpu$xla.gpu.triton") == 1
        assert f"grid_x = {rows} " in text and "num_stages = 1 " in text


def test_the_gpu_kernel_ends_each_step_with_a_barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else makes a row that one thread wrote visible to the others."""
    backend(monkeypatch, "gpu")
    shapes = [jax.ShapeDtypeStruct(*of) for of in (((64, 64), "float32"), ((64,), "float32"),
                                                  ((), "int32"), ((64,), "bool"))]  # fmt: skip
    text = str(jax.make_jaxpr(lambda *a: pallas_gpu.factor(*a, 16))(*shapes))
    assert text.count("debug_barrier") == 1
    # The last operation of the loop's body: behind its writes, before the next step's reads.
    assert re.search(r"<- [^\n]*\n\s+debug_barrier(_p)?\s+in \(", text)


def test_the_tpu_kernel_lowers_to_one_mosaic_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, "tpu")
    for n, keep, rows in ((576, 128, 2), (2928, 976, 1)):
        assert lowered(pallas_tpu, "tpu", n, keep, rows).count("@tpu_custom_call") == 1


def test_the_largest_sizes_that_are_promised_fit() -> None:
    for n, keep in ((576, 192), (1024, 340), (2340, 780), (2928, 976)):
        assert pallas_tpu.fits(n, keep)
        # G and the factor alone.
        assert pallas_tpu.vmem_bytes(n, keep) > 4 * (n * n + n * keep)
    assert not pallas_tpu.fits(3600, 1200) and not pallas_tpu.fits(10549, 1)
    assert pallas_gpu.fits(1024, 1024) and not pallas_gpu.fits(1025, 1)
