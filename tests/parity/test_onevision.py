"""LLaVA-OneVision from `load_model` to the answer, against transformers."""

from typing import Any

import numpy as np

from resprune_jax.models import Video
from tests.parity.next_pairs import picture
from tests.parity.onevision_pairs import lvlm, reference
from tests.parity.quick import quick  # noqa: F401
from tests.parity.whole_path import QUESTIONS, check_greedy, check_logits, check_pruned

FILM = Video(np.stack([np.asarray(picture(60 + n, 90))[:60] for n in range(3)]), fps=4.0)

# A picture whose plane is resized; one that is not; three; a picture and a video, which leaves the
# picture alone among pictures.
ROWS: list[list[Any]] = [
    [picture(120, 130)],
    [picture(50, 80)],
    [picture(44, 44), picture(90, 40), picture(30, 200)],
    [picture(60, 40), FILM],
]


def test_logits_answers_and_pruned_answers_of_a_ragged_batch() -> None:
    model = lvlm()
    rows = [reference(row, asked) for row, asked in zip(ROWS, QUESTIONS, strict=True)]
    check_logits(model, ROWS, QUESTIONS, rows)
    assert check_greedy(model, ROWS, QUESTIONS, rows) >= 64
    check_pruned(model, ROWS, QUESTIONS, rows, keep=[0.3, 11, None, 0.5], new=8)
