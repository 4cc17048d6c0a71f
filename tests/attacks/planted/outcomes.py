"""Fuzzers of which each holds one fault, to see that the harness finds it. No attack runs them."""

import os
import time
from collections.abc import Callable

from resprune_jax.errors import CallError, RunError
from tests.attacks.harness import WRONG, Fault, Fuzzer

AT = 2
"""The seed at which a planted fault shows; its neighbours end well."""


def _planted(name: str, fault: Callable[[], object]) -> Fuzzer:
    def run(seed: int) -> None:
        if seed == AT:
            fault()
        if seed % 2:
            raise CallError(f"the number {seed} is odd: give an even one")

    return Fuzzer(
        name, run, cases=4, quick=4, prepare=lambda: [0] * 1000, cpu_s=1.0,
        wait_s=1.5 if name == "waits" else 30.0, memory=200 << 20,
    )  # fmt: skip


class _UnreadError(CallError):
    """An error whose message nothing has made fit to be read."""

    def __init__(self, message: str) -> None:
        super().__init__("")
        self.message = message

    def __str__(self) -> str:
        return self.message


def _raise(error: BaseException) -> Callable[[], object]:
    def fault() -> None:
        raise error

    return fault


def _spin() -> None:
    # In C, where no Python signal is heard.
    pow(7, 10**7)


def _eat() -> None:
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def _eat_and_write() -> None:
    """More than the limit, less than what the kernel refuses."""
    kept = bytearray(b"x") * (220 << 20)
    del kept


def _eat_for_a_moment() -> None:
    try:
        _eat()
    except MemoryError as error:  # a library that catches what it can
        raise RunError("the file cannot be read: it may be too large") from error


FAULTS: dict[str, tuple[str, Callable[[], object]]] = {
    "foreign exception": ("traceback", lambda: [][0]),
    "panic": ("traceback", _raise(BaseException("panicked"))),
    "exit": ("traceback", _raise(SystemExit(0))),
    "two lines": ("bad message", _raise(_UnreadError("one line\nand another"))),
    "line separator": ("bad message", _raise(_UnreadError("one line\u2028and another"))),
    "escape": ("bad message", _raise(_UnreadError("a name of \x1b[31mred"))),
    "long": ("bad message", _raise(_UnreadError("x" * 501))),
    "empty": ("bad message", _raise(_UnreadError(" "))),
    "half a pair": ("bad message", _raise(_UnreadError("half of \ud83d"))),
    "spins": ("hang", _spin),
    "waits": ("hang", lambda: time.sleep(600)),
    "eats memory": ("memory", _eat),
    "eats memory and says another thing": ("memory", _eat_for_a_moment),
    "eats memory and gives it back": ("memory", _eat_and_write),
    "dies": ("died", lambda: os._exit(0)),
    "aborts": ("died", os.abort),
    "wrong answer": ("wrong", _raise(Fault(WRONG, "1 is not 2"))),
}
FUZZERS = [_planted(name, fault) for name, (_, fault) in FAULTS.items()]
