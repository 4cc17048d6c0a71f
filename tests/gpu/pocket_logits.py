"""What the pocket model says of eight validation pictures; as a program it writes that down."""

import sys
from itertools import islice
from typing import Any

import numpy as np

from resprune_jax.experiments.pocket import balanced_set, render
from resprune_jax.models import LVLM, load_model

KEPT = 48


def made(lvlm: LVLM) -> dict[str, np.ndarray]:
    """Logits of full and pruned prompts (B, P, V), which tokens stay (B, N), and 12 new tokens.

    Every word guides the choice: no tagger is needed.
    """
    scenes = list(islice(balanced_set("cpu", "validation"), 8))
    images = [render(scene) for scene, _ in scenes]
    prompts = [questions[0].prompt for _, questions in scenes]
    found = {}
    options: dict[str, dict[str, Any]] = {"full": {}, "pruned": {"keep": KEPT}}
    for name, own in options.items():
        logits, valid = lvlm.logits(images, prompts, text="prompt", **own)
        found[name] = np.where(np.asarray(valid)[..., None], np.asarray(logits), 0)
    found["masks"] = lvlm.select(images, prompts, keep=KEPT, text="prompt").mask
    answers = lvlm.generate(images, prompts, keep=KEPT, text="prompt", max_new_tokens=12).tokens
    found["tokens"] = np.asarray([list(row) + [-1] * (12 - len(row)) for row in answers])
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **made(load_model("pocket", dtype="float32")))
