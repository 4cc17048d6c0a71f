"""`jax_enable_x64`, which other libraries ask their users to set: the same answers."""

from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax import select
from resprune_jax.models import LVLM


def test_answers_with_64_bits_enabled(lvlm: LVLM, photographs: list[Any]) -> None:
    """All tokens, a count, a ratio, no picture; drawn, and under settings."""
    images = [photographs[0], photographs[1], photographs[2], None]
    asked = ["What is red?", "How many people are there?", "Is there a dog?", "Name a colour."]
    keep: list[Any] = [None, 5, 0.4, None]

    def answers() -> list[Any]:
        made = lvlm.generate(
            images, asked, keep=keep, max_new_tokens=6, temperature=1.0, top_p=0.9,
            rng_seed=[3, 1, 4, 1], repetition_penalty=0.7, no_repeat_ngram_size=3,
        )  # fmt: skip
        assert made.errors == [None] * 4
        return [[row.tolist() for row in made.tokens], made.kept]

    plain = answers()
    with jax.enable_x64(True):
        assert answers() == plain


@pytest.mark.parametrize("engine", ["lazy", "feature"])
def test_picks_with_64_bits_enabled(engine: str) -> None:
    rng = np.random.default_rng(5)
    tokens = rng.normal(size=(3, 90, 24)).astype(np.float32)
    options = {"relevance": rng.random((3, 90)), "alpha": [0.0, 0.5, 1.5], "limit": [20, 7, 3]}
    plain = select(tokens, 20, engine=engine, **options)
    with jax.enable_x64(True):
        made = select(tokens, 20, engine=engine, **options)
    np.testing.assert_array_equal(made.indices, plain.indices)
    np.testing.assert_array_equal(made.count, plain.count)
    assert made.indices.dtype == np.int32 and made.energy.dtype == np.float32
