"""What a compiled TPU program takes, on programs written by hand: a count can be checked by eye."""

import subprocess
from typing import Any

import pytest

from resprune_jax import errors
from resprune_jax.experiments.compile_check.tpu import kernel
from resprune_jax.experiments.compile_check.tpu.cycles import Cycles, Shape, read_cycles
from resprune_jax.experiments.compile_check.tpu.target import shape_of


def op(name: str, cycles: int) -> str:
    said = f'backend_config={{"estimated_cycles":"{cycles}"}}'
    return f"  %{name} = f32[8] fusion(%x), kind=kLoop, {said}"


COUNTED = """
%condition (arg: (s32[], f32[8])) -> pred[] {{
  %arg = (s32[], f32[8]) parameter(0)
  %stop = s32[] constant({stop})
  %i = s32[] get-tuple-element(%arg), index=0
  ROOT %lt = pred[] compare(%i, %stop), direction=LT
}}

%body (arg: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %arg = (s32[], f32[8]) parameter(0)
  %one = s32[] constant({step})
  %i = s32[] get-tuple-element(%arg), index=0
  %again = s32[] copy(%i)
  %next = s32[] {how}
{inside}
  ROOT %made = (s32[], f32[8]) tuple(%next, %x)
}}
"""

ASKED = """
%doubt (arg: (pred[], f32[8])) -> pred[] {{
  %arg = (pred[], f32[8]) parameter(0)
  ROOT %p = pred[] get-tuple-element(%arg), index=0
}}

%{name} (arg: (pred[], f32[8])) -> (pred[], f32[8]) {{
  %arg = (pred[], f32[8]) parameter(0)
{inside}
  ROOT %made = (pred[], f32[8]) tuple(%p, %x)
}}
"""


def loop(name: str, body: str, condition: str) -> str:
    return f"  %{name} = (s32[], f32[8]) while(%x), condition=%{condition}, body=%{body}"


def program(*computations: str, entry: tuple[str, ...]) -> str:
    inside = "\n".join(entry)
    return "\n".join((*computations, f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{inside}\n}}"))


@pytest.mark.parametrize(
    ("stop", "step", "trips"), [(5, 1, 5), (128, 16, 8), (130, 16, 9)], ids=str
)
def test_a_loop_that_counts_runs_so_often(stop: int, step: int, trips: int) -> None:
    counting = COUNTED.format(
        stop=stop, step=step, how="add(%again, %one)", inside=op("a", 70) + "\n" + op("b", 9)
    )
    text = program(counting, entry=(op("c", 1000), loop("w", "body", "condition")))
    assert read_cycles(text) == Cycles(1000 + 79 * trips, 1 + 2 * trips)


def test_blocks_are_full_and_doubts_are_none() -> None:
    """As in `lazy`: rows are made, then picks, in blocks whose trips the tokens decide."""
    inside = "\n".join((op("a", 10), loop("m", "make", "doubt"), loop("p", "pick", "doubt")))
    blocks = COUNTED.format(stop=100, step=0, how="get-tuple-element(%arg), index=0", inside=inside)
    making = ASKED.format(name="make", inside=op("b", 1000))
    picking = ASKED.format(name="pick", inside=op("d", 7)).partition("%pick")
    text = program(
        blocks, making, picking[1] + picking[2],
        entry=(loop("w", "body", "condition"), loop("guard", "make", "doubt")),
    )  # fmt: skip
    made = read_cycles(text, Shape(block=64, rows=32))
    assert made == Cycles(2 * (10 + 2 * 1000 + 64 * 7), 2 * (1 + 2 + 64), least=True)
    # Without blocks one turn makes all picks of the part, and all rows.
    made = read_cycles(text, Shape(block=0, rows=32))
    assert made == Cycles(10 + 4 * 1000 + 100 * 7, 1 + 4 + 100, least=True)


def test_the_larger_branch_and_kernels() -> None:
    branches = "\n".join(
        f"%{name} (x: f32[8]) -> f32[8] {{\n{op('a', cycles)}\n}}\n"
        for name, cycles in (("small", 3), ("large", 40))
    )
    text = program(
        branches,
        entry=(
            "  %c = f32[8] conditional(%x), true_computation=%small, false_computation=%large",
            '  %k = f32[8] custom-call(%x), custom_call_target="tpu_custom_call"',
            "  %n = f32[8] negate(%x)",
        ),
    )
    assert read_cycles(text) == Cycles(40, 2)


def test_the_shapes_of_loops() -> None:
    assert shape_of("blocked", 10549, 3516) == Shape(64)
    assert shape_of("blocked", 2928, 976) == Shape(32)
    assert shape_of("lazy", 576, 128) == Shape(0, 32)
    assert shape_of("lazy", 2928, 976) == Shape(64, 32)
    assert shape_of("gram", 2928, 976) == Shape()


def test_the_chunks_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before pick k lie k rows, in chunks of 32: of 64 picks 1 finds none, 32 one, 31 two."""

    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess((), 0, stdout="64000\n3000\n6360\n7960\n", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    kernel.kernel_cycles.cache_clear()
    assert kernel.kernel_cycles("v5e:2x2", 640, 64) == 64000 + 10 * 64 + 100 * (32 + 2 * 31)
    kernel.kernel_cycles.cache_clear()


def test_a_kernel_that_is_not_profiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        said = "x\nF1 Static LLO profiling of gather failed: INVALID\ny"
        return subprocess.CompletedProcess((), -6, stdout="", stderr=said)

    monkeypatch.setattr(subprocess, "run", run)
    kernel.kernel_cycles.cache_clear()
    with pytest.raises(errors.RunError, match=r"does not profile the kernel.*gather failed"):
        kernel.kernel_cycles("v5e:2x2", 640, 64)
