"""LLaVA-NeXT from `load_model` to the answer, against transformers."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from resprune_jax.methods.base import NEWLINE
from resprune_jax.models import LVLM, load_model
from tests.checkpoints.llava import IMAGE_TOKEN_ID
from tests.checkpoints.llava_next import DIALECTS, rename_dialect, tiny_processor
from tests.parity.llava.next_pairs import NO_ROW, SIZES, Pair, pair, picture
from tests.parity.whole_path import (
    LONG,
    QUESTIONS,
    Reference,
    check_greedy,
    check_logits,
    check_pruned,
)
from tests.prompt_data import lexicon

# Each row's pictures by (height, width): five tiles, three, newlines only, four; then rows of two.
ONES = [[size] for size in SIZES]
TWOS = [[SIZES[0], SIZES[3]], [SIZES[1], NO_ROW]]
WINDOWS = {"vicuna": None, "mistral": None, "mistral-window": 40, "mistral-missing": 4096}


@lru_cache(maxsize=4)
def lvlm(variant: str) -> LVLM:
    model = load_model(pair(variant).directory, dtype="float32")
    model._extractor = lexicon()
    return model


def pictures(rows: list[list[tuple[int, int]]]) -> list[list[Image.Image]]:
    return [[picture(*size) for size in row] for row in rows]


@lru_cache(maxsize=1)
def processor() -> Any:
    return tiny_processor()


def reference(models: Pair, sizes: list[tuple[int, int]], text: str) -> Reference:
    """A prompt about pictures of these sizes, by transformers' own processor."""
    images = [picture(*size) for size in sizes]
    inputs = dict(processor()(images=images, text=[text], return_tensors="pt"))
    ids, model = inputs["input_ids"][0], models.torch_model
    with torch.no_grad():
        features = model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"]
        ).pooler_output
        x = model.get_input_embeddings()(ids)
        x[ids == IMAGE_TOKEN_ID] = torch.cat(list(features))
    image = np.full(len(ids), -1)
    image[ids.numpy() == IMAGE_TOKEN_ID] = np.repeat(
        np.arange(len(features)), [len(own) for own in features]
    )
    return Reference(model, inputs, x, np.arange(len(ids)), image)


def references(
    variant: str, rows: list[list[tuple[int, int]]], questions: list[str]
) -> list[Reference]:
    encoder = lvlm(variant).encoder
    texts = [
        encoder.encode(question, ("image",) * len(row)).text
        for question, row in zip(questions, rows, strict=True)
    ]
    made = zip(rows, texts, strict=True)
    return [reference(pair(variant), row, text) for row, text in made]


@pytest.mark.parametrize("variant", WINDOWS)
def test_full_logits_and_answers_of_a_batch_of_different_sizes(variant: str) -> None:
    model = lvlm(variant)
    assert model.config.text.sliding_window == WINDOWS[variant]
    rows = references(variant, ONES, QUESTIONS)
    assert WINDOWS[variant] != 40 or min(len(row.ids) for row in rows) > 40
    check_logits(model, pictures(ONES), QUESTIONS, rows)
    tokens = check_greedy(model, pictures(ONES), QUESTIONS, rows)
    print(f"{variant}: {tokens} greedy tokens equal")
    assert tokens >= 64


def test_one_prompt_alone_and_prompts_of_two_pictures() -> None:
    model = lvlm("mistral")
    rows = references("mistral", ONES[:1], QUESTIONS[:1])
    tokens = check_greedy(model, picture(*SIZES[0]), QUESTIONS[:1], rows)
    two = references("mistral", TWOS, QUESTIONS[:2])
    check_logits(model, pictures(TWOS), QUESTIONS[:2], two)
    tokens += check_greedy(model, pictures(TWOS), QUESTIONS[:2], two)
    print(f"{tokens} greedy tokens equal")
    assert tokens >= 64


def test_a_long_prompt() -> None:
    """Far more tokens than the window, and than a wrong rotation could hide behind."""
    rows = references("mistral-window", ONES[:1], [LONG])
    assert len(rows[0].ids) > 500
    check_logits(lvlm("mistral-window"), picture(*SIZES[0]), [LONG], rows)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("variant", "positions", "budget", "newline"),
    [
        ("vicuna", None, "total", "candidate"),
        ("vicuna", "original", "total", "always"),
        ("vicuna", "original", "per_image", "candidate"),
        ("mistral-window", "reindex", "per_image", "always"),
    ],
)
def test_pruned(variant: str, positions: Any, budget: Any, newline: Any) -> None:
    """torch is fed the same kept embeddings at the rule's positions."""
    model = lvlm(variant)
    rows = references(variant, TWOS, QUESTIONS[:2])
    keep = [0.3, 5]
    encoded = model.encode(pictures(TWOS))
    lines = [[], []]
    if newline == "always":
        lines = [np.flatnonzero(kind == NEWLINE) for kind in np.asarray(encoded.kind)]
        assert min(map(len, lines)) > 0
    made = check_pruned(
        model, pictures(TWOS), QUESTIONS[:2], rows, keep=keep, new=8, lines=lines,
        positions=positions, budget=budget, newline=newline,
    )  # fmt: skip
    counts = [[(row.image == number).sum() for number in range(2)] for row in rows]
    picks = np.asarray(made.selections.count)  # type: ignore[union-attr]
    if budget == "total":
        wanted = np.array([round(0.3 * sum(counts[0])), 5])
    else:
        wanted = np.array([[round(0.3 * n) for n in counts[0]], [min(5, n) for n in counts[1]]])
        owner = [row.image[row.image >= 0] for row in rows]
        for row in range(2):
            for number in range(2):
                own = np.asarray(made.selections.indices)[row, number]  # type: ignore[union-attr]
                assert (owner[row][own[: wanted[row, number]]] == number).all()
    np.testing.assert_array_equal(picks, wanted)
    beside = [len(own) for own in lines]
    assert made.kept == [int(n.sum()) + more for n, more in zip(wanted, beside, strict=True)]


def test_budgets_of_a_batch_of_different_sizes() -> None:
    """One row each: a count, a ratio, everything, and more than there is."""
    rows = references("vicuna", ONES, QUESTIONS)
    made = check_pruned(
        lvlm("vicuna"), pictures(ONES), QUESTIONS, rows, keep=[5, 0.222, None, 9], new=4
    )
    totals = [int((row.image >= 0).sum()) for row in rows]
    assert made.kept == [5, round(0.222 * totals[1]), totals[2], 9]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_key_dialect_loads(dialect: str, tmp_path: Path) -> None:
    folder = rename_dialect(pair("mistral").directory, tmp_path / dialect, dialect)
    other = load_model(folder, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, other.state, lvlm("mistral").state)
    got, want = (
        model.generate(pictures(TWOS), QUESTIONS[:2], max_new_tokens=4).tokens
        for model in (other, lvlm("mistral"))
    )
    np.testing.assert_array_equal(got, want)
