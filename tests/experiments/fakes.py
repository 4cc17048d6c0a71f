"""A model that answers at once, for the tests of rows, files and exit statuses."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.models.prompts.generation_file import GenerationSettings

VISUAL_TOKENS = 16


class FakeLVLM:
    """Stands in for `LVLM`: reads its images, fails as a whole batch where one row is bad.

    Attributes:
        batches: the rows of every call that answered, as (file name, prompt).
        kill_at: send this process SIGKILL in the call of that number, from 0.
        settings: what the checkpoint says of its answers.
    """

    settings = GenerationSettings()

    def __init__(self, kill_at: int | None = None) -> None:
        self.batches: list[list[tuple[str, str]]] = []
        self.calls: list[dict[str, Any]] = []
        self.kill_at = kill_at

    def generate(self, images: Sequence[Path], prompts: Sequence[str], **options: Any) -> Any:
        from resprune_jax.models.images.files import open_image

        call = options["options"]
        self.calls.append(vars(call))
        if self.kill_at == len(self.batches):
            os.kill(os.getpid(), signal.SIGKILL)
        for prompt in prompts:
            if len(prompt) > 1000:
                raise CallError("a prompt of 2000 tokens exceeds the model's context of 1000")
        for image in images:
            open_image(image)
        names = [Path(str(image)).name for image in images]
        self.batches.append(list(zip(names, prompts, strict=True)))
        size = len(prompts)
        budgets = call.keep or [None] * size
        kept = [min(k, VISUAL_TOKENS) if isinstance(k, int) else VISUAL_TOKENS for k in budgets]
        nan = "the visual tokens of this image are not finite (NaN or infinite)"
        return SimpleNamespace(
            texts=[f"{prompt} {name}" for name, prompt in zip(names, prompts, strict=True)],
            tokens=[[1, 2]] * size,
            selections=None,
            kept=kept,
            visual_tokens=[VISUAL_TOKENS] * size,
            nouns=[["cup"]] * size,
            noun_backend="fake",
            errors=[nan if "NaN" in prompt else None for prompt in prompts],
            prompts=list(prompts),
            timings={"total": 0.5},
            drops=[((0, 4),)] * size,
            costs=[None] * size,
        )


def picture(path: Path, colour: str = "red") -> Path:
    """Write a small image."""
    Image.new("RGB", (20, 16), colour).save(path)
    return path
