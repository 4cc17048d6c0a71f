"""A process with several devices gives each of them a part of every batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from resprune_jax import errors
from resprune_jax.experiments.sweep.hosts import local_mesh

ROOT = Path(__file__).parents[3]


def test_one_device_has_no_mesh() -> None:
    assert len(jax.local_devices()) == 1 and local_mesh() is None


@pytest.mark.parametrize(("count", "used"), [(2, 2), (3, 2), (4, 4), (6, 4), (7, 4), (8, 8)])
def test_devices_that_take_part(
    count: int, used: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jax, "local_devices", lambda: [f"device {n}" for n in range(count)])
    monkeypatch.setattr(jax.sharding, "Mesh", lambda devices, axes: (devices.tolist(), axes))
    monkeypatch.setattr(errors, "_SAID", set())
    devices, axes = local_mesh()  # type: ignore[misc]
    assert devices == [f"device {n}" for n in range(used)] and axes == ("data",)
    said = [record.message for record in caplog.records]
    assert [f"{used} of {count} devices" in line for line in said] == [True] * (used < count)


@pytest.mark.deep
def test_every_device_of_a_process_gets_work(checkpoint: Path) -> None:
    environ = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.sweep.mesh_devices", str(checkpoint)],
        env=environ, capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mesh"] == {"data": 4} and found["equal"] == [True] * 8
    assert set(found["programs"]) == {"encode", "prefill", "decode", "choose", "measure"}
    for name, program in found["programs"].items():
        assert program["partitions"] and program["devices"] == [4]
        assert [2, 2, 2, 2] in program["rows"] or name in ("choose", "measure")
    # Seven examples are eight turns of a loop: two a device.
    trips = found["programs"]["choose"]["trips"]
    print(f"loops of the choice: {trips}; {found['rows']} rows")
    assert 2 in trips and 7 not in trips
    # Eight lists of an image are measured: two on each.
    print(f"matrices decomposed together: {found['programs']['measure']['decomposed']}")
    assert found["programs"]["measure"]["decomposed"] == [2]
    assert found["equal_rows"] and found["close_figures"] and found["rows"] == 7 * 8
    # Logits and every layer's keys and values: two of eight rows a device.
    rows = found["programs"]["prefill"]["rows"]
    assert len(rows) > 2 and rows == [[2, 2, 2, 2]] * len(rows)
