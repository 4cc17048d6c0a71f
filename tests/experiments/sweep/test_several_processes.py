"""`resprune sweep` in two processes, one of them killed, gives the rows of one process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.experiments.sweep.test_hosts import ROOT, free_port

WORDS = ["--methods", "uniform", "--keep", "1/9", "--examples", "8", "--block", "2",
         "--batch", "8"]  # fmt: skip
HANGS_S = 300
"""Seconds after which a process hangs, however busy the machine."""
TIMES = ["select_ms", "answer_ms"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environ = os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
    }  # fmt: skip
    command = [sys.executable, "-m", "resprune_jax.experiments", "sweep", *WORDS]
    return subprocess.Popen(
        [*command, "--output", str(folder), *words], env=environ,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def rows(folder: Path) -> dict[str, list[dict[str, object]]]:
    files = sorted((folder / "rows").glob("0*.parquet"))
    return {path.name: pq.read_table(path).drop_columns(TIMES).to_pylist() for path in files}


@pytest.mark.deep
def test_the_first_process_is_killed(tmp_path: Path) -> None:
    victim = 0
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    first = start(alone)
    said = first.communicate(timeout=HANGS_S)
    assert first.returncode == 0, said
    where = ["--num-processes", "2", "--coordinator", f"127.0.0.1:{free_port()}"]
    both = [start(shared, *where, "--process-id", str(number)) for number in range(2)]
    try:
        end = time.monotonic() + HANGS_S
        while not (shared / "rows" / f"{victim:05d}.parquet").exists():
            assert both[victim].poll() is None and time.monotonic() < end
            time.sleep(0.01)
        both[victim].send_signal(signal.SIGKILL)
        said = both[1 - victim].communicate(timeout=HANGS_S)
        assert both[1 - victim].returncode == 0, said
    finally:
        for each in both:
            each.kill()
            each.communicate()
    whole, kept = rows(alone), rows(shared)
    others = {f"{block:05d}.parquet" for block in range(1 - victim, 4, 2)}
    assert kept.items() <= whole.items() and others < kept.keys()
    last = start(shared)
    said = last.communicate(timeout=HANGS_S)
    assert last.returncode == 0, said
    assert rows(shared) == whole and len(whole) == 4
    for name in ("sweep.json", "examples.parquet"):
        assert (shared / name).read_bytes() == (alone / name).read_bytes()
