"""A Qwen2 decoder under LLaVA-NeXT (llava-next-72b, 110b), from `load_model` to the answer."""

import pytest

from resprune_jax.models import LVLM
from tests.parity.llava.test_next_answers import SIZES, lvlm, pictures, references
from tests.parity.whole_path import QUESTIONS, check_greedy, check_logits, check_pruned

ROWS = [[size] for size in SIZES[:3]]


@pytest.fixture(scope="module")
def model() -> LVLM:
    model = lvlm("qwen2")
    assert model.config.text.qkv_bias and model.config.text.sliding_window is None
    return model


def test_logits_answers_and_pruned_answers_of_a_ragged_batch(model: LVLM) -> None:
    rows = references("qwen2", ROWS, QUESTIONS[:3])
    check_logits(model, pictures(ROWS), QUESTIONS[:3], rows)
    assert check_greedy(model, pictures(ROWS), QUESTIONS[:3], rows) >= 64
    made = check_pruned(model, pictures(ROWS), QUESTIONS[:3], rows, keep=[0.3, 5, None], new=8)
    assert made.kept[1:] == [5, made.visual_tokens[2]]
