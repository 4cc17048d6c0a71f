"""The checkpoint's own image processor, as `transformers` loads it without torch."""

import os
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.prompts.chat_files import one_line

_NAMES = ("preprocessor_config.json", "processor_config.json")


def load_image_processor(directory: str | os.PathLike[str]) -> Any:
    """Load the image processor of a checkpoint, in its PIL form.

    Args:
        directory: a folder with `preprocessor_config.json` or `processor_config.json`.

    Returns:
        `transformers`' processor.

    Raises:
        CallError: no such file.
        RunError: a file that cannot be read.
    """
    from transformers import AutoImageProcessor

    folder = Path(directory)
    if not any((folder / name).is_file() for name in _NAMES):
        raise CallError(
            f"{folder} has neither {' nor '.join(_NAMES)}: copy the image processor's file there"
        )
    try:
        return AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as problem:  # transformers raises many kinds
        raise RunError(
            f"the image processor in {folder} cannot be loaded: {one_line(problem)}"
        ) from problem
