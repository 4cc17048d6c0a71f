"""Questions without a picture, alone and in a batch with pictures, against torch: every family."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resprune_jax.models import LVLM
from tests.parity.llava import test_next_answers
from tests.parity.llava.next_pairs import pair as next_pair
from tests.parity.onevision import pairs as onevision_pairs
from tests.parity.onevision import test_interleave, test_onevision
from tests.parity.qwen import test_qwen_answers
from tests.parity.qwen.pairs import pair as qwen_pair
from tests.parity.whole_path import QUESTIONS, Reference, check_greedy, check_logits

ASKED = ["Name a colour.", QUESTIONS[0], QUESTIONS[1]]
"""The middle one is about a picture."""


@dataclass(frozen=True)
class Family:
    """A model on both sides, and a prompt with pictures.

    Attributes:
        lvlm: ours.
        torch_model: theirs.
        row: pictures.
        about: torch's side of a question about them.
    """

    lvlm: LVLM
    torch_model: Any
    row: Any
    about: Callable[[str], Reference]

    def text(self, question: str) -> Reference:
        """Torch's side of a question alone, as transformers' tokenizer gives it."""
        encoder = self.lvlm.encoder
        inputs = dict(encoder.tokenizer(encoder.encode(question, ()).text, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
        return bare(self.torch_model, inputs)


def bare(model: Any, inputs: dict[str, torch.Tensor]) -> Reference:
    """A prompt that is only run as a whole."""
    count = inputs["input_ids"].shape[1]
    return Reference(model, inputs, torch.zeros(0), np.arange(count), np.full(count, -1))


def llava(request: Any) -> Family:
    """LLaVA-1.5, the session's own."""
    from transformers import AutoProcessor

    lvlm, model, folder, photographs = (
        request.getfixturevalue(name) for name in ("lvlm", "reference", "checkpoint", "photographs")
    )

    def about(question: str) -> Reference:
        text = lvlm.encoder.encode(question).text
        processor = AutoProcessor.from_pretrained(Path(folder))
        return bare(
            model, dict(processor(images=photographs[:1], text=[text], return_tensors="pt"))
        )

    return Family(lvlm, model, photographs[0], about)


def next_(_: Any) -> Family:
    sizes = test_next_answers.ONES[0]

    def about(question: str) -> Reference:
        return test_next_answers.references("vicuna", [sizes], [question])[0]

    row = test_next_answers.pictures([sizes])[0]
    return Family(test_next_answers.lvlm("vicuna"), next_pair("vicuna").torch_model, row, about)


def qwen(_: Any, variant: str) -> Family:
    row = test_qwen_answers.ROWS[0]
    about = partial(test_qwen_answers.reference, variant, row)
    return Family(test_qwen_answers.lvlm(variant), qwen_pair(variant).torch_model, row, about)


def onevision(_: Any) -> Family:
    row = test_onevision.ROWS[0]
    about = partial(onevision_pairs.reference, row)
    return Family(onevision_pairs.lvlm(), onevision_pairs.torch_model(), row, about)


def interleave(_: Any) -> Family:
    row = test_interleave.ROWS[0]
    about = partial(test_interleave.reference, row)
    return Family(test_interleave.lvlm(), test_interleave.torch_model(), row, about)


FAMILIES: dict[str, Callable[[Any], Family]] = {
    "llava": llava,
    "next": next_,
    "qwen2.5": partial(qwen, variant="untied"),
    "qwen2": partial(qwen, variant="qwen2"),
    "onevision": onevision,
    "interleave": interleave,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.deep] * (name != "llava")) for name in FAMILIES],
)
def test_logits_and_answers_of_questions_without_a_picture(
    name: str, request: pytest.FixtureRequest
) -> None:
    family = FAMILIES[name](request)
    model = family.lvlm
    alone = family.text(ASKED[0])
    check_logits(model, None, ASKED[:1], [alone])
    tokens = check_greedy(model, None, ASKED[:1], [alone])
    rows = [alone, family.about(ASKED[1]), family.text(ASKED[2])]
    mixed = [None, family.row, []]
    check_logits(model, mixed, ASKED, rows)
    tokens += check_greedy(model, mixed, ASKED, rows)
    print(f"{name}: {tokens} greedy tokens equal")
    assert tokens >= 64
