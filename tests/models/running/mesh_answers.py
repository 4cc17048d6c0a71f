"""Run by `test_mesh.py` in a process with 8 devices: the same answers with and without a mesh."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resprune_jax.models import LVLM, load_model
from tests.compiles import backend_compiles

QUESTIONS = ["What is red?", "How many people are in the picture?", "Is there a dog?"]
KEEP = [4, 0.5, None]
FILE: dict[str, Any] = {"suppress_tokens": (9, 17), "bad_words_ids": ((8, 9),), "min_new_tokens": 3}
"""What the checkpoint's own settings say."""
CALLS = [
    {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3},
    {"repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.2, "no_repeat_ngram_size": 1},
]
"""What the call says; only the first may compile."""


def ruled(lvlm: LVLM, images: list[np.ndarray]) -> tuple[list[Any], int]:
    """The answers under settings, and how much was compiled for other values of the call."""
    lvlm.settings = replace(lvlm.settings, **FILE)
    made, compiled = [], 0
    for number, call in enumerate(CALLS):
        with backend_compiles() as compiles:
            got = lvlm.generate(images, QUESTIONS, keep=KEEP, max_new_tokens=8, **call)  # type: ignore[arg-type]
        compiled += len(compiles) if number else 0
        made.append([row.tolist() for row in got.tokens])
    return made, compiled


def main(checkpoint: Path) -> dict[str, object]:
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_disable_most_optimizations", True)  # what is compiled runs once
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (3, 64, 80, 3), dtype=np.uint8))
    plain = load_model(checkpoint, dtype="float32")
    want = plain.generate(images, QUESTIONS, keep=KEEP, max_new_tokens=8)
    want_logits, valid = map(np.asarray, plain.logits(images, QUESTIONS, keep=KEEP))
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    sharded = load_model(checkpoint, dtype="float32", mesh=mesh)
    got = sharded.generate(images, QUESTIONS, keep=KEEP, max_new_tokens=8)
    logits, _ = sharded.logits(images, QUESTIONS, keep=KEEP)
    kernel = sharded.state["language_model"]["layers"][0]["mlp"]["gate_up_proj"]["weight"][...]
    (rules, _), (ruled_there, compiles) = ruled(plain, images), ruled(sharded, images)
    unruled = [row.tolist() for row in want.tokens]
    pairs = zip(got.tokens, want.tokens, strict=True)
    return {
        "devices": jax.device_count(),
        "tokens equal": [a.tolist() == b.tolist() for a, b in pairs],
        "tokens equal under settings": [a == b for a, b in zip(ruled_there, rules, strict=True)],
        "settings without effect": [row == unruled for row in rules],
        "compiles for other settings": compiles,
        "kept equal": got.kept == want.kept,
        "logits": float(np.abs(np.asarray(logits) - want_logits)[valid].max()),
        "bound": 1e-5 * max(1.0, float(want_logits[valid].std())),
        "share of a kernel on one device": kernel.addressable_shards[0].data.size / kernel.size,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
