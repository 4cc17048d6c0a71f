"""What settings do to scores, against a slow reading of their meaning in plain Python."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.models import LVLM
from resprune_jax.models.prompts.generation_file import GenerationSettings
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.processors import choose, make_rules, process
from tests.compiles import backend_compiles

V, S, STEPS, ENDS = 6, 9, 4, (1, 4)


def oracle(
    said: GenerationSettings, scores: Sequence[float], prompt: list[int], answer: list[int]
) -> list[float]:
    """Scores of one row, one id at a time."""
    held, out = [*prompt, *answer], []
    for token, score in enumerate(scores):
        value = score
        if token in held and said.repetition_penalty != 1:
            value = (
                value * said.repetition_penalty if value < 0 else value / said.repetition_penalty
            )
        size, whole = said.no_repeat_ngram_size, [*held, token]
        if size:
            runs = [tuple(held[i : i + size]) for i in range(len(held) - size + 1)]
            if len(whole) >= size and tuple(whole[-size:]) in runs:
                value = -np.inf
        for run in said.bad_words_ids:
            if run not in [(end,) for end in ENDS] and tuple(whole[-len(run) :]) == run:
                value = -np.inf
        if token in said.suppress_tokens:
            value = -np.inf
        if token in said.begin_suppress_tokens and not answer:
            value = -np.inf
        short = len(held) < said.min_length
        if said.min_new_tokens is not None:
            short = len(answer) < said.min_new_tokens
        if token in ENDS and short:
            value = -np.inf
        out.append(value)
    return out


def check(said: GenerationSettings, prompts: list[list[int]], rng_seed: int) -> None:
    """Scores of `STEPS` steps, the likeliest id taken each time."""
    options = said.resolve(CallOptions(max_new_tokens=STEPS))
    rules = make_rules(
        said, options, [np.asarray(row, np.int32) for row in prompts],
        ends=ENDS, vocabulary=V, length=S,
    )  # fmt: skip
    assert rules is not None and rules.past is not None
    past = WITH_ROOM(rules.past)
    answers: list[list[int]] = [[] for _ in prompts]
    rng = np.random.default_rng(rng_seed)
    for step in range(STEPS):
        scores = rng.normal(size=(len(prompts), V)).astype(np.float32)
        got = np.asarray(PROCESS(rules, past, scores, np.asarray(ENDS, np.int32), np.int32(step)))
        rows = zip(scores.tolist(), prompts, answers, strict=True)
        want = np.asarray([oracle(said, *row) for row in rows], np.float32)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        taken = want.argmax(axis=1)
        past = WITH_TOKEN(past, jnp.asarray(taken, jnp.int32))
        for answer, token in zip(answers, taken.tolist(), strict=True):
            answer.append(token)


PROCESS = jax.jit(process)
WITH_ROOM = jax.jit(lambda past: past.with_room(STEPS))
WITH_TOKEN = jax.jit(lambda past, token: past.with_token(token))

ids = st.integers(0, V - 1)
three_prompts = st.lists(st.lists(ids, min_size=1, max_size=S), min_size=3, max_size=3)
# One shape of table for all examples: two words, the longer one of three ids.
two_words = st.tuples(
    st.tuples(ids, ids, ids), st.one_of(st.tuples(ids, ids), st.tuples(ids, ids, ids))
).filter(lambda pair: pair[0] != pair[1])


@settings(max_examples=60, deadline=None)
@given(three_prompts, two_words, st.data())
def test_all_settings_together(prompts: Any, pair: Any, data: st.DataObject) -> None:
    said = GenerationSettings(
        repetition_penalty=data.draw(st.sampled_from([0.5, 1.05, 1.7])),
        no_repeat_ngram_size=data.draw(st.integers(1, 5)),
        bad_words_ids=(*pair, *((i,) for i in data.draw(st.lists(ids, max_size=2, unique=True)))),
        suppress_tokens=(data.draw(ids), 99, -1, 2**63, -(10**40)),
        begin_suppress_tokens=(data.draw(ids),),
        min_length=data.draw(st.integers(1, 12)),
        min_new_tokens=data.draw(st.sampled_from([None, 1, 3])),
    )
    check(said, prompts, data.draw(st.integers(0, 99)))


@pytest.mark.parametrize(
    "one",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": ((3,), (1,), (2, 5), (0, 2, 5, 3))},
        {"suppress_tokens": (0, 4)},
        {"begin_suppress_tokens": (2, 3, 1)},
        {"min_length": 7},
        {"min_new_tokens": 2, "min_length": 99},
    ],
    ids=lambda one: "-".join(one),
)
def test_each_setting_alone(one: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for seed in range(4):
        prompts = [rng.integers(0, V, size).tolist() for size in (1, 5, S)]
        check(GenerationSettings(**one), prompts, seed)


def test_no_setting_is_no_rule() -> None:
    """Nothing is added to the program then; a run longer than can be there is no setting either."""
    prompts = [np.zeros(4, np.int32)]
    for said in (GenerationSettings(), GenerationSettings(no_repeat_ngram_size=10**9)):
        options = said.resolve(CallOptions(max_new_tokens=STEPS))
        assert make_rules(said, options, prompts, ends=ENDS, vocabulary=V, length=S) is None


def test_a_prompt_may_hold_ids_beyond_the_head() -> None:
    check(GenerationSettings(repetition_penalty=2.0), [[0, V + 3], [V, V, 2], [5]], 0)


def test_top_k_and_min_p_leave_the_others_out() -> None:
    logits = jnp.log(jnp.asarray([[0.1, 0.4, 0.05, 0.3, 0.15]], jnp.float32))

    def drawn(**more: Any) -> set[int]:
        given = {"top_p": jnp.float32(1), **more}
        made = many(jnp.arange(300), given)
        return set(np.asarray(made).ravel().tolist())

    def one(step: jax.Array, given: dict[str, jax.Array]) -> jax.Array:
        return choose(logits, jax.random.key(0), step, jnp.float32(1), **given, greedy=False)

    many = jax.jit(jax.vmap(one, in_axes=(0, None)))

    assert drawn() == {0, 1, 2, 3, 4}
    assert drawn(top_k=jnp.int32(3)) == {1, 3, 4}
    assert drawn(top_k=jnp.int32(1)) == {1}
    assert drawn(min_p=jnp.float32(0.3)) == {1, 3, 4}  # 0.3 * 0.4 is 0.12
    # What top_k leaves is one whole again for top_p: 0.4 of 0.85 is less than a half.
    assert drawn(top_k=jnp.int32(3), top_p=jnp.float32(0.5)) == {1, 3}


@pytest.mark.deep
@pytest.mark.parametrize(
    ("file", "call"),
    [
        ({"repetition_penalty": 0.6, "suppress_tokens": (9, 17)}, {}),
        ({}, {"no_repeat_ngram_size": 1}),
        ({"min_new_tokens": 5, "bad_words_ids": ((8, 9),)}, {"repetition_penalty": 1.3}),
    ],
    ids=str,
)
def test_nothing_compiles_behind_a_warm_up_with_settings(
    lvlm: LVLM, photographs: Any, monkeypatch: pytest.MonkeyPatch, file: Any, call: Any
) -> None:
    """Of the checkpoint, of the call, or of both; pictures and questions are others."""
    monkeypatch.setattr(lvlm, "settings", GenerationSettings(**file))
    lvlm.warm_up([(56, 56)], keep=5, prompt_lengths=(30,), max_new_tokens=6, **call)
    with backend_compiles() as compiles:
        made = lvlm.generate(photographs[0], "What is red?", keep=5, max_new_tokens=6, **call)
    assert compiles == [] and made.errors == [None]
    monkeypatch.setattr(lvlm, "settings", GenerationSettings())
    plain = lvlm.generate(photographs[0], "What is red?", keep=5, max_new_tokens=6)
    assert plain.tokens[0].tolist() != made.tokens[0].tolist(), "the settings change nothing here"
