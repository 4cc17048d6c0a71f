"""Names of LLaVA's parameters in checkpoint files, and how a parameter is stored under its name.

Serves LLaVA-1.5 and LLaVA-NeXT, whose names differ in `image_newline` only.

One canonical name for every key dialect, then one rule from module paths to canonical names: the
module attributes are the name's parts, and only the last part and the layout differ (Hugging Face
stores a linear layer's weight as (out, in), here a kernel is (in, out)).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

# First match wins. The four dialects in the wild: published LLaVA repositories nest the vision
# tower in `vision_model` and the language model in `model`; files saved by transformers 4.52 to
# 4.57 begin with `model.`; version 5 drops `vision_model`, in memory with and in new files without
# `model.`.
_CANONICAL_PREFIXES = (
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
)

DIALECTS: dict[str, dict[str, str]] = {
    "hub": {
        "vision_tower.": "vision_tower.vision_model.",
        "language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
    "v4.52": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
        "language_model.": "model.language_model.",
    },
    "v5-memory": {
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
        "language_model.": "model.language_model.",
    },
    "v5-saved": {
        "language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
}
"""Key dialects for writing: canonical prefix -> prefix in the file (others stay as they are)."""

# Buffers that old versions of transformers saved and that are computed, not learned.
_BUFFER = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")
_VISION_BLOCK = re.compile(r"^vision_tower\.encoder\.layers\.(\d+)\.(.+)$")
_BLOCK_NUMBER = re.compile(r"\.layers\.(\d+)\.")

Layout = Literal["copy", "transpose", "patches"]


def canonical_key(key: str) -> str:
    """Return the canonical name of a checkpoint key in any of the dialects.

    Args:
        key: a tensor's name in a file.

    Returns:
        `image_newline`, or a name that begins with `vision_tower.`, `multi_modal_projector.`,
        `language_model.` or `lm_head.`; a key of no dialect comes back as it is.
    """
    for old, new in _CANONICAL_PREFIXES:
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def dialect_key(key: str, dialect: str) -> str:
    """Return the name that a canonical key has in one of `DIALECTS`."""
    for old, new in DIALECTS[dialect].items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


@dataclasses.dataclass(frozen=True)
class Source:
    """How one parameter is stored in a file.

    Attributes:
        key: canonical name.
        shape: the parameter's shape in the module.
        layout: "copy", "transpose" (a linear layer's weight), or "patches" (a convolution whose
            stride is its kernel, as the matrix that multiplies flattened patches).
    """

    key: str
    shape: tuple[int, ...]
    layout: Layout

    def fits(self, stored: Sequence[int]) -> bool:
        """Whether a stored tensor of this shape holds the parameter."""
        stored = tuple(stored)
        if self.layout == "copy":
            return stored == self.shape
        if self.layout == "transpose":
            return stored == self.shape[::-1]
        return (
            len(stored) == 4
            and stored[0] == self.shape[1]
            and stored[2] == stored[3]
            and math.prod(stored[1:]) == self.shape[0]
        )

    def stored_shape(self, channels: int) -> tuple[int, ...]:
        """The shape in a file; `channels` are those of the image that patches are cut from."""
        if self.layout == "copy":
            return self.shape
        if self.layout == "transpose":
            return self.shape[::-1]
        side = math.isqrt(self.shape[0] // channels)
        return (self.shape[1], channels, side, side)

    @property
    def expected(self) -> str:
        """The stored shape that fits, in words."""
        if self.layout == "copy":
            return str(self.shape)
        if self.layout == "transpose":
            return str(self.shape[::-1])
        return f"({self.shape[1]}, C, p, p) with C*p*p = {self.shape[0]}"


def source_of(path: Sequence[str | int], shape: Sequence[int]) -> Source:
    """Return where a parameter comes from.

    Args:
        path: attribute names and list indices, as in `nnx.to_flat_state`.
        shape: the parameter's shape.
    """
    *owner, leaf = (str(part) for part in path)
    layout: Layout = "copy"
    if leaf == "kernel":
        layout = "patches" if owner[-1] == "patch_embedding" else "transpose"
    name = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    return Source(".".join([*owner, name]), tuple(shape), layout)


def is_unused(key: str, known: Iterable[str], num_blocks: int | None) -> bool:
    """Whether a checkpoint rightly holds a tensor that the model has no parameter for.

    These are computed buffers, and the parts of the vision tower behind the block that feeds the
    projector: its later blocks and the norm of the pooled class token.

    Args:
        key: canonical name.
        known: canonical names of the model's parameters.
        num_blocks: vision blocks that the checkpoint's configuration counts; None if not known.
    """
    if _BUFFER.search(key):
        return True
    known = set(known)
    if not any(name.startswith("vision_tower.") for name in known):
        return False
    if key in ("vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias"):
        return True
    block = _VISION_BLOCK.match(key)
    if block is None:
        return False
    number, rest = int(block[1]), block[2]
    behind = f"vision_tower.encoder.layers.{number}.{rest}" not in known
    as_others = f"vision_tower.encoder.layers.0.{rest}" in known
    return behind and as_others and (num_blocks is None or number < num_blocks)


def fold_names(keys: Iterable[str]) -> str:
    """Join key names, those that differ in their block number only as one: `layers.{0-2,5}.`."""
    groups: dict[str, list[int]] = {}
    for key in keys:
        block = _BLOCK_NUMBER.search(key)
        pattern = key if block is None else key[: block.start(1)] + "\0" + key[block.end(1) :]
        groups.setdefault(pattern, []).extend([] if block is None else [int(block[1])])
    names = []
    for pattern, numbers in groups.items():
        text = str(numbers[0]) if len(numbers) == 1 else "{" + _ranges(sorted(numbers)) + "}"
        names.append(pattern.replace("\0", text) if numbers else pattern)
    return ", ".join(sorted(names))


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as text, runs as first-last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
