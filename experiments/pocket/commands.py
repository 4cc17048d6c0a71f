"""`resprune pocket export` and `resprune pocket scenes`."""

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resprune_jax.experiments.common import check_number, check_target, console, make_folder

Preset = Literal["cpu", "gpu"]
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write the newest weights of a training run as a checkpoint in Hugging Face format."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Folder of the run, which `resprune pocket train --out` names."""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: RUN_DIR/export)")
    ] = None
    """Folder of the checkpoint; made if missing."""
    preset: Preset = "cpu"
    """Which model the run trains."""
    debug: bool = False
    """Show the traceback when something fails."""


def export_run(options: ExportOptions) -> int:
    """Carry out `resprune pocket export`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: no such run, or a folder that cannot be made.
    """
    from resprune_jax.experiments.pocket.model.export import export
    from resprune_jax.experiments.pocket.training.command import newest

    stage, step, model = newest(options.run, options.preset)
    out = options.out or options.run / "export"
    make_folder(out, "--out")
    folder = export(out, options.preset, model)
    size = sum(path.stat().st_size for path in folder.iterdir())
    console().print(f"{folder}: step {step} of stage {stage}, {size / 1e6:.1f} MB", markup=False)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScenesOptions:
    """Draw scenes with their questions and answers on a sheet."""

    out: Annotated[Path, tyro.conf.arg(metavar="OUT.png")] = Path("scenes.png")
    """The picture to write."""
    preset: Preset = "cpu"
    """Which scenes: of 144 (cpu) or 576 (gpu) visual tokens."""
    split: Literal["test", "validation", "train"] = "test"
    """Whose scenes."""
    count: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """How many, the first ones."""
    patches: bool = False
    """Frame the patches that each scene's first question is about."""
    debug: bool = False
    """Show the traceback when something fails."""


def scenes(options: ScenesOptions) -> int:
    """Carry out `resprune pocket scenes`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: a count of none or too many, or a picture that cannot be written.
    """
    check_number("--count", options.count, 1, 200)
    check_target(options.out, "--out", _PICTURES)
    from resprune_jax.experiments.pocket.scenes.frozen import balanced_set
    from resprune_jax.experiments.pocket.scenes.sheet import contact_sheet

    items = list(islice(balanced_set(options.preset, options.split), options.count))
    path = contact_sheet(items, options.out, outlined=options.patches)
    asked = sum(len(questions) for _, questions in items)
    console().print(f"{path}: {len(items)} scenes, {asked} questions", markup=False)
    return 0
