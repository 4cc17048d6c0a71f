"""The TPU's own compiler takes the selection engines, for two kinds of chip.

Needs libtpu, but no TPU: `make test-tpu`.
"""

import pytest

from resprune_jax.engines import pallas_tpu
from resprune_jax.experiments.compile_check.selection import cases, selection_row
from resprune_jax.experiments.compile_check.tpu.target import TpuTarget, vmem

pytestmark = pytest.mark.tpu

TOPOLOGIES = ("v5e:2x2", "v6e:2x2")


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("engine", TpuTarget.engines)
def test_an_engine_compiles(topology: str, engine: str) -> None:
    target = TpuTarget(topology)
    row = selection_row(engine, (576, 4096, 128), 8, target, target.devices()[0])
    print(topology, row.facts())
    assert row.fits
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
    assert ("pallas_tpu", (2928, 4096, 976), 8) in made
    assert not [case for case in made if case[0] == "pallas_tpu" and case[1][0] > 4000]
    text = '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"%d"}]'
    assert vmem(text % 7 + text % 4096 + '"scoped_memory_configs":[{"size":"9999"}]') == 4096
    assert vmem("") == 0
