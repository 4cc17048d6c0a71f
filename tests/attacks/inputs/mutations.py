"""Damage to JSON, as a stranger or a broken disk does it."""

import copy
import json
from typing import Any

import numpy as np

Numbers = np.random.Generator

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    255,
    256,
    257,
    1000,
    10**5,
    10**6,
    2**24,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63,
    2**64,
    10**12,
    10**30,
    10**39,
    10**41,
    10**400,
    -(2**31),
    -(2**63),
    0.0,
    -0.0,
    0.5,
    1.5,
    1e-30,
    1e-300,
    1e30,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "x",
    "0",
    "llava",
    "<image>",
    "\u0000",
    "\ud800",
    "\u202e\x1b[31m",
    "a\nb",
    "../../etc",
    "{{",
    "x" * 5000,
    "x" * 300_000,
    [],
    [[]],
    [None],
    [1],
    [0, 0],
    [1, 2, 3],
    [0.5, 0.5, 0.5],
    [[1], [2]],
    list(range(3000)),
    [[28, 28]] * 5000,
    [[28 * n, 28 * n] for n in range(1, 400)],
    [[2**20, 2**20]],
    {},
    {"a": 1},
    {"": {}},
    {"height": 28, "width": 28},
    {"shortest_edge": 10**9},
    {"height": 10**9, "width": 10**9},
    {"min_pixels": 1, "max_pixels": 2},
    {"x": "y"},
    {"rope_type": 3},
    {str(n): n for n in range(3000)},
    "float16",
    "bfloat16",
    "float8",
    "gelu",
    "CLIPImageProcessor",
    "Qwen2VLImageProcessor",
    "LlavaNextImageProcessor",
    "PixtralImageProcessor",
    "mistral",
    "linear",
)

KEYS = (
    "model_type",
    "text_config",
    "vision_config",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "rope_parameters",
    "head_dim",
    "sliding_window",
    "layer_types",
    "eos_token_id",
    "auto_map",
    "torch_dtype",
    "dtype",
    "size",
    "crop_size",
    "min_pixels",
    "max_pixels",
    "image_processor",
    "image_processor_type",
    "feature_extractor_type",
    "chat_template",
    "tokenizer_class",
    "added_tokens_decoder",
    "extra_special_tokens",
    "additional_special_tokens",
    "bos_token",
    "model_max_length",
    "mm_vision_tower",
    "architectures",
    "image_grid_pinpoints",
    "preprocess",
    "__class__",
    "num_hidden_layers",
    "video_processor",
    "cap_pixels_per_frame",
    "max_video_tokens",
)


def places(content: Any) -> list[tuple[Any, ...]]:
    """The paths of all values inside."""
    found: list[tuple[Any, ...]] = []
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting and len(found) < 2000:
        path, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found.append((*path, key))
            if isinstance(inner, dict | list):
                waiting.append(((*path, key), inner))
    return found


def hostile(numbers: Numbers, near: Any = None) -> Any:
    """A value that nobody expects; numbers sometimes near the one that was there."""
    if isinstance(near, int | float) and not isinstance(near, bool) and numbers.random() < 0.3:
        change = numbers.integers(6)
        return [
            near + 1,
            near - 1,
            -near,
            near * 2,
            near * 10**6,
            near / 1 if abs(near) < 2**60 else near,
        ][int(change)]
    return copy.deepcopy(HOSTILE[int(numbers.integers(len(HOSTILE)))])


def mutate(content: Any, numbers: Numbers) -> Any:
    """One to three changes of the values, keys and nesting of parsed JSON."""
    content = copy.deepcopy(content)
    for _ in range(int(numbers.integers(1, 4))):
        paths = places(content)
        if not paths or not isinstance(content, dict):
            return hostile(numbers)
        path = paths[int(numbers.integers(len(paths)))]
        at: Any = content
        for key in path[:-1]:
            at = at[key]
        kind = int(numbers.integers(10))
        if kind < 6:
            at[path[-1]] = hostile(numbers, at[path[-1]])
        elif kind == 6:
            del at[path[-1]]
        elif kind == 7:
            at[path[-1]] = nested(at[path[-1]], int(numbers.choice([2, 20, 45, 900])), numbers)
        else:
            where = at if isinstance(at, dict) else content
            where[KEYS[int(numbers.integers(len(KEYS)))]] = hostile(numbers)
    return content


def nested(value: Any, depth: int, numbers: Numbers) -> Any:
    """A value inside many lists or objects."""
    lists = numbers.random() < 0.5
    for _ in range(depth):
        value = [value] if lists else {"a": value}
    return value


def damage(raw: bytes, numbers: Numbers) -> bytes:
    """One change of the bytes of a file."""
    at = int(numbers.integers(len(raw) + 1))
    kind = int(numbers.integers(8))
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + bytes(numbers.integers(0, 256, 3, np.uint8)) + raw[at:]
    if kind == 2:
        return raw[:at] + raw[at + 1 :]
    if kind == 3:
        return b"\xef\xbb\xbf" + raw
    if kind == 4:
        return raw.decode(errors="replace").encode("utf-16")
    if kind == 5:
        deep = int(numbers.choice([100, 1000, 100_000]))
        return raw.rstrip()[:-1] + b', "deep": ' + b"[" * deep + b"]" * deep + b"}"
    if kind == 6:
        return raw[:at] + b"9" * int(numbers.choice([30, 500, 5000])) + raw[at:]
    return raw[:at] + raw[: max(1, len(raw) // 2)] * 3 + raw[at:]


def text(content: Any) -> bytes:
    """JSON as bytes; halves of surrogate pairs and infinities as Python's parser takes them."""
    try:
        return json.dumps(content).encode()
    except (RecursionError, ValueError):
        return b"[" * 5000 + b"]" * 5000
