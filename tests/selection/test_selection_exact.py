"""`make test-exact`: the certificate at every size, from one token to the shapes of a 7B model.

Each shape compiles on its own, so this is too long for `make test`.
"""

import numpy as np
import pytest

from resprune_jax import select
from resprune_jax.certificate import certify
from resprune_jax.exact import greedy
from tests.selection.batches import Shape, batch, run
from tests.selection.problems import KINDS, RELEVANCES, draw

pytestmark = pytest.mark.exact

ENGINES = ("feature", "gram", "blocked", "lazy", "schur")
# Real shapes: (batches, shape); the last ones are LLaVA-1.5-7B's.
SHAPES = [
    (60, Shape(8, 1, 1, 1)),
    (40, Shape(8, 2, 3, 2)),
    (40, Shape(8, 7, 1, 7)),
    (20, Shape(8, 64, 64, 64)),
    (20, Shape(8, 64, 64, 64, "bfloat16")),
    (10, Shape(4, 200, 1024, 100)),
    (10, Shape(4, 333, 100, 333)),
    (6, Shape(4, 700, 300, 200)),
    (4, Shape(2, 700, 4096, 192)),
    (4, Shape(2, 700, 4096, 192, "bfloat16")),
    (4, Shape(2, 576, 4096, 192)),
    (3, Shape(1, 576, 4096, 576)),
]
# What the other families have: LLaVA-NeXT for a wide picture and at its most, a 4K picture of
# Qwen2.5-VL. The smaller budgets of each are prefixes.
LARGE = [
    ("gram", Shape(1, 2340, 4096, 780)),
    ("blocked", Shape(1, 2340, 4096, 780)),
    ("gram", Shape(1, 2928, 4096, 976, "bfloat16")),
    ("blocked", Shape(1, 2928, 4096, 976)),
    ("blocked", Shape(1, 2928, 4096, 976, "bfloat16")),
    ("lazy", Shape(1, 2928, 4096, 976)),
    ("lazy", Shape(1, 2928, 4096, 976, "bfloat16")),
    ("blocked", Shape(1, 10549, 3584, 3516, "bfloat16")),
    ("lazy", Shape(1, 10549, 3584, 3516, "bfloat16")),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("batches", "shape"), SHAPES, ids=str)
def test_step_certificate_of_every_size(batches: int, shape: Shape, engine: str) -> None:
    problems = steps = spent = decided = 0
    worst = worst_energy = 0.0
    for rng_seed in range(batches):
        given = batch(shape, 1000 + rng_seed)
        chosen = run(shape, given, engine)
        for row, problem in enumerate(given.problems):
            result = given.certify(row, chosen)
            assert result.ok, f"{problem.kind}: {result.violations[:3]}"
            problems, steps = problems + 1, steps + result.steps
            spent, decided = spent + result.exhausted, decided + result.decided
            worst = max(worst, result.worst_slack)
            worst_energy = max(worst_energy, result.worst_energy)
    print(
        f"{engine} {shape}: {problems} problems, {steps} steps, {spent} exhausted, {decided}"
        f" decided, worst slack {worst:.1e}, worst energy error {worst_energy:.1e}"
    )
    assert decided > 0.5 * (steps - spent)


@pytest.mark.parametrize("kind", ["clustered", "scaled"])
@pytest.mark.parametrize(("engine", "shape"), LARGE, ids=str)
def test_step_certificate_of_large_images(engine: str, shape: Shape, kind: str) -> None:
    """Two problems each, unpadded: regions that look alike, and norms over orders of magnitude.

    Of the first kind, which real tokens resemble, most late picks are ties to within the slack:
    the certificate holds, and the energies are exact, but few picks have one answer only. The
    second kind decides.
    """
    problem = draw(7, n=shape.n, d=shape.d, kind=kind, relevance="with zeros", dtype=shape.dtype)
    chosen = select(problem.tokens, shape.keep, engine=engine, relevance=problem.relevance,
                    alpha=0.75, first=problem.first)  # fmt: skip
    conditions = {**problem.conditions, "alpha": 0.75}
    result = certify(problem.tokens, np.asarray(chosen.indices), energy=np.asarray(chosen.energy),
                     **conditions)  # fmt: skip
    print(
        f"{engine} {shape} {kind}: {result.steps} steps, {result.exhausted} exhausted,"
        f" {result.decided} decided, worst slack {result.worst_slack:.1e}, worst energy error"
        f" {result.worst_energy:.1e}"
    )
    assert result.ok, result.violations[:3]
    assert result.steps == shape.keep
    assert result.decided > (0.9 if kind == "scaled" else 0.02) * shape.keep


@pytest.mark.parametrize("engine", ENGINES)
def test_every_kind_unpadded_and_alone(engine: str) -> None:
    """Each problem in its own shape, as a user's first call would be."""
    steps = equal = 0
    for i, kind in enumerate(KINDS):
        for j, relevance in enumerate(RELEVANCES):
            problem = draw(100 * i + j, max_n=40 + 30 * j, max_d=600, kind=kind,
                           relevance=relevance)  # fmt: skip
            keep = max(1, problem.count // 2)
            chosen = select(problem.tokens, keep, engine=engine, relevance=problem.relevance,
                            alpha=problem.alpha, first=problem.first)  # fmt: skip
            result = certify(problem.tokens, np.asarray(chosen.indices),
                             energy=np.asarray(chosen.energy), **problem.conditions)  # fmt: skip
            assert result.ok, f"{problem.kind}: {result.violations[:3]}"
            exact = greedy(problem.tokens, keep, **problem.conditions)
            sure = keep if exact.decided.all() else int(exact.decided.argmin())
            np.testing.assert_array_equal(chosen.indices[:sure], exact.indices[:sure])
            steps, equal = steps + result.steps, equal + sure
    print(f"{engine}: {steps} steps, {equal} picks equal one for one")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_against_each_sample_alone(engine: str) -> None:
    """Another shape is another order of float32 sums: the certificate holds, most picks agree."""
    shape = Shape(6, 300, 512, 128)
    same = total = 0
    for rng_seed in range(4):
        given = batch(shape, 50 + rng_seed)
        chosen = run(shape, given, engine)
        for row in range(shape.rows):
            own = {name: value[row] for name, value in given.options.items()}
            alone = select(given.tokens[row], shape.keep, engine=engine, **own)
            result = certify(
                given.tokens[row], np.asarray(alone.indices), count=int(alone.count),
                energy=np.asarray(alone.energy), **given.problems[row].conditions,
            )  # fmt: skip
            assert result.ok, result.violations[:3]
            same += int((np.asarray(alone.indices) == chosen.indices[row]).sum())
            total += shape.keep
    print(f"{engine}: {same} of {total} picks equal")
