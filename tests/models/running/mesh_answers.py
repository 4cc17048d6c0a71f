"""Run by `test_mesh.py` in a process with 8 devices: the same answers with and without a mesh."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from resprune_jax.models import load_model

QUESTIONS = ["What is red?", "How many people are in the picture?", "Is there a dog?"]
KEEP = [4, 0.5, None]


def main(checkpoint: Path) -> dict[str, object]:
    jax.config.update("jax_default_matmul_precision", "highest")
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (3, 64, 80, 3), dtype=np.uint8))
    plain = load_model(checkpoint, dtype="float32")
    want = plain.generate(images, QUESTIONS, keep=KEEP, max_new_tokens=8)
    want_logits, valid = map(np.asarray, plain.logits(images, QUESTIONS, keep=KEEP))
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    sharded = load_model(checkpoint, dtype="float32", mesh=mesh)
    got = sharded.generate(images, QUESTIONS, keep=KEEP, max_new_tokens=8)
    logits, _ = sharded.logits(images, QUESTIONS, keep=KEEP)
    kernel = sharded.state["language_model"]["layers"][0]["mlp"]["up_proj"]["kernel"][...]
    pairs = zip(got.tokens, want.tokens, strict=True)
    return {
        "devices": jax.device_count(),
        "tokens equal": [a.tolist() == b.tolist() for a, b in pairs],
        "kept equal": got.kept == want.kept,
        "logits": float(np.abs(np.asarray(logits) - want_logits)[valid].max()),
        "bound": 1e-5 * max(1.0, float(want_logits[valid].std())),
        "share of a kernel on one device": kernel.addressable_shards[0].data.size / kernel.size,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
