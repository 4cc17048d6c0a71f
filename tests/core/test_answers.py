"""Answers of every family from files on the disk, whole and pruned: the way a user goes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.models import load_model
from tests.core.families import CONFIGS, image_processor, tokenizer, write_checkpoint

QUESTIONS = ["What is on the table next to the window?", "How many people are there?"]
# Of the pictures below, one square, one wide; tiles have a newline in each of their rows.
VISUAL_TOKENS = {"llava": [16, 16], "llava_next": [16 + 4 * 5, 16 + 4 * 9],
                 "qwen2_5_vl": [4, 8]}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for height, width in [(56, 56), (56, 112)]
    ]


@pytest.mark.parametrize("family", CONFIGS)
def test_a_checkpoint_answers(family: str, tmp_path: Path, pictures: list[Image.Image]) -> None:
    lvlm = load_model(write_checkpoint(tmp_path, family), dtype="float32")
    call: dict[str, Any] = {"max_new_tokens": 4}
    full = lvlm.generate(pictures, QUESTIONS, **call)
    assert full.errors == [None, None]
    assert full.visual_tokens == full.kept == VISUAL_TOKENS[family]
    # The first token is the likeliest of the scores that `logits` gives.
    logits, valid = lvlm.logits(pictures, QUESTIONS)
    for row in range(2):
        last = np.flatnonzero(np.asarray(valid[row]))[-1]
        assert full.tokens[row][0] == np.argmax(np.asarray(logits)[row, last])
    kept = lvlm.generate(pictures, QUESTIONS, keep=[3, 0.5], **call)
    assert kept.errors == [None, None]
    assert kept.nouns == [["table", "window"], ["people"]]
    assert kept.kept == [3, VISUAL_TOKENS[family][1] // 2]
    everything = lvlm.generate(pictures, QUESTIONS, keep=[1000, 1000], **call)
    for one, other in zip(full.tokens, everything.tokens, strict=True):
        np.testing.assert_array_equal(one, other)
    # The text that the model answers is what the tokenizer makes of the ids.
    words = tokenizer(family.startswith("qwen"))
    for text, ids in zip(full.texts, full.tokens, strict=True):
        assert text == words.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", CONFIGS)
def test_pixels_are_those_of_the_image_processor(
    family: str, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """transformers' processors read back from the files give what they gave before."""
    made = image_processor(family)
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    for picture in pictures:
        one, other = (
            np.asarray(each(images=picture, return_tensors="np")["pixel_values"])
            for each in (made, again)
        )
        assert one.dtype == np.float32 and one.size
        np.testing.assert_array_equal(one, other)
