"""The checkpoint's own image processor, as `transformers` loads it without torch."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.prompts.chat_files import one_line, read_json

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


def video_settings(folder: Path) -> Mapping[str, Any]:
    """The settings of a checkpoint's video processor, where its newest or oldest place has them."""
    own = read_json(folder / "processor_config.json").get("video_processor")
    if isinstance(own, Mapping):
        return own
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}
