"""`resprune` and Python without the seconds that imports take: forks of one process that has them.

A command of the shell runs the console script of the environment, in a process of its own that is
forked from one which has imported what such scripts import, and which has not touched a device.

    python forks.py serve SOCKET      the one process
    python forks.py SOCKET SCRIPT...  run a script: same arguments, folder, environment and streams

The second form imports next to nothing: `python -S -E` starts it in some 20 ms.
"""

import array
import contextlib
import json
import os
import socket
import sys

# What a command imports on its way to a first answer.
MODULES = (
    "resprune_jax.experiments.cli", "resprune_jax.models.load", "resprune_jax.experiments.pocket",
    "spacy", "spacy.lang.en", "textblob", "transformers.models.auto.processing_auto",
    "transformers.models.auto.tokenization_auto", "transformers.processing_utils", "nltk.corpus",
    "pyarrow.parquet", "PIL.Image", "rich.progress",
)  # fmt: skip
STREAMS = 3


def ask(path: str, argv: list[str]) -> int:
    """Run a script in a fork of the server, with this process's folder, environment and streams.

    Returns:
        Its exit status; 1 where it died without one.
    """
    told = {"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ)}  # noqa: PTH109, as below
    message = json.dumps(told).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.connect(path)
        streams = array.array("i", range(STREAMS)).tobytes()
        line.sendmsg(
            [len(message).to_bytes(8, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)],
        )
        line.sendall(message)
        status = line.recv(1)
    return status[0] if status else 1


def serve(path: str) -> None:
    """Import, listen, and fork for each who asks. Ends with the process that started it."""
    import importlib
    import select
    import signal
    import threading

    del sys.path[0]  # this folder, whose files nobody means
    for name in MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would lose threads"
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(path)
    door.listen()
    signal.signal(signal.SIGCHLD, _reap)
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([door, sys.stdin], [], [])
        if sys.stdin in ready:  # closed: who started this is gone
            os.killpg(0, signal.SIGKILL)
        line, _ = door.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            door.close()
            _child(line)
        line.close()


def _reap(*_: object) -> None:
    """Take leave of forks that have ended, so that their CPU time counts as this process's."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _child(line: socket.socket) -> None:
    """Be the script that is asked for; never returns."""
    import atexit
    import runpy
    import threading
    import traceback

    size, ancillary, _, _ = line.recvmsg(8, socket.CMSG_SPACE(STREAMS * 4))
    streams = array.array("i")
    streams.frombytes(ancillary[0][2][: STREAMS * 4])
    want = int.from_bytes(size, "big")
    message = b""
    while len(message) < want:
        message += line.recv(want - len(message))
    told = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # New objects: those of the server know what kind of streams they were made for.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(told["cwd"])
    os.environ.clear()
    os.environ.update(told["env"])
    sys.argv = told["argv"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))  # noqa: PTH120, pathlib is slow to import
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        line.sendall(bytes([status % 256]))
    finally:
        os._exit(status % 256)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[1], sys.argv[2:]))
