"""Pictures of a run: its losses and what it got right."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
_NO_SHARES = ("step", "seconds", "loss", "norm", "middle", "centre", "answers", "asking", "dense")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a stage's log in the order of steps; of a step logged twice, the later one."""
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    by_step = {row["step"]: row for row in found}
    return (by_step[step] for step in sorted(by_step))


def loss_figure(folder: Path, stages: Sequence[str]) -> Path:
    """Draw the losses and accuracies of a run.

    Args:
        folder: of the run.
        stages: names of its stages that have a log.

    Returns:
        The picture, loss.png in that folder.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(stages), 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(stages), sharex="col", squeeze=False)
    for (top, low), stage in zip(axes.T, stages, strict=True):
        lines = list(rows(folder / stage / LOG))
        steps = [line["step"] for line in lines]
        top.plot(steps, [line["loss"] for line in lines], color="#1b1e23")
        top.set_title(stage)
        top.set_ylim(bottom=0)
        top.set_ylabel("loss")
        for name in dict.fromkeys(name for line in lines for name in line):
            values = [line.get(name) for line in lines]
            known = [value for value in values if value is not None]
            if known and name not in _NO_SHARES and 0 <= min(known) <= max(known) <= 1:
                low.plot(steps, [float("nan") if v is None else v for v in values], label=name)
        low.set_ylim(0, 1)
        low.set_ylabel("share right")
        low.set_xlabel("step")
        if low.lines:
            low.legend(fontsize=7, ncols=2)
    path = folder / "loss.png"
    figure.savefig(path)
    return path
