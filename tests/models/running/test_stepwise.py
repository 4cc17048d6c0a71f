"""`LVLM.stream`: stops on the way change no answer, and what they tell only grows."""

from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM

QUESTIONS = ["What is red?", "How many books are in the picture?", "Is there a bus?"]

# Greedy; drawn; with rules that look back on prompt and answer; with drops inside the decoder.
CALLS: dict[str, dict[str, Any]] = {
    "greedy": {"keep": [6, 3, None]},
    "drawn": {"temperature": 0.9, "top_p": 0.9, "rng_seed": [3, 4, 5]},
    "rules": {"keep": 4, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "inside": {"keep": 5, "method": "fastv"},
}


@pytest.mark.parametrize(
    "name",
    ["rules", *(pytest.param(name, marks=pytest.mark.deep) for name in CALLS if name != "rules")],
)
def test_stops_change_no_answer(lvlm: LVLM, photographs: list[Any], name: str) -> None:
    call = CALLS[name]
    whole = lvlm.generate(photographs[:3], QUESTIONS, max_new_tokens=11, **call)
    assert max(map(len, whole.tokens)) > 4  # there is something to stop in
    for step in (1, 3, 4, 11, 500):
        told = list(lvlm.stream(photographs[:3], QUESTIONS, max_new_tokens=11, step=step, **call))
        last = told[-1]
        assert [row.tolist() for row in last.tokens] == [row.tolist() for row in whole.tokens]
        assert (last.texts, last.kept, last.drops) == (whole.texts, whole.kept, whole.drops)
        assert last.done == [True] * 3 and len(told) <= -(-11 // step)
        for number, one in enumerate(told, start=1):
            for row, end in zip(one.tokens, last.tokens, strict=True):
                assert len(row) == min(number * step, len(end))
                assert row.tolist() == end[: len(row)].tolist()
            full = [len(row) == len(end) for row, end in zip(one.tokens, last.tokens, strict=True)]
            assert one.done == full


@pytest.mark.deep
def test_a_grain_pads_less_and_changes_no_answer(lvlm: LVLM, photographs: list[Any]) -> None:
    call = {"keep": [6, 3, None], "max_new_tokens": 4}
    whole = lvlm.generate(photographs[:3], QUESTIONS, **call)
    for grain in (16, 64, 1000):
        told: list[Any] = []
        *_, made = lvlm.stream(
            photographs[:3], QUESTIONS, grain=grain, announce=told.extend, **call
        )  # fmt: skip
        assert made.texts == whole.texts and made.kept == whole.kept
        assert [plan.kept for plan in told] == whole.kept
    with pytest.raises(CallError, match="grain"):
        lvlm.stream(photographs[0], QUESTIONS[0], grain=0)


def test_whoever_has_enough_leaves(lvlm: LVLM, photographs: list[Any]) -> None:
    call = CALLS["rules"]
    stream = lvlm.stream(photographs[:3], QUESTIONS, max_new_tokens=40, step=2, **call)
    first = next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [len(row) for row in first.tokens] == [2] * 3 and first.done == [False] * 3


@pytest.mark.parametrize("step", [0, -1, 2.5, None, "8"])
def test_a_step_is_a_whole_number(lvlm: LVLM, photographs: list[Any], step: Any) -> None:
    with pytest.raises(CallError, match="step"):
        lvlm.stream(photographs[0], QUESTIONS[0], step=step)


def test_a_wrong_call_fails_at_once(lvlm: LVLM, photographs: list[Any]) -> None:
    with pytest.raises(CallError, match="keep"):
        lvlm.stream(photographs[0], QUESTIONS[0], keep=0)
