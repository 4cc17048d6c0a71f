"""`resprune tpu-check` with the TPU's own compiler.

Needs libtpu, but no TPU: `make test-tpu`.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from resprune_jax.experiments import cli
from resprune_jax.experiments.compile_check.cases import CASES
from resprune_jax.experiments.compile_check.compiler import compile_abstract
from resprune_jax.experiments.compile_check.models import case_rows
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.tpu.target import HBM, TpuTarget
from resprune_jax.models.families.registry import read_model_config
from tests.experiments.compile_check.shallow import shallow

pytestmark = pytest.mark.tpu

MIB = 2**20
TOPOLOGY = "v5e:2x2"


@pytest.fixture(autouse=True)
def default_precision() -> Iterator[None]:
    """Products as users have them, not those of the parity tests."""
    with jax.default_matmul_precision("default"):
        yield


def largest_exchange(text: str) -> int:
    """Bytes of the largest array that a chip gathers from others in a compiled program."""
    found = re.findall(r"= \(?(\w+)\[([\d,]+)\]\S* .*?\b(?:all-gather|all-to-all)\S*\(", text)
    sizes = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1}
    return max((sizes[kind] * math.prod(map(int, shape.split(","))) for kind, shape in found),
               default=0)  # fmt: skip


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_decode_copies_neither_its_cache_nor_the_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full depth: with few layers there is room, and XLA spends it on copies."""
    texts: list[str] = []
    compiler = jax.stages.Lowered.compile

    def compiling(lowered: jax.stages.Lowered, *options: Any) -> jax.stages.Compiled:
        made = compiler(lowered, *options)
        texts.append(made.as_text() or "")
        return made

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiling)
    rows = list(case_rows(name, CASES[name], TpuTarget(TOPOLOGY), 8))
    assert len(rows) == 8 and all(row.passed for row in rows), [row.verdict for row in rows]
    layers = read_model_config(CASES[name].hf).text.num_layers
    checked = 0
    for row, text in zip(rows, texts, strict=True):
        memory = row.compiled.memory
        assert memory is not None
        if row.program != "decode":
            continue
        checked += 1
        exchange = largest_exchange(text)
        print(
            f"{name}, {row.setting['visual_tokens']} visual tokens: cache "
            f"{row.donated / MIB:.0f} MiB, aliased {memory.aliased / MIB:.0f}, temporaries "
            f"{memory.temporaries / MIB:.1f}, largest exchange {exchange / MIB:.2f}"
        )
        # Of the weights 3 GiB would be turned, of the cache at least its keys.
        assert memory.temporaries < 0.4 * row.donated
        assert exchange < row.donated / layers / 2  # not even one layer's keys
    assert checked == 2


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    name = "llava-1.5-7b"
    small = dataclasses.replace(CASES[name], hf=shallow(name, 1))
    monkeypatch.setitem(CASES, name, small)
    assert cli.main(["tpu-check", "--model", name, "--batch", "1", "--json"]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["libtpu"] and report["topology"] == TOPOLOGY
    assert len(report["rows"]) == said.err.count("fits, compiled in") == 8
    for row in report["rows"]:
        assert row["total"] <= row["limit"] == HBM["v5e"]
    print(", ".join(f"{row['program']} {row['total'] / MIB:.0f} MiB" for row in report["rows"]))


def test_what_does_not_fit_is_said() -> None:
    where = SingleDeviceSharding(TpuTarget(TOPOLOGY).devices()[0])
    big = jax.ShapeDtypeStruct((65536, 65536), jnp.bfloat16, sharding=where)
    made = compile_abstract(jax.jit(lambda x: x @ x).lower, big)
    row = Row("m", "product", {}, made, HBM["v5e"])
    print(row.verdict)
    assert made.memory is None and "15.75G" in made.problem
    assert row.verdict.startswith("does not fit: Ran out of memory") and not row.passed


def test_a_topology_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tpu-check", "--topology", "v5e:3x3"]) == 2
    said = capsys.readouterr().err
    assert "TPU topology 'v5e:3x3'" in said and said.count("\n") == 1
