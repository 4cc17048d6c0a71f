"""Questions without a picture, alone and beside others: the same answers as asked alone."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM, load_model
from tests.checkpoints.llava_next import tiny_next
from tests.compiles import backend_compiles
from tests.parity.qwen.pairs import pair

NEW = 6
TEXT = "Name a colour."
ABOUT = "What is on the table?"


@pytest.fixture(
    scope="module", params=["llava", pytest.param("next", marks=pytest.mark.deep), "qwen"]
)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> LVLM:
    if request.param == "llava":
        return request.getfixturevalue("lvlm")
    if request.param == "next":
        return load_model(tiny_next(tmp_path_factory.mktemp("next")), dtype="float32")
    return load_model(pair("untied").directory, dtype="float32")


def test_a_batch_gives_what_each_gives_alone(model: LVLM, photographs: Any) -> None:
    alone = model.generate(None, TEXT, max_new_tokens=NEW)
    assert alone.kept == alone.visual_tokens == [0]
    for keep in (None, 5, 0.4):
        seen = model.generate(photographs[0], ABOUT, keep=keep, max_new_tokens=NEW)
        both = model.generate(
            [None, photographs[0], []], [TEXT, ABOUT, TEXT], keep=keep, max_new_tokens=NEW
        )
        assert both.errors == [None] * 3
        assert both.kept == [0, *seen.kept, 0]
        assert both.visual_tokens == [0, *seen.visual_tokens, 0]
        for row, want in enumerate((alone, seen, alone)):
            assert both.tokens[row].tolist() == want.tokens[0].tolist()


def test_a_text_alone_runs_no_tower(model: LVLM) -> None:
    got, valid = model.logits(None, [TEXT, "Count to ten, then say what comes after it."])
    assert got.shape[:2] == valid.shape and np.isfinite(np.asarray(got)).all()
    encoded = model.encode([None, None])
    assert encoded.layouts == ((), ()) and not np.asarray(encoded.visual.valid).any()
    with backend_compiles() as compiles:
        model.logits(None, ["Name a fruit.", TEXT])
    assert not compiles


def test_one_picture_for_some_of_the_questions(model: LVLM, photographs: Any) -> None:
    nested = model.generate(
        [photographs[1], None], [[ABOUT, "Is it red?"], [TEXT]], keep=4, max_new_tokens=NEW
    )
    assert nested.rows == [0, 0, 1] and nested.kept == [4, 4, 0]
    chosen = model.select([None, photographs[1]], [TEXT, ABOUT], keep=4)
    assert chosen.kept == [0, 4] and chosen.mask.sum(axis=1).tolist() == [0, 4]
    with pytest.raises(CallError, match="no image was given"):
        model.generate([], [])


def test_a_broken_picture_fails_its_row_and_not_the_text(model: LVLM, photographs: Any) -> None:
    encoded = model.encode([None, photographs[0]])
    embeddings = encoded.visual.embeddings * np.nan
    broken = dataclasses.replace(
        encoded, visual=dataclasses.replace(encoded.visual, embeddings=embeddings)
    )
    made = model.generate(broken, [TEXT, ABOUT], keep=4, max_new_tokens=NEW)
    assert made.errors[0] is None and made.errors[1] is not None
    assert (
        made.tokens[0].tolist() == model.generate(None, TEXT, max_new_tokens=NEW).tokens[0].tolist()
    )
