"""Which change of a call compiles which program: none inside a bucket; and how a warm-up counts."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.methods import ResPrune
from resprune_jax.models import LVLM
from resprune_jax.models.prompts import buckets
from resprune_jax.models.running.compiling import compiling
from resprune_jax.models.running.programs import programs
from resprune_jax.models.running.runner import Runner
from resprune_jax.models.running.warm_up import Step

BEHIND = {"prune", "lay_out", "prefill", "decode"}
"""What runs behind the vision tower."""

CHOICES: list[tuple[dict[str, Any], set[str]]] = [
    # What is another program: a choice is static, and drawing is not taking the likeliest.
    ({"seed_rule": "max_norm"}, {"prune"}),
    ({"seed_rule": "max_norm", "alpha": 0.1, "keep": 11}, set()),
    ({"temperature": 0.7}, {"decode"}),
    *(
        ({"temperature": 0.1 * n, "top_p": 0.1 * n, "rng_seed": n}, set())
        for n in (1, 5, 9)
    ),
]  # fmt: skip

SWEEP: list[tuple[dict[str, Any], set[str]]] = [
    # Budgets: buckets of 8 here, of which a warm-up has both.
    *(({"keep": keep}, set()) for keep in (16, 15, 12, 9, 0.6, 8, 7, 5, 1, 0.3, 0.5)),
    # Answers: a bucket is 64 tokens.
    *(({"max_new_tokens": count}, set()) for count in (1, 33, 63, 64)),
    ({"max_new_tokens": 65}, {"prefill", "decode"}),
    *(({"max_new_tokens": count}, set()) for count in (100, 128)),
    # Questions: so is one of text, and the choice reads no other words than nouns.
    *(({"words": count}, set()) for count in (20, 41, 64)),
    ({"words": 65}, {"lay_out", "prefill", "decode"}),
    ({"words": 90, "keep": 9}, set()),
    # Settings that are numbers, of whatever kind, for all rows or for each.
    *(
        ({"alpha": alpha}, set())
        for alpha in (0.5, 0.0, 1, np.float32(0.3), [0.4], np.array([0.9]))
    ),
    *(
        ({"method": ResPrune(alpha=alpha, seed_rule="cls_attention")}, set())
        for alpha in (0, 1, 0.25, np.float32(0.3), np.float64(2), np.array([0.5]))
    ),
    *(({"tolerance": share}, set()) for share in (0.5, 0.01)),
    ({"positions": "reindex"}, set()),
    ({"text": "prompt"}, set()),
    *(({"rng_seed": seed}, set()) for seed in (7, [3])),
    *CHOICES,
]  # fmt: skip


def question(model: LVLM, words: int) -> str:
    """One whose prompt has so many tokens beside the image."""
    text = "Is it"
    while (count := len(model.encoder.encode(f"{text}?").ids) - 1) < words:
        text += " a"
    assert count == words
    return f"{text}?"


@pytest.fixture
def fresh(lvlm: LVLM, monkeypatch: pytest.MonkeyPatch) -> LVLM:
    """The small model as if nothing were compiled, its 16 visual tokens in buckets of 8."""
    monkeypatch.setattr(buckets, "step", lambda n: buckets.multiple(n, 8) if n else 0)
    own = programs.__wrapped__(lvlm.config, lvlm.dtype, lvlm.precision)
    monkeypatch.setattr(Runner, "programs", own)
    return lvlm


def compiled(call: Callable[[], Any]) -> list[str]:
    """The names of all that a call compiles, eager operations too."""
    with compiling() as watch:
        call()
    return [program.name for program in watch.programs]


def sweep(
    model: LVLM, photographs: list[Image.Image], changes: list[tuple[dict[str, Any], set[str]]]
) -> int:
    """Make every call of a sweep and compare what it compiled; gives how many programs it was."""
    count = 0
    for number, (change, wanted) in enumerate(changes):
        call = {"keep": 16, "max_new_tokens": 9, "words": 20 + number % 40, **change}
        asked = question(model, call.pop("words"))
        picture = photographs[number % len(photographs)]
        names = compiled(lambda: model.generate(picture, asked, **call))  # noqa: B023
        assert sorted(names) == sorted(wanted), (change, names)
        count += len(names)
    return count


def test_what_is_inside_a_bucket_compiles_nothing(lvlm: LVLM, photographs: list[Image.Image]):
    """On programs that other tests share: 16 visual tokens are one bucket."""
    inside = [
        (change, wanted)
        for change, wanted in SWEEP[: -len(CHOICES)]
        if not wanted and change.get("max_new_tokens", 9) <= 64 and change.get("words", 9) <= 64
    ]
    lvlm.warm_up([(56, 56)], keep=16, prompt_lengths=(64,), max_new_tokens=9)
    assert sweep(lvlm, photographs, inside) == 0
    print(f"{len(inside)} calls behind a warm-up compiled nothing")
    assert len(inside) >= 30


@pytest.mark.deep
@pytest.mark.usefixtures("nothing_found")
def test_only_another_bucket_or_choice_compiles(fresh: LVLM, photographs: list[Image.Image]):
    steps: list[Step] = []
    shapes = fresh.warm_up(
        [(56, 56)], keep=[16, 4], prompt_lengths=(30, 64), max_new_tokens=9, announce=steps.append
    )
    # Every program once before and once behind its compile, counted through.
    names = ["encode", *["prune", "lay_out", "prefill", "decode"] * shapes]
    assert shapes == 2 and [step.program for step in steps[::2]] == names
    assert [(step.number, step.done) for step in steps] == [
        (number, done) for number in range(1, 10) for done in (False, True)
    ]
    assert {(step.total, step.found) for step in steps} == {(9, False)}
    spent = [step.seconds for step in steps]
    assert spent == sorted(spent) and spent[0] >= 0
    again: list[Step] = []
    ahead = {"prompt_lengths": (64,), "max_new_tokens": 9, "announce": again.append}
    assert fresh.warm_up([(56, 56)], keep=[13, 16], **ahead) == 1 and again == []

    count = sweep(fresh, photographs, SWEEP)
    print(f"{len(SWEEP)} calls behind a warm-up of 9 programs: {count} more, all for a reason")
    assert len(SWEEP) >= 40 and count == 7


@pytest.mark.deep
def test_batches_share_programs_too(fresh: LVLM, photographs: list[Image.Image]):
    """Rows up to a bucket of rows, each with a budget and a strength of its own."""
    ask = "What is red?"
    decided = 0
    for rows, change, wanted in (
        (2, {"keep": 16}, {"encode", *BEHIND}),
        (2, {"keep": [9, 16], "alpha": [0.1, 0.9]}, set()),
        (2, {"keep": [9, None]}, set()),
        (2, {"keep": None}, set()),
        (3, {"keep": 16}, {"encode", *BEHIND}),
        (4, {"keep": [0.6, 1, 2, 3], "alpha": 0.0}, set()),
        (4, {"keep": 12, "rng_seed": [1, 2, 3, 4]}, set()),
    ):
        call = {"max_new_tokens": 9, **change}
        pictures = photographs[:rows]
        names = compiled(lambda: fresh.generate(pictures, [ask] * rows, **call))  # noqa: B023
        assert sorted(names) == sorted(wanted), (rows, change, names)
        decided += 1
    assert decided == 7


def test_what_hears_of_a_warm_up_is_a_function(lvlm: LVLM) -> None:
    with pytest.raises(CallError, match="announce is a function, got 'no'"):
        lvlm.warm_up(announce="no")  # type: ignore[arg-type]
