"""Parameters under their names in checkpoint files, and how each is stored there.

A family has one canonical name for every key dialect (its own `names.py`), then one rule leads from
module paths to canonical names: the module attributes are the name's parts, and only the last part
and the layout differ (Hugging Face stores a linear layer's weight as (out, in), here a kernel is
(in, out)).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from resprune_jax.errors import printable

_BLOCK_NUMBER = re.compile(r"\.layers\.(\d{1,9})\.")


Layout = Literal["copy", "transpose", "patches"]


def with_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    """A key whose first matching prefix is replaced; the order of `prefixes` decides."""
    for old, new in prefixes.items():
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
    return listed(sorted(names))


MOST_NAMES = 6
"""Names, or groups of them, that one problem lists."""


def name_of(key: str) -> str:
    """A name out of a file, fit for a message."""
    return printable(key, 100)


def listed(names: Sequence[str]) -> str:
    """Names of tensors or files for a message; of many, some of each part and how many more."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".", 1)[0], []).append(name)
    share = max(1, MOST_NAMES // max(1, len(parts)))
    some = names if len(names) <= MOST_NAMES else [n for own in parts.values() for n in own[:share]]
    said = ", ".join(name_of(name) for name in some[:MOST_NAMES])
    more = len(names) - min(len(some), MOST_NAMES)
    return f"{said} and {more} more" if more > 0 else said


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as text, runs as first-last."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
