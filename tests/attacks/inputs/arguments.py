"""Odd values of arguments, and good ones written in other forms."""

import copy
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

N, D, K, ROWS = 20, 8, 5, 3
"""The shapes of a good call of `select`: tokens, their numbers, how many are kept, and rows."""

Odd = Callable[[], Any]
"""Makes an odd value anew, so that no case can change the next one's."""


def copied(x: Any) -> Odd:
    return lambda: copy.deepcopy(x)


def torch_made(make: Callable[[Any], Any]) -> Odd:
    def made() -> Any:
        try:
            import torch
        except ImportError:  # where torch is not installed nobody can pass its tensors
            return object()
        return make(torch)

    return made


# No number, no text and no array of numbers.
ODD: list[Odd] = [
    object, *map(copied, ({}, {"a": 1}, {1, 2}, b"x", b"", 1j, ..., NotImplemented, slice(3))),
    lambda: np.array([None] * N, object), lambda: np.datetime64("2026-01-01"), lambda: print,
    lambda: np.zeros(N, "U1"), lambda: np.zeros(N, [("a", int)]), lambda: iter("ab"),
    lambda: [None] * N, lambda: [[1.0], [1.0, 2.0]], lambda: np.zeros((2, 2, 2, 2), complex),
    lambda: ["a"] * N, lambda: memoryview(b"ab"), lambda: type, lambda: jax.random.key(0),
    torch_made(lambda torch: torch.zeros(3, dtype=torch.complex64)), lambda: bytearray(b"abc"),
    lambda: "x" * 100_000, lambda: "a\nb\x1b[2J\ud800", lambda: range(9, 0),
    lambda: ValueError("x"),
]  # fmt: skip
NO_NUMBER: list[Odd] = [
    *ODD, *map(copied, ("5", "0.5", True, False, math.nan, [], "", [[[]]])),
    lambda: np.bool_(True), torch_made(lambda torch: torch.tensor(True)),
    lambda: np.array(["1"] * 7), lambda: np.full(7, 0.5), lambda: [0.5] * 7,
    lambda: np.zeros((1, 1, 1)), lambda: 10**400,
    lambda: -(10**400), lambda: 10**5000, lambda: -1, lambda: -math.inf, lambda: np.float32(-2),
]  # fmt: skip
NO_COUNT: list[Odd] = [
    *NO_NUMBER, *map(copied, (2.9, 3.0, 0, math.inf, 1e400)), lambda: np.float64(3e9),
    lambda: np.array(0), lambda: jnp.float32(2), torch_made(lambda torch: torch.tensor(2.0)),
]  # fmt: skip
NO_NAME: list[Odd] = [*NO_NUMBER, copied(None), copied(["max"]), copied(0)]
NO_FLAG: list[Odd] = [x for x in NO_NAME if not isinstance(x(), bool)]
NEVER_NONE: list[Odd] = [copied(None)]


def scalars(odd: list[Odd]) -> list[Odd]:
    """Those that are not one number either; an int beyond every dtype is still a number."""
    return [x for x in odd if not (isinstance(x(), int) and abs(x()) > 2**64 and x() > 0)]


# --- select and prepare ---------------------------------------------------------------------------

ARRAYS: list[Odd] = [
    *ODD, *map(copied, ("5", True, math.nan, [], "", 3, 2.5)), lambda: np.zeros((0, D), np.float32),
    lambda: np.zeros((2, 0, D), np.float32), lambda: np.zeros((1, 2, 3, 4), np.float32),
    lambda: np.zeros((N, D), int), lambda: np.zeros((N, D), bool), lambda: jnp.zeros((N, D), int),
    lambda: np.full((N, D), 1e300), lambda: np.zeros(N, np.float32), lambda: np.zeros((N, D), "S3"),
    torch_made(lambda torch: torch.zeros(N, D, dtype=torch.int64)), lambda: [[None] * D] * N,
]  # fmt: skip
NO_MASK: list[Odd] = [
    *ODD, lambda: np.array(["False"] * N), lambda: np.full(N, 0.5), lambda: np.full(N, 2),
    lambda: np.ones(N + 1, bool), lambda: True, lambda: "yes", lambda: [2] * N, lambda: np.ones(N),
]  # fmt: skip
NO_RELEVANCE: list[Odd] = [
    *ODD, lambda: -np.ones(N), lambda: np.full(N, np.nan), lambda: np.full(N, 1e39), lambda: 1.0,
    lambda: np.ones(N + 1), lambda: [True] * N, lambda: "high", lambda: np.ones((N, 2)),
]  # fmt: skip
SELECT: dict[str, list[Odd]] = {
    "tokens": [*ARRAYS, *NEVER_NONE],
    "keep": [*scalars(NO_COUNT), *NEVER_NONE],
    "limit": [*scalars(NO_COUNT), lambda: np.zeros(0, int), lambda: [0, 1, 2], lambda: np.inf],
    "relevance": NO_RELEVANCE,
    "alpha": [*NO_NUMBER, lambda: 1e39, lambda: math.inf, lambda: np.zeros(0)],
    "first": [*NO_NUMBER, lambda: 0.7, lambda: N, lambda: np.int64(2**40), lambda: [0.0] * ROWS],
    "valid": NO_MASK,
    "tolerance": [*NO_NUMBER, lambda: 0, lambda: 1, lambda: 1e-9, lambda: math.inf],
    "engine": [*NO_NAME, copied("fastest"), copied(["auto"])],
    "max_bytes": [*scalars(NO_COUNT), *NEVER_NONE],
}


def written_otherwise(rng: np.random.Generator, value: Any) -> Any:
    """The same numbers in another form."""
    if isinstance(value, str) or value is None:
        return value
    array = np.asarray(value)
    whole = array.dtype.kind in "iu"
    forms: list[Callable[[], Any]] = [
        array.tolist, lambda: array, lambda: jnp.asarray(array),
        lambda: array.astype(array.dtype.newbyteorder(">")),
        torch_made(lambda torch: torch.from_numpy(np.ascontiguousarray(array))),
    ]  # fmt: skip
    if array.ndim:
        forms += [lambda: tuple(array.tolist()), lambda: array[::-1][::-1], lambda: list(array)]
    if array.dtype.kind == "f":
        forms += [lambda: array.astype(np.longdouble), lambda: array.astype(np.float64)]
        forms.append(torch_made(lambda torch: torch.tensor(array.tolist(), requires_grad=True)))
    if whole:
        forms += [lambda: array.astype(np.int64), lambda: array.astype(np.uint16)]
    if array.dtype == bool:
        forms += [lambda: array.astype(int), lambda: array.astype(np.uint8).tolist()]
    made = forms[rng.integers(len(forms))]()
    return value if type(made) is object else made
