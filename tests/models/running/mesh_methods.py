"""Run by `test_mesh.py` in a process with 4 devices: methods on a mesh choose as on one device."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resprune_jax.models import LVLM, load_model
from resprune_jax.models.prompts.options import CallOptions

QUESTIONS = ["What is red?", "How many people are in the picture?", "Is there a dog?"]
STAGES: dict[str, Any] = {"layers": (0, 1), "depth": 0, "keeps": (9, 4)}
CALLS: dict[str, dict[str, Any]] = {
    "fastv": {"method": "fastv", "keep": [5, 0.5, None], "method_settings": {"k": 1}},
    "sparsevlm": {"method": "sparsevlm", "method_settings": STAGES},
    "visionzip": {"method": "visionzip", "keep": [7, 0.5, None]},
    "tome": {"method": "tome", "keep": [7, 0.5, None]},
}
QWEN = "fastv of Qwen2.5-VL"
"""A prompt about two pictures among the three."""
ANSWERED = ("sparsevlm", QWEN)
"""From caches of several lengths, and on M-RoPE."""
NEW, SLOTS = 8, 64


@dataclass(frozen=True)
class Made:
    """What a call gave: logits of all that is left, which that is, picks in order of choice."""

    logits: np.ndarray
    valid: np.ndarray
    picks: list[list[int]]
    left: list[int]
    rows: np.ndarray | None
    tokens: list[list[int]]


def run(lvlm: LVLM, images: Any, given: dict[str, Any], *, answer: bool) -> Made:
    """`generate` from the program that gives every token's logits: few compiles."""
    call = lvlm.prepare(images, QUESTIONS, CallOptions(**given), new_tokens=NEW)
    chosen, size = lvlm.choose(call), len(QUESTIONS)
    assembled = lvlm.assemble(call, chosen)
    selection, kept, tokens = chosen.selection, chosen.kept, np.zeros((size, 0), np.int32)
    if call.schedule is None:
        logits, valid = lvlm.programs.score(lvlm.parameters, *assembled[:3])
    else:
        logits, valid, caches, positions, own = lvlm.drop(call, assembled, slots=SLOTS, every=True)
        selection, kept = own.selection, own.kept
        if answer:
            last = np.asarray(logits)[np.arange(len(valid)), np.asarray(valid).sum(axis=1) - 1]
            tokens, _ = lvlm.programs.decode(
                lvlm.parameters, caches, *lvlm.put(last), positions, np.int32(NEW), lvlm.eos_ids,
                np.uint32(0), np.float32(1), np.float32(1), slots=SLOTS, greedy=True,
            )  # fmt: skip
    assert selection is not None
    indices, counts = np.asarray(selection.indices), np.asarray(selection.count)
    return Made(
        np.asarray(logits)[:size],
        np.asarray(valid)[:size],
        [row[:count].tolist() for row, count in zip(indices, counts, strict=True)][:size],
        np.asarray(kept)[:size].sum(axis=1).tolist(),
        None if selection.rows is None else np.asarray(selection.rows)[:size],
        np.asarray(tokens)[:size, :NEW].tolist(),
    )


def compared(name: str, given: dict[str, Any], models: list[LVLM], images: Any) -> dict[str, Any]:
    """What a call gives without a mesh and on it."""
    want, got = (run(each, images, given, answer=name in ANSWERED) for each in models)
    report = {
        "picks equal": want.picks == got.picks,
        "tokens equal": want.tokens == got.tokens,
        "left equal": want.left == got.left and bool((want.valid == got.valid).all()),
        "left": got.left,
        "tokens": min(map(len, got.tokens)),
        "logits": float(np.abs(got.logits - want.logits)[want.valid].max()),
        "bound": 1e-5 * max(1.0, float(want.logits[want.valid].std())),
    }
    if want.rows is not None and got.rows is not None:
        pairs = zip(want.rows, got.rows, want.picks, strict=True)
        report["merged rows"] = max(float(np.abs(a - b)[: len(own)].max()) for a, b, own in pairs)
    return report


def main(llava: Path, qwen: Path) -> dict[str, Any]:
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs once
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (4, 64, 80, 3), dtype=np.uint8))
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    report: dict[str, Any] = {"devices": jax.device_count()}
    models = [load_model(llava, dtype="float32", mesh=each) for each in (None, mesh)]
    kernel = models[1].state["language_model"]["layers"][0]["mlp"]["gate_up_proj"]["weight"][...]
    report["share of a kernel"] = kernel.addressable_shards[0].data.size / kernel.size
    calls = {name: compared(name, given, models, images[:3]) for name, given in CALLS.items()}
    models = [load_model(qwen, dtype="float32", mesh=each) for each in (None, mesh)]
    given = {**CALLS["fastv"], "keep": [5, 0.5, 4]}
    calls[QWEN] = compared(QWEN, given, models, [[images[0]], images[1:3], [images[3]]])
    return {**report, "calls": calls}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))
