"""Runs a notebook in a kernel of this environment, in a folder that holds nothing."""

import os
import resource
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.examples.notebooks import Notebook, clean

CELL_S = 600
"""The most seconds of a cell, on a machine with other work."""


@dataclass(frozen=True)
class Run:
    """A notebook that ran.

    Attributes:
        notebook: it, cleaned.
        wall: seconds.
        cpu: seconds of all cores, of the kernel and of the commands that it started.
    """

    notebook: Notebook
    wall: float
    cpu: float


def environment(folder: Path) -> dict[str, str]:
    """What a kernel finds around it: this environment's commands, and nothing of the user's own.

    Args:
        folder: for what is kept between commands, so that nothing of an earlier run is in it.
    """
    own = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "MPLBACKEND")
    }
    return own | {
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONNOUSERSITE": "1",
    }


def execute(notebook: Notebook, folder: Path) -> Run:
    """Run every cell.

    Args:
        notebook: as it was read from its file.
        folder: empty.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    made = nbformat.from_dict(notebook)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    work, beside = folder / "work", folder / "beside"
    work.mkdir()
    beside.mkdir()
    client = NotebookClient(
        made, timeout=CELL_S, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(work)}},
        # Else it warns that what it says to this process on this machine is not encrypted.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )  # fmt: skip
    begin, before = time.monotonic(), _children()
    client.execute(env=environment(beside))
    return Run(clean(_plain(made)), time.monotonic() - begin, _children() - before)


def _children() -> float:
    """CPU seconds of processes that this one has waited for, with theirs."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _plain(value: Any) -> Any:
    """nbformat's own dictionaries as plain ones."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    return [_plain(own) for own in value] if isinstance(value, list) else value
