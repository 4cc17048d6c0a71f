"""`resprune pocket train`: the stages of training one after the other, and what comes out.

The module is light: JAX comes in when something is trained.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    check_number,
    console,
    make_folder,
    use_compilation_cache,
)

Preset = Literal["cpu", "gpu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a pocket model on scenes drawn on the spot; the same call again goes on."""

    preset: Preset = "cpu"
    """cpu: 144 visual tokens, for two cores; gpu: 576, for a large GPU."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("pocket")
    """Folder of the run: checkpoints, logs, loss.png, and the model in export/."""
    steps: Annotated[
        tuple[str, ...],
        tyro.conf.arg(metavar="STAGE=N", help_behavior_hint="(default: the preset's)"),
    ] = ()
    """Steps of single stages, such as see=100 answer=200."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes that draw scenes ahead; 0 draws them in the training process."""
    save_every: Annotated[int, tyro.conf.arg(metavar="N")] = 200
    """Steps between checkpoints."""
    debug: bool = False
    """Show the traceback when something fails."""


def steps_of(words: Sequence[str]) -> dict[str, int]:
    """Read `--steps`.

    Raises:
        CallError: a word that is not a stage's name and a whole number of at least 1.
    """
    steps = {}
    for word in words:
        name, _, number = word.partition("=")
        if not number.isdecimal() or int(number) < 1 or name in steps:
            raise CallError(
                f"--steps {word}: write each stage once, with a number of steps: see=100 answer=200"
            )
        steps[name] = int(number)
    return steps


def run(options: TrainOptions) -> int:
    """Carry out `resprune pocket train`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: a wrong call, or a folder that holds a run of other options.
    """
    check_number("--workers", options.workers, 0, 64)
    check_number("--save-every", options.save_every, 1)
    given = steps_of(options.steps)
    make_folder(options.out, "--out")
    use_compilation_cache()
    import jax
    from flax import nnx

    from resprune_jax.experiments.pocket.model.export import export
    from resprune_jax.experiments.pocket.training.figures import loss_figure
    from resprune_jax.experiments.pocket.training.plans import stages_of
    from resprune_jax.experiments.pocket.training.stages import initial
    from resprune_jax.experiments.pocket.training.trainer import train

    plan = stages_of(options.preset, given)
    _claim(options.out, options.preset, {stage.name: stage.schedule.steps for stage in plan})
    say = console().out
    begin = time.perf_counter()
    graph, params = initial(options.preset, 0)
    for stage in plan:
        if stage.begin is not None:
            params = stage.begin(graph, params)
        params = train(
            options.out / stage.name, params, stage.loss(graph), stage.batches, stage.schedule,
            workers=options.workers, save_every=options.save_every, say=say,
        )  # fmt: skip
    say(f"{loss_figure(options.out, [stage.name for stage in plan])}: losses and accuracies")
    folder = export(options.out / "export", options.preset, nnx.merge(graph, params).model)
    minutes = (time.perf_counter() - begin) / 60
    device = jax.devices()[0].device_kind
    say(f"{folder}: trained in {minutes:.0f} minutes of this call on {device}")
    return 0


def _claim(folder: Path, preset: str, steps: Mapping[str, int]) -> None:
    """Write down what the folder's run is, or refuse to go on with another one in it.

    A stage that has not begun may still change.
    """
    path = folder / "run.json"
    own: dict[str, Any] = {"preset": preset, **steps}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        begun = [name for name in steps if (folder / name / "checkpoints").is_dir()]
        other = [
            f"{name} {found.get(name)} not {own[name]}"
            for name in ("preset", *begun)
            if found.get(name) != own[name]
        ]
        if other:
            raise CallError(
                f"--out {folder} holds another run ({', '.join(other)}): give the same options to"
                " go on with it, or another folder"
            )
    path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def newest(folder: Path, preset: str) -> tuple[str, int, Any]:
    """The newest weights of a run.

    Args:
        folder: of the run.
        preset: which model it trains.

    Returns:
        (name of the stage, its step, the model).

    Raises:
        CallError: a folder without checkpoints, or with those of another model.
    """
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from flax import nnx

    from resprune_jax.experiments.pocket.training.plans import stages_of
    from resprune_jax.experiments.pocket.training.stages import initial

    for stage in reversed(stages_of(preset)):
        path = (folder / stage.name / "checkpoints").absolute()
        if not path.is_dir():
            continue
        with ocp.CheckpointManager(path, item_handlers=ocp.PyTreeCheckpointHandler()) as manager:
            step = manager.latest_step()
            if step is None:
                continue
            # As NumPy arrays: the run may have lived on another kind of device.
            plain = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), manager.item_metadata(step)
            )
            saved = manager.restore(step, args=ocp.args.PyTreeRestore(restore_args=plain))
        graph, params = jax.eval_shape(lambda: initial(preset, 0))
        values = []
        for keys, leaf in nnx.to_flat_state(params):
            value = saved["params"]
            for key in (*keys, "value"):
                value = value.get(str(key), {})
            if getattr(value, "shape", None) != leaf.get_value().shape:
                name = ".".join(map(str, keys))
                raise CallError(f"{path} is not of a model of preset {preset}: {name} differs")
            values.append((keys, leaf.replace(jax.numpy.asarray(value))))
        return stage.name, step, nnx.merge(graph, nnx.from_flat_state(values)).model
    raise CallError(f"{folder} holds no checkpoint of a training run: give what --out named")
