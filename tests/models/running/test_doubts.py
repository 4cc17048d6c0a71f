"""What a program tells of its choice, and what the host makes of it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax.models import LVLM
from resprune_jax.models.running import runner
from resprune_jax.models.running.programs import BEYOND, DOUBTFUL, judged

QUESTION = "What is on the red table?"


@pytest.mark.parametrize(
    ("verdict", "broken", "doubtful"),
    [
        ([0, 0], False, False),
        ([0, -1], True, False),  # a token twice: fewer in the mask than in the list
        ([3], True, False),
        ([BEYOND], True, False),
        ([BEYOND - 700], True, False),
        ([0, DOUBTFUL], False, True),
        ([DOUBTFUL - 2, 0], True, True),
        ([DOUBTFUL + BEYOND], True, True),
        ([[0, 0], [0, DOUBTFUL]], False, True),
        ([[0, 0], [5, 0]], True, False),
    ],
)
def test_a_verdict_says_two_things(verdict: Any, broken: bool, doubtful: bool) -> None:
    assert judged(np.asarray(verdict, np.int32)) == (broken, doubtful)


@pytest.mark.parametrize("doubts", [pytest.param(False, marks=pytest.mark.deep), True])
def test_a_doubtful_choice_is_made_again(
    doubts: bool, lvlm: LVLM, photographs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lvlm.select(photographs[:2], QUESTION.split("?")[:1] * 2, keep=5)
    asked: list[Any] = []

    def prune(*args: Any, guarded: bool | None = None, **options: Any) -> Any:
        asked.append(guarded)
        made = own.prune(*args, guarded=bool(guarded), **options)
        if guarded:
            return made
        selection, kept, verdict, merged = made
        assert not np.asarray(verdict).any() and selection.doubtful is None
        return selection, ~kept, verdict + doubts * DOUBTFUL, merged

    own = lvlm.programs
    changed = dataclasses.replace(own, prune=prune)
    monkeypatch.setattr(runner, "programs", lambda *_: changed)
    made = lvlm.select(photographs[:2], QUESTION.split("?")[:1] * 2, keep=5)
    assert asked == ([None, True] if doubts else [None])
    assert (made.mask == plain.mask).all() == doubts
    np.testing.assert_array_equal(made.selections.indices, plain.selections.indices)


def test_the_table_alone_is_read_as_among_all_parameters(lvlm: LVLM) -> None:
    ids = np.asarray([[3, 1, 4], [1, 5, 9]], np.int32)
    assert len(jax.tree.leaves(lvlm.words)) == 1
    found = map(partial(lvlm.programs.embed, ids=ids), (lvlm.words, lvlm.parameters, lvlm.state))
    few, all_, whole = map(np.asarray, found)
    np.testing.assert_array_equal(few, all_)
    np.testing.assert_array_equal(few, whole)
