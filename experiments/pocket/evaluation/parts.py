"""A long measurement in parts: what each method said is kept in a file of its own."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.pocket.evaluation.measure import Item, Measured, Setting, measure
from resprune_jax.experiments.pocket.evaluation.summary import weights_digest
from resprune_jax.experiments.pocket.scenes.frozen import digest
from resprune_jax.models.api import LVLM


def in_parts(
    folder: Path,
    lvlm: LVLM,
    items: Sequence[Item],
    chosen: Sequence[Setting],
    *,
    rng_seed: int = 0,
    step: Callable[[int], None] | None = None,
) -> Measured:
    """`measure`, method by method; what is in the folder already is not asked again.

    Args:
        folder: made where there is none. A file of it belongs to a method, a model, the questions
            and the seed.
        lvlm: the model.
        items: scenes and their questions.
        chosen: the settings.
        rng_seed: of random tokens.
        step: told how many questions were answered or read.

    Raises:
        CallError: a file of the folder is of another model, of other questions or another seed.
        RunError: an answer that failed, or a file that is broken.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CallError(f"--resume {folder}: {error.strerror}") from None
    own = {
        "weights": weights_digest(lvlm), "clip": None if lvlm.clip is None else lvlm.clip.path.name,
        "contents": digest(list(items)).contents,
        "rng_seed": rng_seed,
    }  # fmt: skip
    asked = sum(len(questions) for _, questions in items)
    parts = []
    for method in dict.fromkeys(setting.method for setting in chosen):
        settings = [setting for setting in chosen if setting.method == method]
        path = folder / f"{_file_name(method)}.json"
        part = _read(path, own, items, settings)
        if part is None:
            part = measure(lvlm, items, settings, rng_seed=rng_seed, step=step)
            _write(path, own, part)
        elif step is not None:
            step(asked * len(settings))
        parts.append(part)

    def together(name: str) -> dict[str, Any]:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    first = parts[0]
    return Measured(
        list(items), together("texts"), together("kept"), together("averages"), together("times"),
        first.aucs, list(chosen), first.noun_backend, sum(part.seconds for part in parts),
    )  # fmt: skip


def _file_name(method: str) -> str:
    """A method with its settings as a file's name."""
    return "".join(c if c.isalnum() or c in "-+.=," else "_" for c in method)


def _write(path: Path, own: dict[str, Any], part: Measured) -> None:
    data = own | {
        "settings": [setting.name for setting in part.settings],
        "texts": part.texts,
        "kept": {name: row.tolist() for name, row in part.kept.items()},
        "averages": {name: row.tolist() for name, row in part.averages.items()},
        "times": part.times,
        "aucs": [None if np.isnan(x) else x for x in part.aucs.tolist()],
        "noun_backend": part.noun_backend,
        "seconds": part.seconds,
    }
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(data), encoding="utf-8")
    beside.replace(path)


def _read(
    path: Path, own: dict[str, Any], items: Sequence[Item], settings: list[Setting]
) -> Measured | None:
    """A part that was measured before; None where it is not there, or lacks a setting."""
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if differ := [name for name, value in own.items() if data[name] != value]:
            raise CallError(
                f"{path} was measured with other {', '.join(differ)}: give another --resume folder"
            )
        if not {setting.name for setting in settings} <= set(data["settings"]):
            return None
        names = [setting.name for setting in settings]
        return Measured(
            list(items), {name: data["texts"][name] for name in names},
            {name: np.array(data["kept"][name]) for name in names},
            {name: np.array(data["averages"][name]) for name in names},
            {name: data["times"][name] for name in names if name in data["times"]},
            np.array([np.nan if x is None else x for x in data["aucs"]]), settings,
            data["noun_backend"], data["seconds"],
        )  # fmt: skip
    except CallError:  # a ValueError too
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not what --resume wrote ({error!r}): remove it") from None
