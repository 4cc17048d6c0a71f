"""Triton's compiler and NVIDIA's assembler take the GPU kernel, for two kinds of GPU.

Needs the triton package, but no GPU: `make test-triton`. XLA carries a Triton of its own: this
shows what such a compiler makes of the kernel, not the very code that will run.
"""

import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.engines import pallas_gpu
from tests.engines.test_pallas import backend, lowered

pytestmark = pytest.mark.triton

CHIPS = [80, 90]  # A100; H100 and H200
CASES = [(576, 128, 1), (576, 192, 32), (1024, 340, 1), (40, 40, 2)]


@functools.cache
def triton_code(n: int, keep: int, rows: int) -> tuple[str, int]:
    """The kernel in Triton's language, as JAX lowers it, and the warps that JAX asks for."""
    from jax._src.pallas.triton import lowering

    made: list[Any] = []
    lower = lowering.lower_jaxpr_to_triton_module

    def seen(*given: Any, **named: Any) -> Any:
        made.append(lower(*given, **named))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        backend(patch, "gpu")
        patch.setattr(lowering, "lower_jaxpr_to_triton_module", seen)
        launch = lowered(pallas_gpu, "cuda", n, keep, rows)
    (only,) = made
    (warps,) = re.findall(r"num_warps = (\d+)", launch)
    return only.module.operation.get_asm(enable_debug_info=False), int(warps)


def assembled(code: str, warps: int, capability: int, folder: Path) -> tuple[str, dict[str, int]]:
    """PTX, and what the assembler says that the kernel needs."""
    import triton
    from triton.backends.compiler import GPUTarget

    source, binary = folder / "kernel.ttir", folder / "kernel.cubin"
    source.write_text(code, encoding="utf-8")
    options = {"num_warps": warps, "num_stages": 1}
    made = triton.compile(str(source), target=GPUTarget("cuda", capability, 32), options=options)
    binary.write_bytes(made.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    return made.asm["ptx"], {k: int(v) for k, v in re.findall(r"(\w+):(\d+)", said.stdout)}


def waits_before_the_next_pick(ptx: str) -> bool:
    """Whether all threads meet between what a turn of a loop writes and the next turn."""
    lines = ptx.splitlines()
    turns = 0
    for place, line in enumerate(lines):
        if "st.global" not in line:
            continue
        jump = next((i for i in range(place, len(lines)) if re.search(r"\bbra\b", lines[i])), None)
        if jump is None:  # behind the loops
            continue
        turns += 1
        if not any("bar.sync" in between for between in lines[place:jump]):
            return False
    return turns > 0


@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize(("n", "keep", "rows"), CASES)
def test_the_kernel_compiles(n: int, keep: int, rows: int, capability: int, tmp_path: Path) -> None:
    ptx, needs = assembled(*triton_code(n, keep, rows), capability, tmp_path)
    spilled = needs["STACK"] + needs["LOCAL"]
    print(
        f"{n} -> {keep}, {rows} at once, sm_{capability}: {needs['REG']} registers a thread,"
        f" {spilled} bytes spilled"
    )
    assert f"sm_{capability}" in ptx
    # What a token carries stays in registers.
    assert spilled == 0 < needs["REG"] <= 128
    # The factor is read where it was written: not through the cache of what never changes.
    assert "ld.global" in ptx and "ld.global.nc" not in ptx
    assert waits_before_the_next_pick(ptx)


def test_a_kernel_without_its_barrier_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pallas_gpu.plgpu, "debug_barrier", lambda: None)
    ptx, _ = assembled(*triton_code.__wrapped__(576, 128, 1), 90, tmp_path)
    assert not waits_before_the_next_pick(ptx)
