"""Every field of a file of settings, one after another, with every value that one may be given.

Chance alone seldom meets the one field that nobody checks: a file has some sixty of them. Here each
is visited in turn, also those that a reader asks for and the file leaves out.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.attacks.inputs.mutations import places

Path = tuple[Any, ...]

ABSENT = object()
"""In place of the value of a field that a file does not have."""

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 7, 255, 257, 1000, 10**5, 10**6, 2**24, 2**24 + 1, 2**31 - 1, 2**31),
    *(2**63, 10**12, 10**30, 10**400, -(2**63), 0.5, 1.5, 1e-30, 1e30, 1e300),
    *(float("nan"), float("inf"), -float("inf"), True),
)  # fmt: skip
LISTS: tuple[Any, ...] = (
    [], [[]], [None], [1], [0, 0], [1, 1, 1], [-1, 2, 3], [2**40, 1], [0.5, 0.5, 0.5], ["a", 2, 1],
    list(range(3000)), [[28, 28]] * 5000, [[1], [2]], [{}], [10**30], [[10**30, 1]], [True, False],
)  # fmt: skip
TEXTS: tuple[Any, ...] = (
    "", "x", "0", "1", "nan", "\0", "\ud800", "\x1b[31m\u202e", "a\nb", "../..", "x" * 5000,
)  # fmt: skip
OBJECTS: tuple[Any, ...] = (
    {}, {"": {}}, {"a": 1}, {"height": 28}, {"type": []}, {"rope_type": "yarn", "factor": -1},
    {str(number): number for number in range(3000)},
)  # fmt: skip


class Asked(dict[str, Any]):
    """An object of a file that notes which of its keys a reader asks for, in it and below."""

    def __init__(self, content: Mapping[str, Any], note: Callable[[Path], None], at: Path = ()):
        super().__init__(
            (key, Asked(value, note, (*at, key)) if isinstance(value, dict) else value)
            for key, value in content.items()
        )
        self._note, self._at = note, at

    def get(self, key: str, default: Any = None) -> Any:
        self._note((*self._at, key))
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self._note((*self._at, key))
        return super().__getitem__(key)


class Field(NamedTuple):
    """One place of one file of one family's checkpoint."""

    family: str
    file: str
    path: Path


def asked_for(
    content: Mapping[str, Any], read: Callable[[Mapping[str, Any]], object]
) -> list[Path]:
    """The paths of all values inside, and of those that a reader asks for and does not find."""
    found = dict.fromkeys(places(content))
    read(Asked(content, lambda path: found.setdefault(path)))
    return list(found)


def at(content: Any, path: Path) -> Any:
    """The value of a field, or `ABSENT`."""
    for key in path:
        if isinstance(content, dict) and key not in content:
            return ABSENT
        content = content[key]
    return content


def changed(content: Any, path: Path, value: Any) -> Any:
    """A copy of a file's content with another value in a field."""
    content = copy.deepcopy(content)
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def values(now: Any) -> list[Any]:
    """What a field may be given in place of what it holds: small numbers first, large ones last."""
    other: tuple[Any, ...] = (None, "5", [1], {"a": 1}, 5)
    if isinstance(now, bool):
        return [not now, 0, 1, "false", *other]
    if isinstance(now, int | float):
        near = [now + 1, now - 1, -now, now * 2, now * 10, now + 0.5, [now], [now, now], str(now)]
        return [*other, "x", "9" * 5000, {}, *near, *NUMBERS]
    if isinstance(now, list):
        return [*other, *_lists_near(now), *LISTS]
    if isinstance(now, str):
        return [*other, now.upper(), now + "x", now[:-1], f"{now}{'9' * 5000}", [now], *TEXTS]
    if isinstance(now, dict):
        return [*other, [now], *OBJECTS]
    return [*other, *TEXTS, *OBJECTS, *LISTS, *NUMBERS]


def _lists_near(now: list[Any]) -> list[Any]:
    """A list with one of its items changed, missing, doubled, or in another place."""
    odd: list[Any] = [0, -1, 1, 10**6, 2**31, 10**30, 0.5, float("nan"), True, None, "x", []]
    made: list[Any] = [now[::-1], now[1:], now * 2, [now], [*now, 1], now * 300]
    made += [[*now[:-1], value] for value in odd]
    if now and all(type(item) in (int, float) for item in now):
        made += [[item + 1 for item in now], [now[0] + 1, *now[1:]], [-item for item in now]]
        made += [[value, *now[1:]] for value in odd]
        made.append([now[0] + 1, *now[1:-1], now[-1] - 1])  # the same sum
    return made


def order(fields: list[Field]) -> list[Field]:
    """The fields in an order that mixes families and files, always the same."""
    mixed = np.random.default_rng(0).permutation(len(fields))
    return [fields[index] for index in mixed]
