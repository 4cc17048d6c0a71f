"""A model sharded over a mesh gives the answers of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.qwen_vl import tiny_qwen
from tests.models.running import mesh_answers, mesh_methods

ROOT = Path(__file__).parents[3]


def on_devices(count: int, program: Any, *checkpoints: Path) -> Any:
    """What a program of this folder reports from a process with so many devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, program.__file__, *checkpoints],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["devices"] == count
    return report


@pytest.mark.deep
def test_answers_do_not_depend_on_the_mesh(checkpoint: Path) -> None:
    report = on_devices(8, mesh_answers, checkpoint)
    assert report["tokens equal"] == [True] * 3 and report["kept equal"]
    assert report["tokens equal under settings"] == [True] * 3
    assert report["settings without effect"] == [False] * 3
    assert report["compiles for other settings"] == 0
    assert report["logits"] <= report["bound"]
    assert report["share of a kernel on one device"] == 1 / 4


@pytest.mark.deep
def test_methods_choose_the_same_on_a_mesh(checkpoint: Path, tmp_path: Path) -> None:
    """In the decoder, in the encoder, with merged rows: picks, logits, answers; on M-RoPE too."""
    report = on_devices(4, mesh_methods, checkpoint, tiny_qwen(tmp_path))
    assert report["share of a kernel"] == 1 / 2
    assert set(report["calls"]) == {*mesh_methods.CALLS, mesh_methods.QWEN}
    for name, call in report["calls"].items():
        assert all(call[f"{what} equal"] for what in ("picks", "left", "tokens")), name
        assert (call["tokens"] > 0) == (name in mesh_methods.ANSWERED), name
        assert call["logits"] <= call["bound"], name
        assert call.get("merged rows", 0) <= 1e-5, name
    assert {name for name, call in report["calls"].items() if "merged rows" in call} == {
        "visionzip", "tome",
    }  # fmt: skip
