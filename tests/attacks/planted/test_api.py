"""The fuzzer of arguments finds faults that are planted for it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resprune_jax import selection
from resprune_jax.methods.tokens import resprune
from tests.attacks import harness
from tests.attacks.fuzzers import api

pytestmark = pytest.mark.deep

(FUZZER,) = api.FUZZERS


def _unread(name: str, value: Any, kind: str) -> Any:
    """Takes what NumPy makes of it, as `select` once did."""
    return value if hasattr(value, "dtype") else np.asarray(value)


def _truncated(name: str, value: Any, **_: Any) -> int:
    return int(value)


PLANTED: list[tuple[Any, str, Callable[..., Any], int]] = [
    (selection, "array_of", _unread, 0),
    (selection, "whole", _truncated, 0),
    (resprune, "_NO_NUMBERS", (), 1),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("module", "name", "fault", "first"), PLANTED, ids=lambda x: str(x)[:20])
def test_a_planted_fault_is_found(
    module: Any, name: str, fault: Any, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among cases that compile nothing, which are those that are refused as things are."""
    refused = [seed for seed in range(first, 900, 3) if _quick(seed)][:60]
    assert len(refused) > 8
    kinds = {harness.attempt(FUZZER, seed).kind for seed in refused}
    assert kinds == {harness.REFUSED}
    monkeypatch.setattr(module, name, fault)
    found = [harness.attempt(FUZZER, seed) for seed in refused]
    assert [one for one in found if not one.good], harness.report(found)


def _quick(seed: int) -> bool:
    """Whether a case spoils an argument of `select`, or of a method."""
    seen: list[str] = []

    def note(what: str, call: Callable[[], object]) -> None:
        seen.append(what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "must_refuse", note)
        patch.setattr(api, "select", lambda *_, **__: _Stop.stop())
        try:
            api.run(seed)
        except _Stop:
            return False
    return bool(seen) and seen[0].startswith(("select, keep", "select, limit", "alpha"))


class _Stop(Exception):  # noqa: N818
    @staticmethod
    def stop() -> Any:
        raise _Stop
