"""One process's part in the meeting of a sweep's processes: a program of its own, run by `hosts`.

It joins JAX's distributed runtime on the CPU, gathers what every process brings over Gloo, says
what it learned in one line of JSON, and leaves. It is a process of its own because the runtime ends
whoever takes part as soon as something goes wrong (no coordinator, a process that does not come,
two of one number, a peer that dies: the interpreter aborts with a stack trace), and because a
process that has joined once is never quite alone again: its devices keep the numbers of the whole,
and only the first process writes compiled programs to the cache.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

LEAVE_S = 10
"""Seconds that a process waits for the others to leave with it."""


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Meet the other processes.

    Args:
        asked: `digest` (hexadecimal) and `wait` (seconds); `processes`, `process` and
            `coordinator`, each None where JAX asks the cluster that started this process.

    Returns:
        `number` and `count` of this process; `records`, what each process brought: its digest, the
        number of processes that it was told of, its host; `devices`, the settings of visible
        devices that the cluster asks for. Or `error`, why they did not meet.
    """
    end = time.monotonic() + asked["wait"]
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if asked["coordinator"] is not None and (trouble := _trouble(asked, end)):
        return {"error": trouble}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    before = _visible(jax)
    try:
        jax.distributed.initialize(
            asked["coordinator"],
            asked["processes"],
            asked["process"],
            # What was said is not to be asked of a cluster, nor its metadata server.
            cluster_detection_method=None if asked["coordinator"] is None else "deactivate",
            initialization_timeout=max(1, round(end - time.monotonic())),
            shutdown_timeout_seconds=LEAVE_S,
        )
    except Exception as error:  # any library that JAX asks may raise what it likes
        return {"error": f"JAX could not join the processes: {error}"}
    count = asked["processes"] or jax.process_count()
    host = "".join(filter(str.isascii, socket.gethostname()))[:80]
    record = json.dumps([asked["digest"], count, host])
    row = np.frombuffer(record.encode().ljust(800), np.uint8)
    try:
        rows = np.asarray(multihost_utils.process_allgather(row)).reshape(-1, row.size)
    except Exception as error:
        return {
            "error": f"the processes joined but Gloo could not connect them ({error}): the name of "
            f"each host, here {host}, must lead to it from the others; without --coordinator they "
            "need no network"
        }
    return {
        "number": jax.process_index(),
        "count": count,
        "records": [json.loads(each.tobytes()) for each in rows],
        "devices": {name: value for name, value in _visible(jax).items() if value != before[name]},
    }


def leave() -> None:
    """Leave the runtime together with the others, or without them."""
    import jax

    with contextlib.suppress(Exception):
        jax.distributed.shutdown()


def _visible(jax: Any) -> dict[str, str]:
    """JAX's settings of the devices that this process may see, one for each kind of GPU."""
    names = [name for name in jax.config.values if name.endswith("_visible_devices")]
    return {name: jax.config.read(name) for name in names}


def _trouble(asked: dict[str, Any], end: float) -> str:
    """What is wrong with the coordinator's address, which the runtime would abort on; "" if none.

    The first process is the coordinator itself and needs the port; the others wait for it.
    """
    host, _, port = asked["coordinator"].rpartition(":")
    if asked["process"] == 0:  # looked at last thing: gRPC would share the port without a word
        if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
            return ""
        try:
            if socket.has_dualstack_ipv6():
                socket.create_server(
                    ("", int(port)), family=socket.AF_INET6, dualstack_ipv6=True
                ).close()
            else:
                socket.create_server(("", int(port))).close()
        except OSError as error:
            return (
                f"port {port} cannot be opened here ({error.strerror}): another process 0 may be "
                "running on this host; give --coordinator a free port"
            )
        return ""
    said = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 5)).close()
            return ""
        except OSError as error:  # not there yet, or its name is not known yet
            said = error.strerror or str(error) or said
        time.sleep(min(0.2, max(left, 0)))
    return (
        f"no coordinator at {asked['coordinator']} in {asked['wait']:g} s ({said}): start process "
        "0 on that host, or give its address with --coordinator"
    )


def _end_with_parent(pipe: Any, leave: Callable[[int], Any] = os._exit) -> None:
    """End this process when the one that started it is gone: nobody is left to meet for."""
    while pipe.read(1):
        pass
    leave(3)


if __name__ == "__main__":
    # Standard input is a pipe on which nothing ever comes but its end.
    threading.Thread(target=_end_with_parent, args=(sys.stdin.buffer,), daemon=True).start()
    result = main(json.loads(sys.argv[1]))
    print(f"\n{json.dumps(result)}", flush=True)  # Gloo writes to standard output too
    if "error" not in result:
        leave()
    os._exit(0)  # not through the end of a runtime that may abort
