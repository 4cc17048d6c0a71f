"""Several processes on one sweep: who this one is, which blocks are its own, its own devices.

Blocks are divided by number, and each is computed by one process alone on its own devices, so the
processes need one another only once: at the start, to find out that all of them run the same sweep.
They do it through JAX's distributed runtime, in a process of its own (`meeting`), and leave before
anything is computed. From there on a process that dies, the first one included, costs its own
unfinished block and disturbs nobody. (To stay in the runtime would cost more: by default it ends
all when one dies, and even with `jax_enable_recoverability` all end with the coordinator.)
"""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprune_jax.errors import CallError, RunError, say_once, shown
from resprune_jax.experiments.sweep import meeting

if TYPE_CHECKING:
    import jax

logger = logging.getLogger("resprune_jax")

WAIT_S = 300.0
"""Seconds that a process waits for the others to come, as JAX itself does: hosts of a cluster do
not start at one time."""
DATA_AXIS = "data"
"""The mesh axis over which `models.checkpoint.sharding` splits a batch."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process among those of a sweep.

    Attributes:
        number: of this process, from 0.
        count: of processes.
        met: the processes have met and run the same sweep; False where they only share the plan.
    """

    number: int = 0
    count: int = 1
    met: bool = False

    def owns(self, block: int) -> bool:
        """Whether a block of the plan is this process's."""
        return block % self.count == self.number


def join(
    *,
    digest: bytes,
    processes: int | None = None,
    process: int | None = None,
    coordinator: str | None = None,
    wait: float = WAIT_S,
) -> Hosts:
    """Find out which process of a sweep this is, and that all of them run the same one.

    With `processes` and `process` alone nobody meets: the plan is divided, and each process can be
    started anywhere and at any time. With `coordinator` too, or where a cluster started this
    process (see `cluster`), all meet before the first one computes. `processes` of 1 is this
    process alone, in a cluster too.

    Args:
        digest: stands for what all must have in common: the plan, the model, the data.
        processes: how many there are.
        process: the number of this one, from 0.
        coordinator: "host:port" of process 0, which opens that port.
        wait: seconds to wait for the others.

    Returns:
        This process among the others.

    Raises:
        CallError: options that do not go together; a process that runs another sweep.
        RunError: the others did not come, or the cluster did not say what JAX needs.
    """
    check(processes, process, coordinator)
    if processes == 1:
        return Hosts()
    if processes is not None and coordinator is None:
        return Hosts(process or 0, processes)
    manager = None if processes is not None else cluster()
    if processes is None and manager is None:
        return Hosts()
    own = hashlib.sha256(digest).hexdigest()
    asked = {"processes": processes, "process": process, "coordinator": coordinator}
    where = f"at {coordinator}" if coordinator else f"that {manager} started"
    logger.warning("meeting the other processes %s: at most %g s", where, wait)
    said = _meet(asked | {"digest": own, "wait": wait}, manager)
    _agree(said["records"], said["number"])
    _restrict(said)
    return Hosts(said["number"], said["count"], met=said["count"] > 1)


def check(processes: int | None, process: int | None, coordinator: str | None) -> None:
    """Refuse options that do not go together.

    Raises:
        CallError: naming what was given and what is missing.
    """
    if processes is None:
        for name, value in (("--process-id", process), ("--coordinator", coordinator)):
            if value is not None:
                raise CallError(f"{name} {value} needs --num-processes: how many there are in all")
        return
    if processes < 1:
        raise CallError(f"--num-processes is {processes}: it must be at least 1")
    if process is None and processes > 1:
        raise CallError(
            f"--num-processes {processes} needs --process-id: which of 0 to {processes - 1} this is"
        )
    if process is not None and not 0 <= process < processes:
        raise CallError(
            f"--process-id is {process}: with --num-processes {processes} it is one of 0 to "
            f"{processes - 1}"
        )
    if coordinator is not None:
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", coordinator)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise CallError(
                f"--coordinator {shown(coordinator)} is no address: give the host and a free port "
                "of process 0, such as 10.0.0.1:1234"
            )


def cluster(environ: Mapping[str, str] = os.environ) -> str | None:
    """What started this process as one of several, by what it sets: JAX asks it for the rest.

    Args:
        environ: environment variables.

    Returns:
        "Slurm" (inside `srun` with more than one task), "Open MPI" (more than one rank),
        "Kubernetes" (a pod of an indexed job), "Cloud TPU" (several workers, or a TPU machine,
        whose metadata server knows), or None.
    """

    def number(name: str) -> int:
        value = environ.get(name, "")
        return int(value) if value.isdecimal() else 0

    task = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    if number("SLURM_NTASKS") > 1 and task <= set(environ):
        return "Slurm"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    slices = number("MEGASCALE_NUM_SLICES")
    if "," in workers or slices > 1 or environ.get("TPU_PROCESS_ADDRESSES_PATH"):
        return "Cloud TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environ):
        return "Kubernetes"
    if not workers and "TPU_SKIP_MDS_QUERY" not in environ and _has_tpu(environ):
        return "Cloud TPU"
    return None


def _has_tpu(environ: Mapping[str, str]) -> bool:
    """Whether JAX would use chips of this machine, without starting it."""
    if "tpu" not in environ.get("JAX_PLATFORMS", "tpu") or not importlib.util.find_spec("libtpu"):
        return False
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def _meet(asked: dict[str, Any], manager: str | None) -> dict[str, Any]:
    """Run this process's part in the meeting.

    Raises:
        RunError: it failed or ended without a word.
    """
    # One CPU device each, whatever the sweep itself will use.
    out = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "JAX_ENABLE_RECOVERABILITY", "JAX_PLATFORMS")
    environ = {name: value for name, value in os.environ.items() if name not in out}
    environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    # -P: the files beside the program are not to be taken for modules of these names.
    command = [sys.executable, "-P", meeting.__file__, json.dumps(asked)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=errors, env=environ
        )
        try:
            child.wait(asked["wait"] + 2 * meeting.LEAVE_S + 30)
        except subprocess.TimeoutExpired:
            pass  # what it has said counts
        finally:
            child.kill()
            child.wait()
            if child.stdin is not None:
                child.stdin.close()
        output.seek(0)
        errors.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
        log = errors.read().decode(errors="replace")
    said = next((json.loads(line) for line in reversed(lines) if line.startswith("{")), None)
    if said is None:
        raise RunError(_why(asked, log, child.returncode))
    if "error" in said:
        alone = f"; {manager} started this process: --num-processes 1 runs it alone"
        raise RunError(f"{said['error']}{alone if manager else ''}")
    return said


def _why(asked: dict[str, Any], log: str, status: int) -> str:
    """What to say of a meeting that the runtime aborted.

    Args:
        asked: what it was asked.
        log: what it wrote to standard error.
        status: its exit status.
    """
    number, count = asked["process"], asked["processes"]
    if "newer incarnation" in log or "different incarnation" in log:
        return f"two processes have the number {number}: give each of the {count} its own"
    if "DEADLINE_EXCEEDED" in log:
        everyone = f"all {count} processes" if count else "all processes"
        here = f" on {asked['coordinator'].rpartition(':')[0]}" if asked["coordinator"] else ""
        return (
            f"not {everyone} came together in {asked['wait']:g} s: start each once, with its own "
            f"number and the same --num-processes, number 0{here}"
        )
    fatal = re.findall(r"absl::Status: (.+)", log) or log.strip().splitlines()[-1:]
    return (
        "the processes did not meet, another one may have died: start them again "
        f"({fatal[0] if fatal else f'status {status}'})"
    )


def _agree(records: list[tuple[str, int, str]], own: int) -> None:
    """Refuse processes that were started on different sweeps.

    Args:
        records: of each process its digest, the count that it was told and its host.
        own: the number of this process.

    Raises:
        CallError: naming the processes that differ from the first.
    """
    counts = sorted({count for _, count, _ in records})
    if len(counts) > 1:
        raise CallError(
            f"the processes were started with --num-processes {' and '.join(map(str, counts))}: "
            "give all of them the same"
        )
    others = [number for number, record in enumerate(records) if record[0] != records[0][0]]
    if others:
        names = ", ".join(f"{number} (on {records[number][2]})" for number in others[:4])
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        who = f"process {names} runs" if len(others) == 1 else f"processes {names}{more} run"
        raise CallError(
            f"{who} another sweep than process 0 (on {records[0][2]}): start all with the same "
            f"options, model, data and version (this is process {own})"
        )


def _restrict(said: dict[str, Any]) -> None:
    """See only the devices that the cluster gives this process, where its host has several.

    JAX gives a task of Slurm and a rank of Open MPI one device. That is for hosts with as many
    tasks as devices: a process alone on its host takes all, unless JAX_LOCAL_DEVICE_IDS says which.
    """
    hosts = [host for _, _, host in said["records"]]
    if hosts.count(hosts[said["number"]]) > 1 or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        import jax

        for name, value in said["devices"].items():
            jax.config.update(name, value)


def local_mesh() -> "jax.sharding.Mesh | None":
    """The mesh of this process's own devices, for `load_model(mesh=)`; None for a single one.

    The rows of a batch are split over it where the devices divide them. Batches are multiples of 8
    and of powers of two, so of other numbers of devices the largest power of two takes part.
    """
    import jax
    import numpy as np

    devices = jax.local_devices()
    used = 1 << (len(devices).bit_length() - 1)
    if used < len(devices):
        say_once(
            "devices of a sweep",
            f"{used} of {len(devices)} devices take part: a batch is split over a power of two; "
            "more processes with JAX_LOCAL_DEVICE_IDS use the others",
        )
    return None if used == 1 else jax.sharding.Mesh(np.array(devices[:used]), (DATA_AXIS,))
