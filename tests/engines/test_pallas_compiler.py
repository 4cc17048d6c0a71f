"""The TPU's own compiler takes the selection engines, for two kinds of chip.

Needs libtpu, but no TPU: `make test-tpu`.
"""

from functools import cache

import jax
import pytest

from resprune_jax import engines
from resprune_jax.engines import pallas_tpu
from resprune_jax.experiments.compile_check.selection import cases, selection_row
from resprune_jax.experiments.compile_check.tpu.target import TpuTarget, vmem

pytestmark = pytest.mark.tpu

TOPOLOGIES = ("v5e:2x2", "v6e:2x2")
SMALL, MIDDLE, LARGE = (576, 4096, 128), (2928, 4096, 976), (10549, 3584, 3516)


@cache
def cycles(engine: str, size: tuple[int, int, int], batch: int, dtype: str) -> int:
    """What the compiler expects of an engine, the fewest trips of loops that depend on tokens."""
    target = TpuTarget(TOPOLOGIES[0])
    row = selection_row(engine, size, batch, target, target.devices()[0], dtype)
    found: int = row.figures.facts["cycles"]
    print(f"{engine} {size}, batch {batch}, {dtype}: {found:,} cycles")
    return found


# The kernel against XLA's loops where it fits; beyond that, and on several chips, these alone.
@pytest.mark.parametrize(
    ("size", "batch", "dtype", "engines_there"),
    [
        (SMALL, 1, "bfloat16", ("pallas_tpu", "gram", "blocked", "lazy", "feature")),
        (SMALL, 32, "bfloat16", ("pallas_tpu", "gram", "blocked")),
        (SMALL, 1, "float32", ("pallas_tpu", "gram", "lazy")),
        (SMALL, 1, "bfloat16", ("gram", "blocked", "feature")),
        (MIDDLE, 1, "bfloat16", ("blocked", "gram")),
        (LARGE, 1, "bfloat16", ("blocked", "gram", "feature")),
    ],
)
def test_auto_is_the_fastest_by_plan(
    size: tuple[int, int, int], batch: int, dtype: str, engines_there: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    by_plan = min(engines_there, key=lambda engine: cycles(engine, size, batch, dtype))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    alone = "pallas_tpu" in engines_there or size == LARGE
    monkeypatch.setattr(jax, "device_count", lambda: 1 if alone else 4)
    assert engines.resolve("auto", size[0], size[2]) == by_plan == engines_there[0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("engine", TpuTarget.engines)
def test_an_engine_compiles(topology: str, engine: str) -> None:
    target = TpuTarget(topology)
    row = selection_row(engine, SMALL, 8, target, target.devices()[0])
    print(topology, row.facts())
    assert row.fits and row.figures.facts["cycles"] > 10**5
    if engine == "pallas_tpu":  # scratch at least
        assert row.figures.facts["VMEM_KiB"] >= 128 * 640 * 4 / 1024


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_vmem_holds_the_largest_kernel(topology: str) -> None:
    size = (2928, 64, 976)  # the width is the product's alone
    target = TpuTarget(topology)
    # A batch: of one image XLA would keep the Gram matrix in VMEM itself, outside of the kernel.
    row = selection_row("pallas_tpu", size, 8, target, target.devices()[0])
    planned = pallas_tpu.vmem_bytes(size[0], size[2])
    used = row.figures.facts["VMEM_KiB"] * 1024
    print(f"{topology}: {used / 2**20:.1f} MiB of VMEM, {planned / 2**20:.1f} counted on")
    assert row.fits and 0.9 * planned < used <= planned


def test_what_is_compiled_and_how_vmem_is_read() -> None:
    made = list(cases(TpuTarget("v5e:2x2")))
    assert ("pallas_tpu", (2928, 4096, 976), 32, "bfloat16") in made
    assert not [case for case in made if case[0] == "pallas_tpu" and case[1][0] > 4000]
    text = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"%d"}]'
    assert vmem(text % 7 + text % 4096 + '"scoped_memory_configs":[{"size":"9999"}]') == 4096
    assert vmem("") == 0
