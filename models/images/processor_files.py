"""The checkpoint's own image processor, as `transformers` loads it without torch.

What the file says is judged before anything is made of it: only settings that are known are handed
on, each within its range, and only a processor that the family takes.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.models.checkpoint.advice import without_advice
from resprune_jax.models.checkpoint.files import foreign, is_file, read_json

_FILE, _NESTED = "preprocessor_config.json", "processor_config.json"

# Names that a class once had.
_RENAMED = {
    "Qwen2_5_VLImageProcessor": "Qwen2VLImageProcessor",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "SiglipFeatureExtractor": "SiglipImageProcessor",
}

_LONGEST_SIDE = 1 << 15
_LARGEST_AREA = 1 << 31
_MOST_PINPOINTS = 256


def load_image_processor(directory: str | os.PathLike[str], accepted: Sequence[str]) -> Any:
    """Load the image processor of a checkpoint, in its PIL form.

    Args:
        directory: a folder with `preprocessor_config.json` or `processor_config.json`.
        accepted: the classes that the model's pictures may be prepared by, without an ending
            "Fast" or "Pil"; the first is taken where the file names none.

    Returns:
        `transformers`' processor.

    Raises:
        CallError: no such file, or a processor of another model.
        RunError: a file that cannot be read, or a setting that cannot be.
    """
    folder = Path(directory)
    settings, path = read_settings(folder)
    name = _class_name(settings, path, accepted)
    known: dict[str, Any] = {"image_processor_type": name}
    for key, value in settings.items():
        if key in _SETTINGS:
            check, expected = _SETTINGS[key]
            # transformers takes null as it is, which is "off" or nothing, and no default.
            switch = _NEEDED_BY.get(key)
            needed = switch is not None and settings.get(switch, True) is not False
            if not (check(value) or (value is None and not needed)):
                raise RunError(f"{key} is {shown(value)} in {path}, expected {expected}")
            known[key] = value
    with without_advice():
        from transformers import AutoImageProcessor

    with (
        tempfile.TemporaryDirectory() as own,
        foreign(f"the image processor in {folder} cannot be loaded"),
    ):
        (Path(own) / _FILE).write_text(json.dumps(known), encoding="utf-8")
        return AutoImageProcessor.from_pretrained(
            own, backend="pil", local_files_only=True, trust_remote_code=False
        )


def check_resizes(processor: Any) -> None:
    """Refuse a processor that leaves pictures at their own sizes, which fit no model.

    Raises:
        CallError: `do_resize` is false or null.
    """
    if not processor.do_resize:
        raise CallError(
            f"preprocessor_config.json has do_resize {shown(processor.do_resize)}, but "
            "this model's pictures are resized: set it to true, or take it out"
        )


def read_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """The settings of a checkpoint's image processor, and the file that they are in.

    Raises:
        CallError: no such file.
        RunError: a file that cannot be read.
    """
    nested = read_json(folder / _NESTED).get("image_processor")
    if nested is not None:
        if not isinstance(nested, dict):
            raise RunError(
                f"image_processor is {shown(nested)} in {folder / _NESTED}, expected an object"
            )
        return nested, folder / _NESTED
    if is_file(folder / _FILE):
        return read_json(folder / _FILE), folder / _FILE
    raise CallError(
        f"{folder} has neither {_FILE} nor {_NESTED} with an image processor: copy the image "
        "processor's file there"
    )


def _class_name(settings: Mapping[str, Any], path: Path, accepted: Sequence[str]) -> str:
    """The class that a file names, by its name today."""
    given = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    if given is None:
        return accepted[0]
    if not isinstance(given, str):
        raise RunError(f"image_processor_type is {shown(given)} in {path}, expected a name")
    name = given
    for ending in ("Fast", "Pil"):
        name = name.removesuffix(ending)
    name = _RENAMED.get(name, name)
    if name not in accepted:
        raise CallError(
            f"{path} names the image processor {shown(given)}, but this model's pictures are "
            f"prepared by {' or '.join(accepted)}: the file belongs to another model"
        )
    return name


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e6


def _mean(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 3 and all(map(_finite, value))
    return _finite(value)


def _deviation(value: Any) -> bool:
    return _mean(value) and all(x >= 1e-6 for x in (value if isinstance(value, list) else [value]))


def _sides(value: Any) -> bool:
    """A side, a pair of sides, or sides and areas by name."""
    if isinstance(value, dict):
        sides = ("height", "width", "max_height", "max_width")
        areas = ("shortest_edge", "longest_edge", "min_pixels", "max_pixels")
        return len(value) <= 8 and all(
            part is None
            or (key in sides and _whole(1, _LONGEST_SIDE)(part))
            or (key in areas and _whole(1, _LARGEST_AREA)(part))
            for key, part in value.items()
        )
    if isinstance(value, list):
        return len(value) == 2 and all(map(_whole(1, _LONGEST_SIDE), value))
    return _whole(1, _LONGEST_SIDE)(value)


def _pinpoints(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _MOST_PINPOINTS
        and all(isinstance(pin, list) and len(pin) == 2 for pin in value)
        and all(_whole(1, _LONGEST_SIDE)(side) for pin in value for side in pin)
    )


_SWITCH = (_flag, "true or false")
_AREA = (_whole(1, _LARGEST_AREA), f"a number of pixels from 1 to {_LARGEST_AREA}")
_PATCH = (_whole(1, 1024), "a whole number from 1 to 1024")
_SIZE = (_sides, f"a side from 1 to {_LONGEST_SIDE} pixels, or an object of such sides")
_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_resize": _SWITCH,
    "do_rescale": _SWITCH,
    "do_normalize": _SWITCH,
    "do_center_crop": _SWITCH,
    "do_pad": _SWITCH,
    "do_convert_rgb": _SWITCH,
    "default_to_square": _SWITCH,
    "size": _SIZE,
    "crop_size": _SIZE,
    "resample": (_whole(0, 5), "the number of a filter from 0 to 5, such as 3 for bicubic"),
    "rescale_factor": (
        lambda value: _finite(value) and value > 0,
        "a number above 0, such as 1/255",
    ),
    "image_mean": (_mean, "a number, or one for each of three colours"),
    "image_std": (_deviation, "a number above 0, or one for each of three colours"),
    "image_grid_pinpoints": (_pinpoints, f"1 to {_MOST_PINPOINTS} pairs (height, width)"),
    "patch_size": _PATCH,
    "temporal_patch_size": _PATCH,
    "merge_size": _PATCH,
    "min_pixels": _AREA,
    "max_pixels": _AREA,
}
"""What a file may set: what makes a value good, and how a message says that."""

_NEEDED_BY = {
    "image_mean": "do_normalize",
    "image_std": "do_normalize",
    "rescale_factor": "do_rescale",
    "resample": "do_resize",
}
"""Settings that may not be null while a switch is on."""

_VIDEO_SETTINGS = {
    **{key: _SETTINGS[key] for key in ("size", "min_pixels", "max_pixels")},
    "cap_pixels_per_frame": _SWITCH,
    "max_video_tokens": (_whole(1, 1 << 24), "a whole number from 1 to 16777216"),
}
"""The same for what is used of a video processor's."""


def _check_video_settings(settings: Mapping[str, Any], path: Path) -> None:
    """Refuse settings of a video processor that cannot be.

    Raises:
        RunError: one of those that are used is out of its range; the message names it.
    """
    for key, (check, expected) in _VIDEO_SETTINGS.items():
        value = settings.get(key)
        if value is not None and not check(value):
            raise RunError(f"{key} is {shown(value)} in {path}, expected {expected}")


def video_settings(folder: Path) -> Mapping[str, Any]:
    """The settings of a checkpoint's video processor, where its newest or oldest place has them."""
    path = folder / "processor_config.json"
    found: Any = read_json(path).get("video_processor")
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if not isinstance(found, Mapping):
            path = folder / name
            found = read_json(path) if is_file(path) else None
    found = found if isinstance(found, Mapping) else {}
    _check_video_settings(found, path)
    return found
