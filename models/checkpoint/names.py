"""Parameters under their names in checkpoint files, and how each is stored there.

A family has one canonical name for every key dialect (its own `names.py`), then one rule leads from
module paths to canonical names: the module attributes are the name's parts, and only the last part
and the layout differ (Hugging Face stores a linear layer's weight as (out, in), here a kernel is
(in, out)). A `JoinedLinear` holds several tensors, which its name stands for.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from resprune_jax.errors import printable

_BLOCK_NUMBER = re.compile(r"\.layers\.(\d{1,9})\.")


Layout = Literal["copy", "transpose", "patches", "rows"]

JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""The layers, by a file's names, that a `JoinedLinear` of this name holds."""


def with_prefix(key: str, prefixes: Mapping[str, str]) -> str:
    """A key whose first matching prefix is replaced; the order of `prefixes` decides."""
    for old, new in prefixes.items():
        if key.startswith(old):
            return new + key[len(old) :]
    return key


@dataclasses.dataclass(frozen=True)
class Source:
    """How one parameter, or a layer's part of it, is stored in a file.

    Attributes:
        key: canonical name.
        shape: the parameter's shape in the module, or the part's.
        layout: "copy", "transpose" (a linear layer's weight), "patches" (a convolution whose stride
            is its kernel, as the matrix that multiplies flattened patches), or "rows" (a layer of a
            `JoinedLinear`, whose first three axes are one in the file).
        start: where the part begins on the parameter's second axis; 0 for a whole parameter.
    """

    key: str
    shape: tuple[int, ...]
    layout: Layout
    start: int = 0

    def fits(self, stored: Sequence[int]) -> bool:
        """Whether a stored tensor of this shape holds the parameter."""
        stored = tuple(stored)
        if self.layout != "patches":
            return stored == self.stored_shape(0)
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
        if self.layout == "rows":
            return (math.prod(self.shape[:3]), *self.shape[3:])
        side = math.isqrt(self.shape[0] // channels)
        return (self.shape[1], channels, side, side)

    def as_stored(self, parameter: Any) -> Any:
        """The entries of a parameter, an array, in the order in which a file stores them."""
        if self.layout == "copy":
            return parameter
        if self.layout == "rows":
            return parameter[:, self.start : self.start + self.shape[1]]
        return parameter.T

    @property
    def expected(self) -> str:
        """The stored shape that fits, in words."""
        if self.layout != "patches":
            return str(self.stored_shape(0))
        return f"({self.shape[1]}, C, p, p) with C*p*p = {self.shape[0]}"


def sources_of(path: Sequence[str | int], shape: Sequence[int]) -> tuple[Source, ...]:
    """Return where a parameter comes from: one tensor, or one for each layer that was joined.

    Args:
        path: attribute names and list indices, as in `nnx.to_flat_state`.
        shape: the parameter's shape.
    """
    *owner, leaf = (str(part) for part in path)
    if owner and owner[-1] in JOINED:
        layers = JOINED[owner[-1]]
        # The first takes what the others, of one row each, leave: as many queries as read a key.
        rows = [shape[1] - len(layers) + 1] + [1] * (len(layers) - 1)
        return tuple(
            Source(
                ".".join([*owner[:-1], name, leaf]), (shape[0], own, *shape[2:]), "rows",
                sum(rows[:at]),
            )
            for at, (name, own) in enumerate(zip(layers, rows, strict=True))
        )  # fmt: skip
    layout: Layout = "copy"
    if leaf == "kernel":
        layout = "patches" if owner[-1] == "patch_embedding" else "transpose"
    name = "weight" if leaf in ("kernel", "embedding", "scale") else leaf
    return (Source(".".join([*owner, name]), tuple(shape), layout),)


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
