"""The fuzzers of texts find faults planted in the code that they attack."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from resprune_jax import nouns, prompts
from resprune_jax.text import cleaning
from tests.attacks.fuzzers import text
from tests.attacks.harness import OK, REFUSED, attempt

pytestmark = pytest.mark.deep

SEEDS = range(60)


def kinds(fuzzer: Any, seeds: range = SEEDS) -> set[str]:
    """How the short cases among these seeds end, in this process."""
    make = text.make if fuzzer.name == text.NAME else text.make_run
    return {attempt(fuzzer, seed).kind for seed in seeds if len(make(seed)) < 5000}


def shorter_mask(real: Callable[[str], str]) -> Callable[[str], str]:
    return lambda view: real(view).replace("[", "")


def offset_behind_a_cut(real: Any) -> Any:
    return lambda line, at: line.start + at


def raising(real: Any) -> Any:
    def blank(match: re.Match[str]) -> str:
        raise ValueError("an error of another kind")

    return blank


@pytest.mark.parametrize(
    ("where", "name", "fault", "kind"),
    [
        (cleaning, "mask_markup", shorter_mask, "traceback"),
        (prompts._Line, "offset", offset_behind_a_cut, "wrong"),
        (cleaning, "blank", raising, "traceback"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_planted_faults_are_found(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any, kind: str
) -> None:
    monkeypatch.setattr(text, "TAGGERS", ("lexicon", "lexicon"))
    monkeypatch.setattr(where, name, fault(getattr(where, name)))
    assert kind in kinds(text.FUZZERS[0], range(150))


def test_without_a_fault_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TAGGERS", ("lexicon", "lexicon"))
    assert kinds(text.FUZZERS[0]) <= {OK, REFUSED}


def test_runs_that_are_not_cut_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cut a tokenizer is given runs of the full length: what took minutes."""
    longest = 0

    def spied(line: str) -> Any:
        nonlocal longest
        longest = max(longest, *(len(word) for word in line.split()), 0)
        raise nouns.CallError("seen")

    pipeline = text.extractor("lexicon")._pipeline
    monkeypatch.setattr(pipeline, "make_doc", spied)
    for cut in (True, False):
        if not cut:
            monkeypatch.setattr(prompts, "_cut", lambda start, line: prompts._Line(line, start, []))
        for seed in range(len(text._FIRST)):
            with contextlib.suppress(nouns.CallError):
                text.extractor("lexicon").extract(text.make_run(seed))
        assert (longest <= prompts.LONGEST_WORD) == cut
