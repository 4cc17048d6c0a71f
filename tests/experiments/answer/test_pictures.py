"""`draw_kept`: the picture of what was kept, as a notebook shows it."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.answer import draw_kept
from tests.experiments.answer.test_views import NEXT, QWEN, noise

WIDE = noise(40, 50)  # 4 x 5 tokens
MODEL: Any = SimpleNamespace(family=QWEN)


def pixels(choices: dict[str, Any], **more: Any) -> np.ndarray:
    return np.asarray(draw_kept(MODEL, WIDE, choices, **more))


def test_a_panel_for_each_choice_and_the_question_above() -> None:
    few = pixels({"few": [7, 0]})
    assert few.shape[2] == 3 and 300 < few.shape[1] < 350
    two = pixels({"all": None, "few": [7, 0]}, question="What is it?")
    assert two.shape[1] > 600 and len(two) > len(few)
    assert (few != pixels({"few": [0, 7]})).any()  # another seed token
    # A row of a selection is taken as it is: two tokens, then N for none.
    assert (few == pixels({"few": jnp.asarray([7, 0, 20, 20], jnp.int32)})).all()


def test_parts_of_a_picture_have_panels_of_their_own() -> None:
    model: Any = SimpleNamespace(family=NEXT)
    drawn = draw_kept(model, noise(480, 640), {"a": np.arange(600)})
    assert 600 < drawn.width < 700


@pytest.mark.parametrize(
    ("picks", "why"),
    [
        ([3, -1], "names tokens from -1 to 3: the images have 20"),
        ([21], "names tokens from 21 to 21"),
        ([[1, 2]], "is a list of token numbers, got int64 of shape \\(1, 2\\)"),
        ([0.5], "is a list of token numbers, got float64"),
    ],
)
def test_what_are_no_tokens_is_refused(picks: list[Any], why: str) -> None:
    with pytest.raises(CallError, match=f"choice 'x' {why}"):
        draw_kept(MODEL, WIDE, {"x": picks})


def test_no_choice_is_refused() -> None:
    with pytest.raises(CallError, match="no panel"):
        draw_kept(MODEL, WIDE, {})
