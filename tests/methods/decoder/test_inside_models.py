"""Methods that drop inside the decoder through a whole model: batches, budgets, refusals."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.methods import SingleDrop, get_method, method_class
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.prompts.options import CallOptions
from tests.checkpoints.llava import NUM_VISUAL_TOKENS
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.compiles import backend_compiles

INSIDE = [name for name in METHODS if method_class(name).stage == "decoder"]
QUESTIONS = ["What colour is the dog?", "Is there a red car near the tall tree in the picture?"]
# Three layers, as the tiny checkpoints have.
SHALLOW: dict[str, Any] = {
    "pdrop": {"layers": (1, 2), "depth": 0},
    "sparsevlm": {"layers": (0, 1), "depth": 0, "keeps": (9, 4)},
    "sparsevlm-plus": {"layers": (0, 1), "depth": 0, "keeps": (9, 4)},
}


@cache
def other(family: str) -> LVLM:
    make = {"next": tiny_next, "qwen": tiny_qwen}[family]
    return load_model(make(Path(mkdtemp()) / family), dtype="float32")


def test_rows_do_not_see_their_batch_mates(lvlm: LVLM, photographs: Any) -> None:
    """A pruned row beside one that keeps all and one without a picture; then each alone."""
    images = [photographs[0], photographs[1], None]
    questions = [*QUESTIONS, "How are you?"]
    call: dict[str, Any] = {"method": "fastv", "method_settings": {"k": 1}, "max_new_tokens": 6}
    made = lvlm.generate(images, questions, keep=[5, None, 7], **call)
    assert made.errors == [None] * 3
    assert made.kept == [5, NUM_VISUAL_TOKENS, 0]
    assert made.drops == [((1, 5),), (), ()]
    assert made.costs[2] is None
    averages = [None if cost is None else cost.average for cost in made.costs]
    assert averages == [(NUM_VISUAL_TOKENS + 2 * 5) / 3, NUM_VISUAL_TOKENS, None]
    whole = lvlm.generate(images[1:], questions[1:], max_new_tokens=6)
    assert [row.tolist() for row in made.tokens[1:]] == [row.tolist() for row in whole.tokens]
    alone = lvlm.generate(images[0], questions[0], keep=5, **call)
    assert alone.tokens[0].tolist() == made.tokens[0].tolist()
    assert alone.selections.indices[0, :5].tolist() == made.selections.indices[0, :5].tolist()
    # Other pictures, another budget of the same bucket, words in place of others: no compile.
    with backend_compiles() as compiles:
        again = lvlm.generate(photographs[2], QUESTIONS[1], keep=6, **call)
        ratio = lvlm.generate(photographs[3], QUESTIONS[0], keep=0.5, **call)
    assert not compiles
    assert (again.kept, ratio.kept) == ([6], [8])
    with backend_compiles() as compiles:
        sizes, lengths = [(60, 80), (56, 56)], [20, 30]
        assert lvlm.warm_up(sizes, keep=[5, 7], prompt_lengths=lengths, **call) == 1
    assert not compiles
    # By the average over the layers: (16 + 2 n) / 3 is nearest to 9 at n = 5 or 6.
    with backend_compiles() as compiles:
        settings = {"k": 1, "keep_average": 9}
        solved = lvlm.generate(
            photographs[0], QUESTIONS[0], **{**call, "method_settings": settings}
        )
    assert not compiles
    assert solved.kept == [6] and solved.costs[0].average == pytest.approx(9, abs=0.4)


def test_each_segment_has_a_cache_that_decoding_updates_in_place(
    lvlm: LVLM, photographs: Any
) -> None:
    settings = {"k": 1}
    options = CallOptions(keep=5, method="fastv", method_settings=settings, max_new_tokens=6)
    call = lvlm.prepare(photographs[0], QUESTIONS[0], options, new_tokens=6)
    words = int(call.plan.valid.sum()) - NUM_VISUAL_TOKENS
    made = lvlm.drop(call, lvlm.assemble(call, lvlm.choose(call)), slots=64)
    logits, _, caches, positions, _ = made
    assert [(cache.start, cache.stop) for cache in caches] == [(0, 1), (1, 3)]
    filled = [int(np.asarray(cache.valid).sum()) for cache in caches]
    assert filled == [words + NUM_VISUAL_TOKENS, words + 5]
    # The second holds no slots for the tokens that are gone, beyond its bucket.
    assert caches[1].length == call.plan.length - 64 + NUM_VISUAL_TOKENS + 64
    lowered = lvlm.programs.decode.lower(
        lvlm.parameters, caches, logits, positions, np.int32(6), lvlm.eos_ids, np.uint32(0),
        np.float32(1), np.float32(1), slots=64, greedy=True,
    )  # fmt: skip
    scores, valid = lvlm.logits(photographs[0], QUESTIONS[0], options=options)
    assert valid.sum(axis=1).tolist() == [words + 5]
    np.testing.assert_allclose(scores[0, words + 4], logits[0], atol=1e-5)
    aliased = lowered.as_text().count("tf.aliasing_output")
    assert aliased == len(jax.tree.leaves(caches))


def test_several_drops_in_a_batch(lvlm: LVLM, photographs: Any) -> None:
    """Merged rows of one row do not shift another's, which keeps all or has no picture."""
    images, questions = [*photographs[:2], None], [*QUESTIONS, "How are you?"]
    call: dict[str, Any] = {
        "method": "sparsevlm", "method_settings": SHALLOW["sparsevlm"], "max_new_tokens": 6,
    }  # fmt: skip
    made = lvlm.generate(images, questions, **call)
    assert made.errors == [None] * 3
    assert made.drops == [((1, 10), (2, 5)), ((1, 10), (2, 5)), ()]
    with backend_compiles() as compiles:  # other mates, other places in the batch
        turned = lvlm.generate(images[::-1], questions[::-1], **call)
    assert not compiles
    assert turned.kept == made.kept[::-1]
    for mine, again in zip(made.tokens, turned.tokens[::-1], strict=True):
        assert mine.tolist() == again.tolist()


@pytest.mark.deep
def test_a_row_that_is_left_with_merged_tokens_alone_has_not_failed(
    lvlm: LVLM, photographs: Any
) -> None:
    settings = {**SHALLOW["sparsevlm"], "keeps": (2, 1)}
    call: dict[str, Any] = {"method": "sparsevlm", "method_settings": settings}
    images = [image for image in photographs for _ in QUESTIONS]
    questions = [*QUESTIONS] * len(photographs)
    made = lvlm.generate(images, questions, max_new_tokens=2, **call)
    assert made.errors == [None] * len(images) and all(map(len, made.tokens))
    assert lvlm.select(images, questions, **call).errors == made.errors
    own = np.asarray(made.selections.count)
    assert (own == 0).any(), "every row keeps a token of its own: the test decides nothing"
    print(f"{int((own == 0).sum())} of {len(own)} rows end with merged tokens alone")


QUICK = ("adaptprune",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.deep) for n in INSIDE]
)
def test_every_method_on_llava_next(name: str, photographs: Any) -> None:
    """Pictures of several sizes, newlines among their tokens; the same row in another batch."""
    model = other("next")
    images, settings = list(photographs[:2]), SHALLOW.get(name, {})
    call: dict[str, Any] = {"method": name, "method_settings": settings}
    if not get_method(name, settings).budgeted:
        call["keep"] = 40 if name == "pdrop" else 9
    made = model.select(images, QUESTIONS, **call)
    assert made.errors == [None, None]
    total, layers = made.visual_tokens, model.config.text.num_layers
    method = get_method(name, settings)
    for row in range(2):
        last = method.drops(total[row], call.get("keep", total[row]), layers)[-1]
        own = made.kept[row]
        # A merged token that stays is a token, but none of the picture's own.
        assert own == last.kept or (method.merges and last.kept - 2 <= own < last.kept)
    turned = model.select(images[::-1], QUESTIONS[::-1], **call)
    for row in range(2):
        assert turned.mask[1 - row].tolist() == made.mask[row].tolist()


@pytest.mark.deep
@pytest.mark.parametrize("name", INSIDE)
def test_every_method_on_qwen(name: str, photographs: Any) -> None:
    model = other("qwen")
    call: dict[str, Any] = {"method": name, "method_settings": SHALLOW.get(name, {})}
    method = get_method(name, SHALLOW.get(name))
    if method.positions == "reindex":
        with pytest.raises(CallError, match="axes"):
            model.select(photographs[0], QUESTIONS[0], keep=9, **call)
        return
    if not method.budgeted:
        call["keep"] = 9
    if isinstance(method, SingleDrop):
        call["method_settings"] = {"k": 1}
    made = model.generate(photographs[0], QUESTIONS[0], max_new_tokens=3, **call)
    assert made.errors == [None]
    assert made.kept == [made.drops[0][-1][1]]


@pytest.mark.deep
def test_many_pictures_share_a_budget(lvlm: LVLM, photographs: Any) -> None:
    made = lvlm.select(
        [list(photographs[:2])], QUESTIONS[0], keep=7, method="adaptprune",
    )  # fmt: skip
    assert made.visual_tokens == [2 * NUM_VISUAL_TOKENS]
    assert made.kept == [7]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": 5, "tolerance": 0.1}, "tolerance"),
        ({"keep": 5, "budget": "per_image"}, "share its budget"),
        ({"keep": 5, "newline": "always"}, "newline"),
        ({"keep": 5, "positions": "reindex"}, "positions=reindex is not for FastV"),
        ({"keep": 5, "alpha": 1.0}, "no setting alpha"),
        ({"keep": 5, "method_settings": {"keep_average": 9}}, "drop one"),
        ({"method_settings": {"keep_average": 5}}, "at least"),
        ({"keep": 5, "method_settings": {"k": 3, "depth": 0}}, "in front of layer 3"),
        ({"keep": 5, "method": "pdrop", "positions": "original"}, "reindex"),
        ({"keep": 3, "method": "pdrop"}, "cannot average 3 of 16"),
    ],
)
def test_calls_that_mean_nothing_are_refused(
    lvlm: LVLM, photographs: Any, given: dict[str, Any], says: str
) -> None:
    with backend_compiles() as compiles, pytest.raises(CallError, match=says):
        lvlm.generate(photographs[0], QUESTIONS[0], **{"method": "fastv", **given})
    assert not compiles


@pytest.mark.deep
def test_states_that_are_not_finite_fail_alone(lvlm: LVLM, photographs: Any) -> None:
    encoded = lvlm.encode(list(photographs[:2]))
    embeddings = np.array(encoded.embeddings)
    embeddings[1, 3] = np.nan
    broken = replace(encoded, visual=replace(encoded.visual, embeddings=embeddings))
    made = lvlm.select(broken, QUESTIONS, keep=5, method="fastv")
    assert made.errors[0] is None and "not finite" in made.errors[1]
    assert made.kept == [5, 0]
