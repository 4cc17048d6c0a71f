"""A model sharded over a mesh gives the answers of one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.running import mesh_answers

ROOT = Path(__file__).parents[3]


@pytest.mark.deep
def test_answers_do_not_depend_on_the_mesh(checkpoint: Path) -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, mesh_answers.__file__, checkpoint],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["devices"] == 8
    assert report["tokens equal"] == [True] * 3 and report["kept equal"]
    assert report["tokens equal under settings"] == [True] * 3
    assert report["settings without effect"] == [False] * 3
    assert report["compiles for other settings"] == 0
    assert report["logits"] <= report["bound"]
    assert report["share of a kernel on one device"] == 1 / 4
