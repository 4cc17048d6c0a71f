"""Prompt assembly, sampling, stopping, memory and compiles of the generation path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.methods import ResPrune, VisualTokens
from resprune_jax.models import LVLM
from resprune_jax.models.decoder.views import compact
from resprune_jax.models.running.processors import choose
from tests.checkpoints.llava import NUM_VISUAL_TOKENS
from tests.compiles import backend_compiles

QUESTION = "How many people are in the picture, and what colour is the dog?"

_compact = jax.jit(compact, static_argnames="length")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=2, max_size=2))
def test_compact_keeps_the_order(rows):
    index, count = _compact(jnp.asarray(rows), length=10)
    for row, kept in enumerate(rows):
        want = np.flatnonzero(kept).tolist()
        assert int(count[row]) == len(want)
        assert index[row].tolist() == want + [9] * (10 - len(want))


def test_top_p_draws_from_the_nucleus():
    probability = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.log(jnp.asarray(probability, jnp.float32))[None, [2, 0, 3, 1]]
    draw = jax.jit(
        lambda step, temperature, top_p: choose(
            logits, jax.random.key(0), step, temperature, top_p, greedy=False
        )
    )
    steps = jnp.arange(4000)
    many = jax.jit(jax.vmap(draw, in_axes=(0, None, None)))
    drawn = np.asarray(many(steps, jnp.float32(1.0), jnp.float32(1.0)))[:, 0]
    share = np.bincount(drawn, minlength=4)[[1, 3, 0, 2]] / len(steps)
    np.testing.assert_allclose(share, probability, atol=0.03)
    nucleus = np.asarray(many(steps, jnp.float32(1.0), jnp.float32(0.75)))
    assert set(nucleus.ravel()) == {1, 3}  # 0.5 + 0.3 reaches 0.75
    assert set(np.asarray(many(steps, jnp.float32(1.0), jnp.float32(1e-6))).ravel()) == {1}
    cold = np.asarray(many(steps, jnp.float32(0.05), jnp.float32(1.0))).ravel()
    assert (cold == 1).mean() > 0.99


def test_a_second_call_compiles_nothing(lvlm: LVLM, photographs):
    """Other images, prompts, alphas, limits, tolerances and rng seeds inside the same buckets."""

    def call(images, prompts, **settings):
        return lvlm.generate(images, prompts, max_new_tokens=settings.pop("new", 5), **settings)

    call(photographs[:2], [QUESTION, "Is there a cat?"], keep=[6, 3], alpha=0.75, temperature=0.7)
    with backend_compiles() as compiles:
        second = call(
            photographs[2:4],
            ["What is red?", "How many books are in the picture, and is there a bus?"],
            keep=[2, None], alpha=0.3, temperature=1.3, top_p=0.9, rng_seed=7, tolerance=0.01,
            new=9, chat_template=True,
        )  # fmt: skip
    assert compiles == []
    assert second.kept[1] == NUM_VISUAL_TOKENS
    with backend_compiles() as compiles:  # the counter does see a new shape
        jnp.zeros(12347) + 1
    assert compiles


def test_the_decode_aliases_the_whole_cache(lvlm: LVLM):
    slots, length, batch = 64, 128, 2
    programs = lvlm.programs
    hidden = jax.ShapeDtypeStruct
    ids = hidden((batch, length), jnp.int32)
    *entered, position = jax.eval_shape(
        lambda *a: programs.assemble(*a, length=length),
        lvlm.parameters, ids, ids, hidden((batch, length), bool), hidden((batch,), jnp.int32),
        hidden((batch, NUM_VISUAL_TOKENS, 64), jnp.float32),
        hidden((batch, NUM_VISUAL_TOKENS), bool),
    )  # fmt: skip
    logits, cache = jax.eval_shape(
        lambda *a: programs.prefill(*a, slots=slots), lvlm.parameters, *entered
    )
    scalar = hidden((), jnp.float32)
    compiled = programs.decode.lower(
        lvlm.parameters, cache, logits, position, hidden((), jnp.int32), hidden((1,), jnp.int32),
        hidden((), jnp.uint32), scalar, scalar, slots=slots, greedy=True,
    ).compile()  # fmt: skip
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    aliased = compiled.memory_analysis().alias_size_in_bytes
    print(f"cache {size} bytes, aliased {aliased}")
    assert aliased >= size


def test_a_row_stops_at_its_end_of_sequence(lvlm: LVLM, photographs):
    free = lvlm.generate(photographs[:2], [QUESTION, "What is red?"], max_new_tokens=12)
    first, second = (row.tolist() for row in free.tokens)
    stop = first[4]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in (first, second)]
    original = lvlm.eos_ids
    try:
        lvlm.eos_ids = np.asarray([stop], np.int32)
        stopped = lvlm.generate(photographs[:2], [QUESTION, "What is red?"], max_new_tokens=12)
    finally:
        lvlm.eos_ids = original
    assert [row.tolist() for row in stopped.tokens] == cut
    assert len(cut[0]) <= 5


@pytest.mark.deep
def test_rows_do_not_see_their_batch_mates(lvlm: LVLM, photographs):
    prompts = [QUESTION, "What is red?", "Is there a bus near the old table in the picture?"]
    keep = [4, 0.5, None]
    together = lvlm.generate(photographs[:3], prompts, keep=keep, max_new_tokens=8)
    for row in range(3):
        alone = lvlm.generate(photographs[row], prompts[row], keep=keep[row], max_new_tokens=8)
        assert alone.tokens[0].tolist() == together.tokens[row].tolist()
        assert alone.kept[0] == together.kept[row]
        if keep[row] is not None:
            count = together.kept[row]
            np.testing.assert_array_equal(
                alone.selections.indices[0][:count], together.selections.indices[row][:count]
            )


def test_an_encoded_image_serves_many_questions(lvlm: LVLM, photographs):
    prompts = ["What is red?", QUESTION]
    visual = lvlm.encode(photographs[0])
    again = lvlm.generate(visual, prompts, keep=5, max_new_tokens=4)
    once = lvlm.generate(photographs[0], prompts, keep=5, max_new_tokens=4)
    assert [row.tolist() for row in again.tokens] == [row.tolist() for row in once.tokens]


def test_tolerance_ends_the_selection(lvlm: LVLM, photographs):
    loose = lvlm.generate(photographs[0], QUESTION, keep=16, tolerance=0.2, max_new_tokens=1)
    energy = loose.selections.energy[0]
    count = loose.kept[0]
    assert energy[count] <= 0.2 * energy[0] < energy[count - 1]
    assert 1 <= count < NUM_VISUAL_TOKENS


def test_visual_tokens_that_are_not_finite_fail_their_row_alone(lvlm: LVLM, photographs):
    visual = lvlm.encode(photographs[:2])
    broken = VisualTokens(
        embeddings=visual.embeddings.at[0, 3, 5].set(jnp.nan), valid=visual.valid,
        saliency=visual.saliency, coords=visual.coords,
    )  # fmt: skip
    prompts = [QUESTION, QUESTION]
    for keep in (5, None):
        got = lvlm.generate(broken, prompts, keep=keep, max_new_tokens=4)
        assert got.errors[0] is not None and "not finite" in got.errors[0]
        assert got.texts[0] == "" and len(got.tokens[0]) == 0
        good = lvlm.generate(photographs[1], QUESTION, keep=keep, max_new_tokens=4)
        assert got.errors[1] is None
        assert got.tokens[1].tolist() == good.tokens[0].tolist()


def test_methods_and_their_settings(lvlm: LVLM, photographs):
    one = lvlm.generate(photographs[0], QUESTION, keep=6, max_new_tokens=1, seed_rule="center")
    assert int(one.selections.indices[0][0]) == 5  # (1, 1) of the 4 x 4 grid, the first of four
    same = lvlm.generate(
        photographs[0], QUESTION, keep=6, max_new_tokens=1, method=ResPrune(seed_rule="center")
    )
    np.testing.assert_array_equal(one.selections.indices, same.selections.indices)
    assert one.nouns == [["people", "picture", "colour", "dog"]]
    none = lvlm.generate(photographs[0], QUESTION, method="none", max_new_tokens=1)
    assert none.selections is None and none.kept == [NUM_VISUAL_TOKENS]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep": 0}, "keep=0"),
        ({"keep": -3}, "keep=-3"),
        ({"keep": float("nan")}, "keep=nan"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": 1.0}, "keep=1.0"),
        ({"keep": True}, "keep=True"),
        ({"keep": "64"}, "keep='64'"),
        ({"keep": [4, 5]}, "2 budgets for 1 prompts"),
        ({"keep": 4, "method": "none"}, "none"),
        ({"keep": 4, "method": "fastest"}, "fastest"),
        ({"keep": 4, "alpha": -1.0}, "alpha"),
        ({"keep": 4, "alpha": float("nan")}, "alpha"),
        ({"keep": 4, "seed_rule": "first"}, "seed rule"),
        ({"alpha": 0.5, "method": "none"}, "alpha"),
        ({"tolerance": 1e-7, "keep": 4}, "tolerance"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 4000}, "context"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"rng_seed": -1}, "rng_seed"),
        ({"positions": "sideways"}, "positions"),
    ],
)
def test_a_wrong_call_is_refused_before_any_compile(lvlm: LVLM, photographs, settings, says):
    with backend_compiles() as compiles, pytest.raises(CallError, match=says):
        lvlm.generate(photographs[0], QUESTION, **settings)
    assert compiles == []


def test_wrong_numbers_of_images_and_prompts(lvlm: LVLM, photographs):
    with pytest.raises(CallError, match="2 images for 3 prompts"):
        lvlm.generate(photographs[:2], [QUESTION] * 3)
    with pytest.raises(CallError, match="no prompt"):
        lvlm.generate(photographs[:2], [])
    with pytest.raises(CallError, match="no image"):
        lvlm.generate([], [QUESTION])


def test_a_budget_above_the_token_count_is_capped_and_said(lvlm: LVLM, photographs, caplog):
    got = lvlm.generate(photographs[0], QUESTION, keep=999, max_new_tokens=1)
    assert got.kept == [NUM_VISUAL_TOKENS]
    assert "999" in caplog.text and str(NUM_VISUAL_TOKENS) in caplog.text
