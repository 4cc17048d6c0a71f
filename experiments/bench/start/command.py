"""`resprune bench start`: the first answer of a fresh process, cold and with the persistent cache.

Two processes, one after the other, with one folder for compiled programs, empty at first: the first
compiles everything, the second finds it there.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.bench import files
from resprune_jax.experiments.bench.timing import note
from resprune_jax.experiments.common import (
    Checkpoint,
    WeightsDType,
    check_number,
    check_target,
    console,
    make_folder,
    model_name,
    parse_keep,
    shown,
)

Shapes = Literal["small", "llava-1.5-7b"]

RUNS = ("cold", "with the cache")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Measure the first answer of a fresh process: cold, then with the persistent cache."""

    model: Checkpoint = "pocket"
    """Checkpoint folder in Hugging Face format, the id of one on the Hub, or pocket."""
    shapes: Annotated[Shapes | None, shown("{small,llava-1.5-7b}", "none")] = None
    """In place of a checkpoint: a model by its shapes, with random weights."""
    keep: Annotated[str, shown("COUNT|RATIO|full", "0.222")] = "0.222"
    """Visual tokens to keep."""
    new_tokens: Annotated[int, shown("N", "32")] = 32
    """Tokens of an answer, at most."""
    dtype: WeightsDType = None
    cache: Annotated[Path | None, shown("DIR", "a folder that is removed")] = None
    """An empty folder for compiled programs, which stays."""
    out: Annotated[Path, shown("DIR", "bench")] = Path("bench")
    """Folder for start.json and start.md; made if missing."""
    debug: bool = False
    """Show the traceback when something fails."""


def check(options: StartOptions) -> None:
    """Refuse what cannot work before a process is started.

    Raises:
        CallError: an option that cannot work.
    """
    parse_keep(options.keep)
    check_number("--new-tokens", options.new_tokens, 1)
    if options.shapes and options.dtype:
        raise CallError("--dtype is of a checkpoint, and --shapes has its own: leave it out")
    make_folder(options.out, "--out")
    for name in ("start.json", "start.md"):
        check_target(options.out / name, "--out")
    if options.cache is not None:
        make_folder(options.cache, "--cache")
        if any(options.cache.iterdir()):
            raise CallError(
                f"--cache {options.cache} is not empty: the first run would not be cold"
            )


def run(options: StartOptions) -> int:
    """Carry out `resprune bench start`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a process failed.
    """
    check(options)
    name = f"{options.shapes}, random weights" if options.shapes else model_name(options.model)
    report: dict[str, Any] = {
        "kind": "start", "model": name, "keep": options.keep, "new_tokens": options.new_tokens,
        "runs": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as spare:
        folder = str((options.cache or Path(spare)).resolve())
        for each in RUNS:
            note(f"{each} ...")
            report["runs"][each] = _process(options, folder)
    files.write(options.out / "start.json", report)
    words = markdown(report)
    files.write_text(options.out / "start.md", words)
    console().print(words, markup=False)
    note(f"written: {options.out / 'start.json'}, {options.out / 'start.md'}")
    return 0


def _process(options: StartOptions, folder: str) -> dict[str, Any]:
    """What a fresh process found.

    Raises:
        RunError: it failed; what it said is on standard error.
    """
    asked = {
        "model": options.model, "shapes": options.shapes, "dtype": options.dtype,
        "keep": parse_keep(options.keep), "new_tokens": options.new_tokens, "folder": folder,
        "started": time.time(),
    }  # fmt: skip
    # Modules are found where this process found them.
    code = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
        " from resprune_jax.experiments.bench.start.process import main;"
        " main(json.loads(sys.argv[2]))"
    )
    words = [sys.executable, "-c", code, json.dumps(sys.path), json.dumps(asked)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RunError(f"a process of the measurement ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, as docs/explanation/performance.md holds it."""
    from resprune_jax.experiments.bench.markdown import table

    runs = report["runs"]
    about = runs[RUNS[0]]["machine"]
    rows = [[part, *(f"{runs[each]['parts'][part]:.2f}" for each in RUNS)]
            for part in runs[RUNS[0]]["parts"]]  # fmt: skip
    place = next(at for at, row in enumerate(rows) if row[0] == "first answer")
    first = [runs[each]["compiled"]["first answer"] for each in RUNS]
    backend = [sum(each["backend"] for each in made["programs"]) for made in first]
    traced = [made["seconds"] - spent for made, spent in zip(first, backend, strict=True)]
    rows[place + 1 : place + 1] = [
        ["of it tracing and lowering", *(f"{seconds:.2f}" for seconds in traced)],
        ["of it XLA, or reading the cache", *(f"{seconds:.2f}" for seconds in backend)],
        ["programs compiled", *(str(made["compiled"]) for made in first)],
        ["programs found", *(str(made["found"]) for made in first)],
    ]
    whole = []
    for each in RUNS:
        parts = runs[each]["parts"]
        whole.append(f"**{sum(parts.values()) - parts['second answer']:.2f}**")
    rows.append(["start to the first answer", *whole])
    rows.append(["cache, MB", *(f"{runs[each]['cache_bytes'] / 1e6:.1f}" for each in RUNS)])
    return (
        f"{report['model']}, --keep {report['keep']}, {report['new_tokens']} new tokens;"
        f" {about['device']}, {about['cores']} cores, jax {about['jax']}; seconds\n\n"
        + table(["", *RUNS], rows)
    )
