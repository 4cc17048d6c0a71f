"""The areas that pictures and frames are resized to, as a checkpoint's files give them."""

from collections.abc import Mapping
from typing import Any

from resprune_jax.errors import CallError

# A picture's limits where no file gives any.
IMAGE_LIMITS = (56 * 56, 1280 * 28 * 28)

# A video's limits where no file gives any: 128 to 768 tokens a group of frames.
VIDEO_LIMITS = (128 * 28 * 28, 768 * 28 * 28)


def limits(settings: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """(smallest, largest) area, from nested or flat settings.

    A limit that the file does not give is the class's, also where it then lies on the wrong side of
    the other: the largest area counts first, as in the reference.
    """
    size = settings.get("size")
    size = size if isinstance(size, Mapping) else {}
    least = _first(settings.get("min_pixels"), size.get("min_pixels"), size.get("shortest_edge"))
    most = _first(settings.get("max_pixels"), size.get("max_pixels"), size.get("longest_edge"))
    if least is not None and most is not None and least > most:
        raise CallError(
            f"the processor's smallest area {least} and largest area {most} fit no picture: "
            "correct preprocessor_config.json, or the video processor's file"
        )
    return default[0] if least is None else least, default[1] if most is None else most


def _first(*values: int | None) -> int | None:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)
