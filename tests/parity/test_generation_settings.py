"""Answers under `generation_config.json`: each applied setting against transformers' `generate`."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resprune_jax.experiments.verify.answers import processors_of
from resprune_jax.models import LVLM
from resprune_jax.models.prompts.generation_file import read_generation_settings
from tests.checkpoints.llava import IMAGE_TOKEN_ID, VOCABULARY
from tests.compiles import backend_compiles
from tests.parity.whole_path import NEW, QUESTIONS, Reference, kept_of

ASKED = QUESTIONS[:3]
KEEP: list[Any] = [5, 0.3, None]


@dataclass(frozen=True)
class Free:
    """The rows without any setting: what the cases are made of.

    Attributes:
        rows: the prompts in torch.
        tokens: their plain greedy answers, `NEW` tokens each.
    """

    rows: list[Reference]
    tokens: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        return [len(row.ids) for row in self.rows]


@pytest.fixture(scope="module")
def free(checkpoint: Path, reference: Any, lvlm: LVLM, photographs: list[Image.Image]) -> Free:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    rows = []
    for image, question in zip(photographs[:3], ASKED, strict=True):
        text = lvlm.encoder.encode(question).text
        inputs = dict(processor(images=[image], text=[text], return_tensors="pt"))
        ids = inputs["input_ids"][0]
        x = reference.get_input_embeddings()(ids).detach()
        with torch.no_grad():
            own = reference.model.get_image_features(inputs["pixel_values"]).pooler_output
        x[ids == IMAGE_TOKEN_ID] = torch.cat(list(own))
        image_of = np.where(ids.numpy() == IMAGE_TOKEN_ID, 0, -1)
        rows.append(Reference(reference, inputs, x, np.arange(len(ids)), image_of))
    # No end of an answer, so that the cases have whole answers to shape.
    return Free(rows, [row.greedy(VOCABULARY + 1) for row in rows])


def ends_and(free: Free, **more: Any) -> dict[str, Any]:
    """Several ends that the plain answers reach after some tokens."""
    first, second, third = (row[5 + 3 * i] for i, row in enumerate(free.tokens))
    return {"eos_token_id": [2, first, second, third], **more}


def words(free: Free) -> list[list[int]]:
    """A word of one id, of two and of four; one begun by the prompt; an end, which is no word."""
    one, two, three = free.tokens
    tail = free.rows[2].ids[-2:].tolist()
    return [[one[3]], two[:2], one[6:10], [*tail, three[0]], [2], [7] * 6 + [two[5]]]


CASES: dict[str, Callable[[Free], dict[str, Any]]] = {
    "repetition_penalty": lambda _: {"repetition_penalty": 1.3},
    # Below 1 it makes runs that there would not be without it.
    "no_repeat_ngram_size": lambda _: {"repetition_penalty": 0.7, "no_repeat_ngram_size": 2},
    "bad_words_ids": lambda free: {"bad_words_ids": words(free)},
    # One of them is an end of the first row: it goes on to another.
    "suppress_tokens": lambda free: ends_and(
        free,
        suppress_tokens=[free.tokens[0][5], free.tokens[1][4], free.tokens[2][0], -1, 10**6],
    ),
    "begin_suppress_tokens": lambda free: {
        "begin_suppress_tokens": [row[0] for row in free.tokens]
    },
    "min_new_tokens": lambda free: ends_and(free, min_new_tokens=14, min_length=40),
    "min_length": lambda free: ends_and(free, min_length=max(free.lengths) + 9),
    "max_new_tokens": lambda _: {"max_new_tokens": 7, "max_length": 9999},
    "max_length": lambda free: {"max_length": max(free.lengths) + 5},
    "all": lambda free: ends_and(
        free,
        repetition_penalty=1.1,
        no_repeat_ngram_size=3,
        bad_words_ids=words(free),
        suppress_tokens=[free.tokens[0][2]],
        begin_suppress_tokens=[free.tokens[1][0]],
        min_new_tokens=12,
    ),
}


PRUNED = ("repetition_penalty", "max_length", "all")
"""The cases of pruned answers; the last one holds every setting that asks for a program."""


@pytest.fixture(params=CASES)
def file(
    request: pytest.FixtureRequest,
    free: Free,
    lvlm: LVLM,
    reference: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """A `generation_config.json`, read on both sides."""
    from transformers import GenerationConfig

    content = CASES[request.param](free)
    # Settings of drawing stand beside them, as in published files; answers are greedy.
    whole = {"eos_token_id": 2, "pad_token_id": 3, "temperature": 0.2, "top_k": 3, **content}
    (tmp_path / "generation_config.json").write_text(json.dumps(whole))
    monkeypatch.setattr(lvlm, "settings", read_generation_settings(tmp_path, VOCABULARY))
    monkeypatch.setattr(lvlm, "eos_ids", np.atleast_1d(whole["eos_token_id"]).astype(np.int32))
    monkeypatch.setattr(reference, "generation_config", GenerationConfig.from_pretrained(tmp_path))
    return content


def test_answers_are_those_of_generate(
    file: dict[str, Any], free: Free, lvlm: LVLM, photographs: list[Image.Image]
) -> None:
    """A ragged batch of three; the reference is each prompt alone."""
    given = {} if "max_length" in file else {"max_new_tokens": NEW}
    made = lvlm.generate(photographs[:3], ASKED, **given)
    want = []
    for row in free.rows:
        with torch.no_grad():
            whole = row.model.generate(**row.inputs, do_sample=False, **given)
        want.append(whole[0, len(row.ids) :].tolist())
    assert [row.tolist() for row in made.tokens] == want
    assert want != free.tokens, "the setting has no effect here"
    print(f"{sum(map(len, want))} greedy tokens equal under {file}")


@pytest.mark.parametrize("file", PRUNED, indirect=True)
def test_pruned_answers_obey_too(
    file: dict[str, Any], free: Free, lvlm: LVLM, photographs: list[Image.Image]
) -> None:
    """transformers' processors, which see the unpruned prompt, on torch's pruned logits."""
    given = {} if "max_length" in file else {"max_new_tokens": NEW}
    made = lvlm.generate(photographs[:3], ASKED, keep=KEEP, **given)
    ends, settings = tuple(lvlm.eos_ids.tolist()), free.rows[0].model.generation_config
    for number, row in enumerate(free.rows):
        new = file.get("max_length", len(row.ids) + NEW) - len(row.ids)
        new = new if "max_length" in file else NEW
        judge = processors_of(settings, len(row.ids), ends)
        kept = kept_of(made, number)
        want, _ = row.pruned_answer(kept, "reindex", ends, new, judge)
        assert made.tokens[number].tolist() == want
    print(f"{sum(map(len, made.tokens))} greedy tokens equal, {made.kept} visual tokens kept")


def test_another_value_compiles_nothing(lvlm: LVLM, photographs: list[Image.Image]) -> None:
    def call(question: str, **settings: Any) -> list[int]:
        made = lvlm.generate(photographs[:3], [question, *ASKED[1:]], max_new_tokens=8, **settings)
        return made.tokens[0].tolist()

    first = call(ASKED[0], repetition_penalty=0.5, no_repeat_ngram_size=3)
    with backend_compiles() as compiles:
        again = call(ASKED[0], repetition_penalty=3.0, no_repeat_ngram_size=5)
        call("What is red?", repetition_penalty=0.9, no_repeat_ngram_size=1)
    assert compiles == [] and first != again
