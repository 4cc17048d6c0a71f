"""`resprune gpu-check` with XLA's own compiler for GPUs.

Needs JAX's CUDA plug-in, but no GPU: `make test-gpu-compile`.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from resprune_jax.engines import exchange, mosaic_gpu
from resprune_jax.experiments import cli
from resprune_jax.experiments.compile_check.cases import CASES
from resprune_jax.experiments.compile_check.gpu import launches
from resprune_jax.experiments.compile_check.gpu.target import GpuTarget
from resprune_jax.experiments.compile_check.hlo import read_program
from resprune_jax.experiments.compile_check.models import case_rows
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.selection import selection_row
from resprune_jax.models.decoder import layers as decoder_layers
from tests.experiments.compile_check.gpu_bounds import BOUNDS, Bound
from tests.experiments.compile_check.shallow import shallow

pytestmark = pytest.mark.gpucompile

GIB = 2**30
LLAVA = "llava-1.5-7b"


@pytest.fixture(autouse=True)
def default_precision() -> Any:
    """Products as users have them, not those of the parity tests."""
    with jax.default_matmul_precision("default"):
        yield


def needed(row: Row) -> Bound:
    """What a program launches."""
    kernels = row.figures.facts["kernels"]
    return Bound(
        kernels["launches"],
        sum(kernels["launches_a_trip"]),
        round(kernels.get("launches_a_layer", 0) * kernels.get("layers", 0)),
        kernels["host_reads"],
        sum(kernels["host_reads_a_trip"]),
    )


def over(row: Row) -> list[str]:
    """Where a program needs more than it may."""
    tokens = int(row.setting["visual_tokens"])
    most = BOUNDS[row.program, tokens]
    return [
        f"{row.program} with {tokens} visual tokens: {name} {value}, at most {bound}"
        for name, value, bound in zip(Bound._fields, needed(row), most, strict=True)
        if value > bound
    ]


def test_llava_launches_no_more_than_it_may() -> None:
    rows = list(case_rows(LLAVA, CASES[LLAVA], GpuTarget("h100"), 1))
    assert [(row.program, row.setting["visual_tokens"]) for row in rows] == list(BOUNDS)
    for row in rows:
        assert row.passed, row.verdict
        print(f"{row.program}, {dict(row.setting)}: {needed(row)}, {row.total or 0:,} bytes")
    # All programs that are over, not the first alone.
    assert [line for row in rows for line in over(row)] == []
    for row in rows:
        assert row.total is not None and row.total < 16 * GIB
        if row.program == "decode":
            memory = row.compiled.memory
            assert memory is not None and memory.aliased >= row.donated > 0
            assert memory.temporaries < row.donated / 4  # the cache is not held twice
        if row.program in ("encode", "prefill", "decode"):
            assert row.setting["attention"]
            assert row.figures.facts["kernels"]["launches_a_layer"] > 1


@pytest.mark.parametrize(
    ("name", "batch", "launches"),
    [
        ("qwen2-vl-7b", 1, 44),
        ("qwen2-vl-7b", 32, 390),
        ("qwen2.5-vl-7b", 1, 44),
        ("qwen2.5-vl-7b", 32, 218),
    ],
)
def test_qwens_towers_ask_the_host_nothing(name: str, batch: int, launches: int) -> None:
    """Two blocks, one of windows where there are such; scores go in parts, or cuDNN attends."""
    few = dataclasses.replace(CASES[name], hf=shallow(name, 1))
    row = next(case_rows(name, few, GpuTarget("h100"), batch))
    kernels = row.figures.facts["kernels"]
    print(name, batch, dict(row.setting), dict(row.figures.columns), row.total)
    assert row.program == "encode" and row.passed
    assert kernels["host_reads"] == 0 and kernels["launches_a_trip"] == []
    assert kernels["launches"] <= launches


def test_a_launch_more_in_every_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds would not be worth much if they let this pass."""
    name, target = LLAVA, GpuTarget("h100")
    few = dataclasses.replace(CASES[name], hf=shallow(name, 3))

    def made() -> Bound:
        rows = case_rows(name, few, target, 1)
        return needed(next(row for row in rows if row.program == "prefill"))

    before = made()
    call = decoder_layers.RMSNorm.__call__

    def twice(self: Any, x: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(call(self, jax.lax.optimization_barrier(x * 2)))

    monkeypatch.setattr(decoder_layers.RMSNorm, "__call__", twice)
    after = made()
    print(before, after)
    assert after.in_layers >= before.in_layers + 3


ENGINES = GpuTarget("h100").engines


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_compiles(engine: str) -> None:
    target = GpuTarget("h100")
    row = selection_row(engine, (576, 4096, 128), 1, target, target.devices()[0])
    kernels = row.figures.facts["kernels"]
    print(engine, dict(row.figures.columns))
    assert row.fits
    if engine in ("pallas_gpu", "mosaic_gpu"):  # all picks in one launch
        assert kernels["launches"] < 64 and not kernels["loops"][:-1]


@pytest.mark.parametrize("size", [(2340, 512, 780), (2928, 512, 976), (10549, 512, 3516)])
def test_many_tokens_take_a_launch_a_panel(
    size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")  # what the assembler says of the kernels
    target = GpuTarget("h100")
    row = selection_row("mosaic_gpu", size, 1, target, target.devices()[0])
    said = capfd.readouterr().out
    plan = mosaic_gpu.plan_of(size[0], size[2])
    (panels, *_) = row.figures.facts["kernels"]["loops"]
    print(size, plan, panels, dict(row.figures.columns))
    assert row.fits and panels["trips"] == -(-size[2] // plan.keep) - 1
    assert panels["launches"] <= 8  # a panel, 16 to 64 picks
    # One matrix and what the guard would need, not two matrices.
    memory = row.compiled.memory
    assert memory is not None and memory.temporaries < 1.6 * 4 * size[0] ** 2 + 12 * 2**20
    spilled = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", said)]
    print(registers, spilled)
    assert len(registers) == len(spilled) >= 1 and set(spilled) == {("0", "0")}
    assert max(registers) * plan.warpgroups * exchange.WARPGROUP <= 65536


TINY = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from resprune_jax.experiments.compile_check.gpu.target import GpuTarget

target = GpuTarget("h100")
where = SingleDeviceSharding(target.devices()[0])

def tiny(x, w, n):
    x = jax.lax.fori_loop(0, 7, lambda i, c: jnp.tanh(c @ w), x)
    x = jax.lax.while_loop(lambda c: jnp.sum(c) > 3, lambda c: jnp.sin(c @ w), x)
    x = jax.lax.cond(n > 2, lambda c: jnp.cos(c @ w) @ w, lambda c: c, x)
    y = jnp.zeros_like(x).at[n].add(3.0)
    return x.sum(axis=0), jnp.cumsum(x, axis=0), y

x = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=where)
n = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
made = jax.jit(tiny).lower(x, x, n).compile(dict(target.options))
open(sys.argv[1], "w").write(made.as_text())
"""


def test_the_count_is_what_xla_will_launch(tmp_path: Path) -> None:
    """XLA writes down the launches of a program where it is asked to, each once."""
    text, dump = tmp_path / "tiny.hlo", tmp_path / "dump"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text"
    subprocess.run(
        [sys.executable, "-c", TINY, text], check=True, cwd=Path(__file__).parents[3],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    (sequence,) = dump.glob("*jit_tiny*.thunk_sequence.txt")
    said = re.findall(r"^\s*\d+: k(\w+)", sequence.read_text(), re.MULTILINE)
    theirs = Counter(said)
    print(theirs)
    assert theirs["While"] == 2 and theirs["Conditional"] == 1
    assert theirs["CustomKernel"] + theirs["Copy"] + 3 == theirs.total()

    ours = _once(launches.structure(read_program(text.read_text())))
    # Of loops whose trips are known XLA writes the condition down, too, and of a conditional the
    # smaller branch: a kernel and a copy.
    assert ours + 1 + 1 == theirs["CustomKernel"] + theirs["Copy"]


def _once(block: launches.Block) -> int:
    """Launches, every loop's once, without the last look at a condition."""
    asked = sum(loop.trips is None for loop in block.loops)
    inside = sum(_once(loop.body) for loop in block.loops)
    repeated = sum(
        sum(launch in loop.body.launches for launch in block.launches)
        for loop in block.loops if loop.trips is None
    )  # fmt: skip
    assert repeated >= asked
    return len(block.launches) - repeated + inside


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = dataclasses.replace(CASES[LLAVA], hf=shallow(LLAVA, 1))
    monkeypatch.setitem(CASES, LLAVA, small)
    words = ["--model", LLAVA, "--card", "a100", "--json"]
    assert cli.main(["gpu-check", *words]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["plugin"].startswith("jax-cuda1")
    assert [row["card"] for row in report["rows"]] == ["a100"] * 8
    assert said.err.count("fits, launches") == 8
    for row in report["rows"]:
        assert row["total"] <= row["limit"] and row["kernels"]["launches"] > 0


def test_what_does_not_fit_is_said() -> None:
    target = GpuTarget("h100")
    where = SingleDeviceSharding(target.devices()[0])
    from resprune_jax.experiments.compile_check.compiler import compile_abstract

    big = jax.ShapeDtypeStruct((2**18, 2**17), jnp.bfloat16, sharding=where)
    made = compile_abstract(jax.jit(lambda x: (x * 2, x + 1)).lower, big, options=target.options)
    row = Row("m", "product", {}, made, target.limit)
    assert row.verdict.startswith("does not fit") and not row.passed
