"""The JSON file of a benchmark: begun, gone on with, and written whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.bench.timing import note, speeds


def start(
    path: Path, about: dict[str, Any], kind: str, version: int, resume: bool,
    measure: Callable[[], dict[str, float]] = speeds,
) -> dict[str, Any]:  # fmt: skip
    """A new report, or the one of an earlier run on this machine.

    Args:
        path: of the JSON file.
        about: the machine.
        kind: of the report.
        version: of the file's layout.
        resume: go on with what the file holds.
        measure: tells what the machine can do, see `timing.speeds`.

    Raises:
        CallError: a file to resume from that was measured elsewhere, or is none of ours.
    """
    fresh = {"kind": kind, "version": version, "machine": about, "rows": {}}
    if resume and path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            stamp = [old[key] for key in ("kind", "version", "machine")]
        except (ValueError, KeyError, TypeError):
            raise CallError(f"--resume: {path} is no report of this command") from None
        if stamp != [kind, version, about]:
            raise CallError(f"--resume: {path} was measured on another machine or version")
        return old
    note("measuring the machine")
    return fresh | {"speeds": measure()}


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report whole, or not at all."""
    write_text(path, json.dumps(report, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it; no signal comes between the two."""
    spare = path.with_suffix(path.suffix + ".partial")
    with stopping.whole():
        spare.write_text(text, encoding="utf-8")
        spare.replace(path)
