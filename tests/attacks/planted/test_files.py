"""The fuzzers of weights, pictures, templates and the Hub find faults planted for each."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resprune_jax.experiments.data import tables
from resprune_jax.experiments.sweep import grid
from resprune_jax.models.checkpoint import download, safetensors_files, watch
from resprune_jax.models.images import files
from resprune_jax.models.prompts import chat, render
from tests.attacks import harness
from tests.attacks.fuzzers import hub, images, rows, templates, weights

pytestmark = pytest.mark.deep


@contextlib.contextmanager
def _as_it_comes(name: str) -> Iterator[None]:
    """In place of what makes one error of all that Pillow raises."""
    yield


def _other_error(template: str, names: Any) -> str:
    try:
        return render.render(template, names)
    except render.TemplateError as error:
        raise ValueError(str(error)) from None


def _raise(_: Any, what: str, why: str, error: Exception) -> Any:
    raise error


def _mean(encoder: Any, question: str, media: tuple[str, ...]) -> tuple[str, int, str]:
    text, start, said = PLACE(encoder, question, media)
    return text, start + 1, said


PLACE = chat.PromptEncoder._place

# Where, what, and what it becomes; the fuzzer that finds it in its quick slice.
PLANTED: dict[str, tuple[Any, Any, str, Callable[..., Any]]] = {
    "errors of Pillow": (images, files, "_reading", _as_it_comes),
    "colours of a picture": (images, files, "_rgb", lambda image, name: image),
    "names in an index": (weights, safetensors_files.WeightFiles, "_is_here", lambda *_: True),
    "errors of a template": (templates, chat, "render", _other_error),
    "the question's place": (templates, chat.PromptEncoder, "_place", _mean),
    "errors of pyarrow": (rows, tables.Table, "reading", lambda _: contextlib.nullcontext()),
    "words for a budget": (rows, grid, "read_keep", float),
    "errors of the Hub's client": (hub, download, "_from_cache", _raise),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    names = ("STALL_S", "READ_S", "GRACE_S", "LARGEST_ANSWER", "MOST_ANSWERS")
    before, environment = {name: getattr(watch, name) for name in names}, dict(os.environ)
    cpu_s = render.CPU_S
    yield
    for name, value in before.items():
        setattr(watch, name, value)
    render.CPU_S = cpu_s
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, where, name, fault = PLANTED[what]
    if module is not weights:
        module.FUZZERS[0].prepare()
    monkeypatch.setattr(where, name, fault)
    for fuzzer, seed in ((f, seed) for f in module.FUZZERS for seed in range(f.quick)):
        found = harness.attempt(fuzzer, seed)
        if not found.good:
            print(seed, found)
            return
    pytest.fail("no case shows it")
