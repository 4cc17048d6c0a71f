"""The fuzzer of command lines finds faults planted for it, among the first of its cases."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resprune_jax import errors
from resprune_jax.experiments import cli, common, words
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.answer import options
from tests.attacks import harness
from tests.attacks.fuzzers import words as fuzzer

pytestmark = pytest.mark.deep

(FUZZER,) = fuzzer.FUZZERS


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    commands, load = dict(cli.COMMANDS), answer.load_asked
    fuzzer.prepare()
    yield
    cli.COMMANDS.update(commands)
    answer.load_asked = load


def _as_it_is(text: str, longest: int = 0) -> str:
    return text


def _by_field(own: Any) -> dict[str, Any]:
    return dict.fromkeys(own.__annotations__, str)


def _bare(text: str) -> str:
    return "a wrong call"


PLANTED: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "messages echo what was typed": (errors, "printable", _as_it_is),
    "numbers are not looked at": (options, "check_number", lambda *_, **__: None),
    "names are not looked at": (words, "check", lambda *_: None),
    "the option is not named": (cli, "_from_box", _bare),
    "options by their fields": (words, "named", _by_field),
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, fault = PLANTED[what]
    fuzzer.visits()
    monkeypatch.setattr(where, name, fault)
    if where is errors:  # messages pass several places that make them fit to be read
        monkeypatch.setattr(cli, name, fault)
        monkeypatch.setattr(common, name, fault)
    for seed in range(FUZZER.quick):
        found = harness.attempt(FUZZER, seed)
        if not found.good:
            break
    else:
        pytest.fail("no case shows it")
