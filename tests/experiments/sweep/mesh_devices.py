"""Run by `test_hosts.py` in a process with 4 devices: where compiled programs work."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax.experiments.data.examples import Dataset, Example
from resprune_jax.experiments.sweep import choosing, summary
from resprune_jax.experiments.sweep.engine import Engine
from resprune_jax.experiments.sweep.grid import Grid, configurations
from resprune_jax.experiments.sweep.hosts import local_mesh
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.prompts.options import CallOptions

TRIPS = r'"known_trip_count":\{"n":"(\d+)"'
"""How often a loop of a compiled program runs."""
DECOMPOSED = r"f32\[(\d+),\d+,\d+\]\S* [^\n]*custom-call\([^\n]*syevd"
"""How many matrices a compiled program decomposes at once."""

QUESTIONS = ["What is red?", "How many people are there?", "Is it a dog?", "What is it?"] * 2


@dataclasses.dataclass(frozen=True)
class InMemory(Dataset):
    """Examples whose pictures are numbers of arrays."""

    shown: list[np.ndarray]

    def pictures(self, example: Example) -> list[Any]:
        return [self.shown[number] for number in example.images]


def parts(tree: Any, rows: int) -> list[list[int]]:
    """Of each array with a dimension of `rows`: how many of its rows each device holds."""
    found = []
    for leaf in jax.tree.leaves(tree):
        axes = [axis for axis, size in enumerate(leaf.shape) if size == rows]
        if axes:
            found.append([shard.data.shape[axes[0]] for shard in leaf.addressable_shards])
    return found


def main(checkpoint: Path) -> dict[str, Any]:
    jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs once
    mesh = local_mesh()
    assert mesh is not None
    images = list(np.random.default_rng(0).integers(0, 256, (8, 64, 80, 3), dtype=np.uint8))
    lvlm = load_model(checkpoint, dtype="float32", mesh=mesh)
    plain = load_model(checkpoint, dtype="float32")
    made = lvlm.programs
    seen: dict[str, Any] = {}

    def watched(name: str, program: Any) -> Any:
        def call(*args: Any, **settings: Any) -> Any:
            compiled = program.lower(*args, **settings).compile()
            out = compiled(*args)  # the settings are static
            held = {len(each.device_set) for each in jax.tree.leaves(compiled.output_shardings)}
            seen[name] = {
                "partitions": f"num_partitions={len(jax.devices())}" in compiled.as_text(),
                "devices": sorted(held),
                "rows": parts(out, len(QUESTIONS)),
                "trips": [int(n) for n in re.findall(TRIPS, compiled.as_text())],
                "decomposed": [int(n) for n in re.findall(DECOMPOSED, compiled.as_text())],
            }
            return out

        return call

    names = ("encode", "prefill", "decode")
    calls = {name: watched(name, getattr(made, name)) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LVLM, "programs", dataclasses.replace(made, **calls))
        got = lvlm.generate(images, QUESTIONS, keep=4, max_new_tokens=3)
    alone = plain.generate(images, QUESTIONS, keep=4, max_new_tokens=3)
    pairs = zip(got.tokens, alone.tokens, strict=True)
    equal = [a.tolist() == b.tolist() for a, b in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "_choose_all", watched("choose", choosing._choose_all))
        patch.setattr(summary, "_figures", watched("measure", summary._figures))
        rows = swept(lvlm, images)
    return {
        "mesh": dict(mesh.shape), "programs": seen, "equal": equal,
        "rows": len(rows), **compared(rows, swept(plain, images)),
    }  # fmt: skip


def compared(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether rows are alike, and what is measured of their picks within rounding."""
    measured = ("residual", "effective_rank")
    plain = [[{k: v for k, v in row.items() if k not in measured} for row in own]
             for own in (rows, others)]  # fmt: skip
    figures = [[row[name] or 0.0 for row in own for name in measured] for own in (rows, others)]
    close = np.allclose(*figures, rtol=1e-5, atol=1e-6)
    return {"equal_rows": plain[0] == plain[1], "close_figures": bool(close)}


def swept(lvlm: LVLM, images: list[np.ndarray]) -> list[dict[str, Any]]:
    """The rows of a small sweep, seven questions so that devices do not divide them, no times."""
    examples = [
        Example(f"{n}", (n,), f"{n}", "", question, ("red",), "exact")
        for n, question in enumerate(QUESTIONS[:-1])
    ]
    data = InMemory("in memory", examples, "", images)
    grids = [
        Grid(methods=("none", "resprune"), keep=("4", "1/3"), alpha=(0.0, 1.0), text=("prompt",)),
        Grid(methods=("divprune", "random", "fastv"), keep=("1/3",)),
    ]
    call = CallOptions(max_new_tokens=3)
    engine = Engine(lvlm, data, configurations(grids), call, size=40, batch=8)
    return [{k: v for k, v in row.items() if not k.endswith("_ms")} for row in engine.run(0)]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
