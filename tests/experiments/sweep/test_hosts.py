"""Several processes on one sweep: who is who, that they agree, and what a dead one costs."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import multihost_utils

from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.experiments.sweep import hosts, meeting
from resprune_jax.experiments.sweep.hosts import Hosts, check, cluster, join

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("host_blocks.py")
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def meet(*calls: dict[str, Any], port: int | None = None) -> list[Any]:
    """What `join` gives or raises in processes that meet at one address."""
    where = f"127.0.0.1:{port or free_port()}"

    def one(call: dict[str, Any]) -> Any:
        try:
            return join(**{"digest": b"a", "coordinator": where, "wait": 120.0} | call)
        except ResPruneError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(one, calls))


@contextmanager
def workers(folder: Path, *own: list[str], **environ: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of a sweep, one for each list of words; none is left behind."""
    common = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""} | environ
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), *words], env=os.environ | common,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words in own
    ]  # fmt: skip
    try:
        yield started
    finally:
        for each in started:
            each.kill()
            each.communicate()


def finished(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def numbered(count: int, *words: str, port: int | None = None) -> list[list[str]]:
    where = [] if port is None else ["--coordinator", f"127.0.0.1:{port}"]
    return [
        [*words, *where, "--num-processes", str(count), "--process-id", str(number)]
        for number in range(count)
    ]


@given(st.integers(1, 9), st.integers(0, 60))
def test_every_block_has_one_owner(count: int, blocks: int) -> None:
    owned = [[b for b in range(blocks) if Hosts(n, count).owns(b)] for n in range(count)]
    assert sorted(block for each in owned for block in each) == list(range(blocks))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ((None, 1, None), "--process-id 1 needs --num-processes"),
        ((None, 0, None), "--process-id 0 needs --num-processes"),
        ((None, None, "h:1"), "--coordinator h:1 needs --num-processes"),
        ((0, None, None), "--num-processes is 0: it must be at least 1"),
        ((-3, 0, "h:1"), "--num-processes is -3"),
        ((2, None, None), "needs --process-id: which of 0 to 1 this is"),
        ((2, 2, None), "--process-id is 2: with --num-processes 2 it is one of 0 to 1"),
        ((4, -1, None), "--process-id is -1"),
        ((1, 1, None), "--process-id is 1"),
        ((2, 0, "host"), "--coordinator 'host' is no address: give the host and a free port"),
        ((2, 0, ""), "'' is no address"),
        ((2, 0, ":80"), "':80' is no address"),
        ((2, 0, "host:"), "'host:' is no address"),
        ((2, 0, "host:0"), "'host:0' is no address"),
        ((2, 0, "host:65536"), "'host:65536' is no address"),
        ((2, 0, "http://host:80"), "is no address"),
        ((2, 0, "a b:80"), "is no address"),
        ((2, 0, "::1:80"), "is no address"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[Any, Any, Any], part: str) -> None:
    with pytest.raises(CallError) as caught:
        join(digest=b"", processes=options[0], process=options[1], coordinator=options[2], wait=1.0)
    assert part in str(caught.value)


@pytest.mark.parametrize("where", ["10.0.0.1:1234", "node-7.local:65535", "[::1]:80", "a:1"])
def test_addresses(where: str) -> None:
    check(3, 2, where)


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_meet", None)
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    assert join(digest=b"a") == Hosts(0, 1, met=False)
    assert join(digest=b"a", processes=4, process=3) == Hosts(3, 4, met=False)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert join(digest=b"a", processes=1) == Hosts()
    assert join(digest=b"a", processes=1, process=0, coordinator="h:1") == Hosts()
    assert join(digest=b"a", processes=2, process=1) == Hosts(1, 2, met=False)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({name: SLURM[name] for name in SLURM if name != "SLURM_STEP_NODELIST"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "four"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "Cloud TPU"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, "Cloud TPU"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_what_a_cluster_sets(environ: dict[str, str], found: str | None) -> None:
    assert cluster(environ | {"TPU_SKIP_MDS_QUERY": "1"}) == found


def test_a_process_alone_on_its_host_sees_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_LOCAL_DEVICE_IDS", raising=False)
    updates: list[tuple[str, str]] = []
    monkeypatch.setattr(jax.config, "update", lambda *pair: updates.append(pair))

    def restrict(*names: str) -> list[tuple[str, str]]:
        updates.clear()
        records = [("", len(names), name) for name in names]
        devices = {"jax_cuda_visible_devices": "1"}
        hosts._restrict({"records": records, "number": 1, "devices": devices})
        return list(updates)

    assert restrict("a", "b") == restrict("a", "b", "a") == []
    assert restrict("b", "b", "a") == [("jax_cuda_visible_devices", "1")]
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "1")
    assert restrict("a", "b") == [("jax_cuda_visible_devices", "1")]


def test_two_processes_meet() -> None:
    calls = [{"processes": 2, "process": number} for number in range(2)]
    assert meet(*calls) == [Hosts(0, 2, met=True), Hosts(1, 2, met=True)]


@pytest.mark.parametrize(
    ("records", "part"),
    [
        (
            [("x", 2, "h"), ("y", 2, "g")],
            "process 1 (on g) runs another sweep than process 0 (on h",
        ),
        ([("x", 3, "h"), ("y", 3, "g"), ("z", 3, "f")], "processes 1 (on g), 2 (on f) run another"),
        ([("x", 9, "h")] + [("y", 9, "g")] * 6, "4 (on g) and 2 more run another sweep"),
        ([("x", 2, "h"), ("x", 3, "g")], "started with --num-processes 2 and 3: give all"),
    ],
)
def test_processes_that_differ(records: list[tuple[str, int, str]], part: str) -> None:
    with pytest.raises(CallError) as caught:
        hosts._agree(records, 1)
    assert part in str(caught.value)
    hosts._agree([("x", 2, "h"), ("x", 2, "g")], 0)


def trouble(process: int, port: int, wait: float = 0.5) -> str:
    asked = {"process": process, "coordinator": f"127.0.0.1:{port}", "wait": wait}
    return meeting._trouble(asked, time.monotonic() + wait)


def test_nobody_is_at_the_address() -> None:
    port = free_port()
    said = trouble(1, port)
    assert f"no coordinator at 127.0.0.1:{port} in 0.5 s" in said
    assert "start process 0 on that host" in said


def test_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert trouble(2, port) == ""  # somebody is there
        said = trouble(0, port)
    assert f"port {port} cannot be opened here" in said and "another process 0" in said
    assert trouble(0, port) == ""


def test_hosts_that_gloo_cannot_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def allgather(row: np.ndarray) -> np.ndarray:
        raise RuntimeError("Gloo connectFullMesh failed")

    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **options: None)
    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    asked = {"processes": 2, "process": 0, "coordinator": f"h:{free_port()}", "wait": 1.0}
    said = meeting.main(asked | {"digest": "a"})
    assert "could not connect them (Gloo connectFullMesh failed)" in said["error"]
    assert "without --coordinator they need no network" in said["error"]


@pytest.mark.parametrize(
    ("log", "status", "part"),
    [
        ("F1 x] more. absl::Status: DEADLINE_EXCEEDED: Deadline", -6, "not all 2 processes came"),
        ("absl::Status: ALREADY_EXISTS: a newer incarnation.", -6, "two processes have the number"),
        ("absl::Status: UNAVAILABLE: tasks are unhealthy", -6, "(UNAVAILABLE: tasks are unhealthy"),
        ("Traceback\nValueError: why", 1, "start them again (ValueError: why)"),
        ("", -11, "start them again (status -11)"),
    ],
)
def test_a_meeting_that_the_runtime_ended(log: str, status: int, part: str) -> None:
    asked = {"processes": 2, "process": 1, "coordinator": "h:1", "wait": 5.0}
    assert part in hosts._why(asked, log, status)


@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_waits_can_be_stopped(number: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    with workers(tmp_path, *numbered(2, port=port)[:1]) as several:
        while trouble(1, port):  # until the first process waits for the other
            assert several[0].poll() is None
        several[0].send_signal(number)
        several[0].communicate(timeout=20)
        assert several[0].returncode in (130, -number)
        end = time.monotonic() + 20
        while not trouble(1, port):  # what it had started ends too
            assert time.monotonic() < end


def test_what_a_cluster_did_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "cluster", lambda: "Kubernetes")
    for name in ("KUBERNETES_SERVICE_HOST", *SLURM):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError) as caught:
        join(digest=b"a", wait=5.0)
    assert "JAX could not join the processes" in str(caught.value)
    assert "Kubernetes started this process: --num-processes 1 runs it alone" in str(caught.value)


@pytest.mark.deep
def test_processes_that_meet_and_do_not_agree() -> None:
    first, second = meet(
        {"processes": 2, "process": 0}, {"processes": 2, "process": 1, "digest": b"b"}
    )
    assert isinstance(first, CallError) and isinstance(second, CallError)
    assert "process 1" in str(first) and "runs another sweep than process 0" in str(first)
    first, second = meet({"processes": 2, "process": 0}, {"processes": 3, "process": 1})
    assert isinstance(first, CallError) and isinstance(second, CallError)
    assert "--num-processes 2 and 3" in str(second)


@pytest.mark.deep
def test_processes_that_cannot_meet() -> None:
    port = free_port()
    late, absent = (
        meet({"processes": 2, "process": 0, "wait": 3.0}),
        meet({"processes": 2, "process": 1, "wait": 3.0}, port=port),
    )
    assert isinstance(late[0], RunError) and isinstance(absent[0], RunError)
    assert "not all 2 processes came together in 3 s" in str(late[0])
    assert f"no coordinator at 127.0.0.1:{port} in 3 s" in str(absent[0])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (error,) = meet({"processes": 2, "process": 0}, port=taken.getsockname()[1])
    assert isinstance(error, RunError) and "cannot be opened here" in str(error)
    twice = [{"processes": 3, "process": number, "wait": 12.0} for number in (0, 1, 1)]
    errors = meet(*twice)
    assert all(isinstance(error, RunError) for error in errors)
    assert any("two processes have the number 1" in str(error) for error in errors)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["Slurm", "Open MPI", "Cloud TPU"])
def test_a_cluster_says_who_is_who(kind: str, tmp_path: Path) -> None:
    job, port = random.Random(os.getpid()).randrange(4096), str(free_port())
    common = {
        "Slurm": SLURM | {"SLURM_JOB_ID": str(job)},
        "Open MPI": {
            "OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
        },
        "Cloud TPU": {
            "JAX_FORCE_TPU_INIT": "1", "TPU_WORKER_HOSTNAMES": "localhost,localhost",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost", "MEGASCALE_NUM_SLICES": "1",
            "MEGASCALE_SLICE_ID": "0", "JAX_COORDINATOR_PORT": port, "TPU_SKIP_MDS_QUERY": "1",
        },
    }[kind]  # fmt: skip
    own = {
        "Slurm": ("SLURM_PROCID", "SLURM_LOCALID"),
        "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        "Cloud TPU": ("TPU_WORKER_ID",),
    }[kind]
    with (
        workers(tmp_path, [], **(common | dict.fromkeys(own, "0"))) as first,
        workers(tmp_path, [], **(common | dict.fromkeys(own, "1"))) as second,
    ):
        said = [each.communicate(timeout=150) for each in first + second]
    # A task of Slurm and a rank of Open MPI have one of their host's devices each.
    visible = ["all"] * 2 if kind == "Cloud TPU" else ["0", "1"]
    assert [out for out, _ in said] == [
        f"{number} of 2 met=True visible={visible[number]}\n" for number in range(2)
    ], said


@pytest.mark.deep
@pytest.mark.parametrize(("count", "victim", "then"), [(2, 0, 1), (2, 1, 3), (4, 0, 2), (4, 2, 1)])
def test_a_dead_process_costs_its_block(count: int, victim: int, then: int, tmp_path: Path) -> None:
    blocks = 12
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    alone.mkdir()
    shared.mkdir()
    draw = random.Random(f"{count} {victim}")
    own = numbered(count, "--blocks", str(blocks), "--pause", "0.4", port=free_port())
    with (
        workers(alone, ["--blocks", str(blocks)]) as one,
        workers(shared, *own) as several,
    ):
        mine = set(range(victim, blocks, count))
        done = draw.randrange(len(mine))  # blocks that the victim finishes
        end = time.monotonic() + 150
        while sum((shared / f"{b:05d}").exists() for b in mine) < done or not any(
            shared.glob(f".*.{victim}")
        ):
            assert several[victim].poll() is None and time.monotonic() < end, several
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        several[victim].send_signal(signal.SIGKILL)
        said = [each.communicate(timeout=150) for each in several]
        assert one[0].wait(150) == 0, one[0].communicate()
        status = [each.returncode for each in several]
    assert status == [-signal.SIGKILL if n == victim else 0 for n in range(count)], said
    assert all(f"{n} of {count} met=True" in out for n, (out, _) in enumerate(said))
    whole, kept = finished(alone), finished(shared)
    assert len(whole) == blocks and kept.items() < whole.items()
    lost = {int(name) for name in whole.keys() - kept.keys()}
    assert lost <= mine and len(mine) - len(lost) >= done
    before = {path.name: path.stat().st_mtime_ns for path in shared.glob("0*")}
    again = numbered(then, "--blocks", str(blocks))  # the same plan; these do not meet
    with workers(shared, *again) as several:
        said = [each.communicate(timeout=150) for each in several]
        assert [each.returncode for each in several] == [0] * then, said
    assert finished(shared) == whole
    assert all((shared / name).stat().st_mtime_ns == when for name, when in before.items())


@pytest.mark.deep
def test_a_process_that_dies_before_they_meet(tmp_path: Path) -> None:
    own = numbered(3, "--wait", "9", port=free_port())
    with workers(tmp_path, *own[:2]) as several:
        time.sleep(3)  # both wait for the third
        several[1].send_signal(signal.SIGKILL)
        _, said = several[0].communicate(timeout=150)
        assert several[0].returncode == 1
    assert len(said.splitlines()) == 2, said  # that it waits, and why it ends
    assert "not all 3 processes came together in 9 s" in said or "did not meet" in said
