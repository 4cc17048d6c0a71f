"""On a GPU: answers are those of a CPU, engines are certified, and no run differs from the last.

Needs a GPU that JAX sees: `make test-gpu`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax import prepare, select
from resprune_jax.engines import ENGINES, mosaic_gpu
from resprune_jax.models import load_model
from resprune_jax.models.decoder import attention
from tests.gpu import pocket_logits
from tests.selection.batches import Shape, Tally, batch, run

pytestmark = pytest.mark.gpu

SHAPES = (Shape(8, 96, 160, 48), Shape(4, 576, 640, 128), Shape(4, 576, 640, 128, "bfloat16"))
PANELS = (Shape(3, 2400, 640, 200), Shape(3, 9000, 320, 100))
"""What `mosaic_gpu` does in several launches; of the second a thread has two tokens."""
REPEATS = 100


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu() -> None:
    assert jax.default_backend() == "gpu", "these tests say something on a GPU alone"


@pytest.fixture(scope="module")
def of_a_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The pocket model's logits, masks and tokens on this machine's CPU."""
    path = tmp_path_factory.mktemp("cpu") / "logits.npz"
    command = [sys.executable, str(Path(pocket_logits.__file__)), str(path)]
    subprocess.run(command, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=300)
    with np.load(path) as file:
        return dict(file)


def parted(here: dict[str, np.ndarray], there: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of logits, as a share of the parity bound."""
    return {
        name: float(np.abs(here[name] - there[name]).max() / (1e-5 * max(1.0, there[name].std())))
        for name in ("full", "pruned")
    }


def test_float32_answers_are_those_of_a_cpu(of_a_cpu: dict[str, np.ndarray]) -> None:
    here = pocket_logits.made(load_model("pocket", dtype="float32"))
    shares = parted(here, of_a_cpu)
    print(f"{jax.devices()[0].device_kind}: logits part by {shares} of the bound")
    np.testing.assert_array_equal(here["masks"], of_a_cpu["masks"])
    np.testing.assert_array_equal(here["tokens"], of_a_cpu["tokens"])
    assert max(shares.values()) <= 1


def test_the_bound_tells_tf32_from_float32(of_a_cpu: dict[str, np.ndarray]) -> None:
    rounded = load_model("pocket", dtype="float32", precision="tensorfloat32")
    shares = parted(pocket_logits.made(rounded), of_a_cpu)
    print(f"in TF32 logits part by {shares} of the bound")
    assert min(shares.values()) > 10


ATTENTIONS = {
    "prefill": ((4, 192, 32, 32, 128), {"causal": True}),
    "grouped queries": ((2, 640, 28, 4, 128), {"causal": True}),
    "a window": ((2, 256, 8, 8, 64), {"causal": True, "window": 100}),
    "vision tower": ((2, 577, 16, 16, 64), {}),
    "frames of several lengths": ((3, 1024, 16, 16, 80), {"lengths": [1024, 512, 512]}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_cudnn_s_attention_is_xla_s(name: str) -> None:
    (rows, length, heads, kv_heads, width), options = ATTENTIONS[name]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (rows, length, count, width), "bfloat16")
        for key, count in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    real = np.arange(length) < np.array([length, *[length // 2] * (rows - 1)])[:, None]
    padding: dict[str, Any] = {"valid": real, "padded_behind": True} if "causal" in options else {}
    if "lengths" in options:
        options = {"lengths": np.asarray(options["lengths"], np.int32)}

    def attended(engine: attention.Engine, **more: Any) -> np.ndarray:
        with attention.paths_taken() as paths:
            program = jax.jit(lambda q, k, v: attention.attend(q, k, v, engine=engine, **more))
            made = np.asarray(program(q, k, v), np.float32)
        assert paths == {"cudnn" if engine == "auto" else engine}
        return made

    got = attended("auto", **options, **padding)
    want = attended("xla", **options, **padding)
    apart = float(np.abs(got - want)[real].max())
    print(f"{name}: {apart:.1e} apart, of values up to {np.abs(want).max():.1f}")
    assert apart <= 2.0**-6  # two roundings of bfloat16 at 1


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "pallas_tpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_certificate(shape: Shape, engine: str) -> None:
    tally = Tally()
    for rng_seed in range(2):
        problems = batch(shape, rng_seed)
        chosen = run(shape, problems, engine)
        for row in range(shape.rows):
            tally.certify(shape, problems, row, chosen)
    print(f"{engine} {shape}: {tally}")
    assert tally.decided > 0.3 * tally.steps


@pytest.mark.parametrize("shape", PANELS, ids=str)
def test_step_certificate_in_panels(shape: Shape) -> None:
    assert mosaic_gpu.plan_of(shape.n, shape.keep).panel
    tally = Tally()
    for rng_seed in range(2):
        problems = batch(shape, rng_seed, n=shape.n, d=shape.d)
        chosen = run(shape, problems, "mosaic_gpu")
        for row in range(shape.rows):
            tally.certify(shape, problems, row, chosen)
    print(f"mosaic_gpu {shape}: {tally}")
    assert tally.decided > 0.3 * tally.steps


@pytest.mark.parametrize(
    ("engine", "shape"),
    [
        ("pallas_gpu", Shape(32, 576, 640, 128)), ("mosaic_gpu", Shape(32, 576, 640, 128)),
        *(("mosaic_gpu", shape) for shape in PANELS),
    ],
)  # fmt: skip
def test_a_kernel_gives_the_same_every_time(engine: str, shape: Shape) -> None:
    problems = batch(shape, 5)
    options: dict[str, Any] = {**problems.options}
    given = prepare(problems.tokens, valid=options.pop("valid"))
    first = np.asarray(select(given, shape.keep, engine=engine, **options).indices)
    for _ in range(REPEATS):
        again = np.asarray(select(given, shape.keep, engine=engine, **options).indices)
        np.testing.assert_array_equal(again, first)
    alone = prepare(problems.tokens[:1], valid=problems.options["valid"][:1])
    one = select(alone, shape.keep, engine=engine, **{k: v[:1] for k, v in options.items()})
    np.testing.assert_array_equal(np.asarray(one.indices), first[:1])
    print(f"{engine}: {REPEATS} runs of {shape} alike")
