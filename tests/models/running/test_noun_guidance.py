"""Which words guide an answer: the tagger that a call names, and prompts with their markup."""

import copy
import importlib.util
import logging
from typing import Any

import numpy as np
import pytest

from resprune_jax import errors
from resprune_jax.errors import CallError
from resprune_jax.methods import ResPrune
from resprune_jax.models import LVLM
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.nouns import MODEL
from tests.checkpoints.llava import NUM_VISUAL_TOKENS
from tests.compiles import backend_compiles
from tests.prompt_data import PUBLISHED

QUESTION = "How many people are in the picture, and what colour is the dog?"
TEMPLATES = {
    "vicuna": None,
    "chatml": (
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    ),
    "mistral": "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}",
    "llama 3": (
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
        "{{ m['content'] + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    ),
}


def under(lvlm: LVLM, template: str | None) -> LVLM:
    """The same model under another chat template."""
    made = copy.copy(lvlm)
    encoder = lvlm.encoder
    made.encoder = PromptEncoder(
        encoder.tokenizer, image_token_id=encoder.image_token_id, template=template,
        eos_ids=encoder.eos_ids.tolist(),
    )  # fmt: skip
    return made


@pytest.mark.parametrize("text", ["nouns", "prompt"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_whole_prompt_is_guided_as_its_question_is(
    lvlm: LVLM, photographs: Any, name: str, text: Any
) -> None:
    model = under(lvlm, TEMPLATES[name])
    call = {"keep": 6, "max_new_tokens": 1, "text": text, "alpha": 0.75}
    plain = model.generate(photographs[0], QUESTION, **call)
    whole = model.generate(photographs[0], plain.prompts[0], chat_template=False, **call)
    assert whole.prompts == plain.prompts and plain.nouns[0]
    assert whole.nouns == plain.nouns
    np.testing.assert_array_equal(whole.selections.indices, plain.selections.indices)


def test_a_call_names_its_tagger(lvlm: LVLM, photographs: Any) -> None:
    call = {"keep": 6, "max_new_tokens": 1}
    lexicon = lvlm.generate(photographs[0], QUESTION, tagger="lexicon", **call)
    assert lexicon.noun_backend.startswith("lexicon (textblob ")
    real = lvlm.generate(photographs[0], QUESTION, tagger=PUBLISHED, **call)
    assert real.noun_backend == f"{PUBLISHED} 3.8.0"
    assert real.nouns == lexicon.nouns == [["people", "picture", "colour", "dog"]]
    assert lvlm.extractor(PUBLISHED) is lvlm.extractor(PUBLISHED)
    full = lvlm.logits(photographs[0], QUESTION, keep=6, tagger=PUBLISHED)
    np.testing.assert_array_equal(
        full[0], lvlm.logits(photographs[0], QUESTION, keep=6, tagger="lexicon")[0]
    )


@pytest.mark.parametrize("tagger", ["no_such_tagger", "numpy", None, 3, ["lexicon"]])
def test_a_wrong_tagger_is_found_before_anything_runs(
    lvlm: LVLM, photographs: Any, tagger: Any
) -> None:
    with backend_compiles() as compiles, pytest.raises(CallError, match="tagger"):
        lvlm.generate(photographs[0], QUESTION, keep=6, tagger=tagger)
    assert not compiles


@pytest.fixture
def fresh(lvlm: LVLM, monkeypatch: pytest.MonkeyPatch) -> LVLM:
    """The model as it is just loaded, where `en_core_web_sm` is not installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == MODEL else found(name, *a)
    )
    monkeypatch.setattr(errors, "_SAID", set())
    made = copy.copy(lvlm)
    made._extractors = {}
    return made


@pytest.mark.parametrize(
    "call",
    [
        {"keep": 6, "alpha": 0},
        {"keep": 6, "alpha": 0.0},
        {"keep": 6, "method": ResPrune(alpha=0.0)},
        {"keep": 6, "text": "prompt"},
        {"keep": None},
        {"keep": [None]},
        {"method": "none"},
    ],
    ids=str,
)
def test_no_tagger_is_spoken_of_where_none_is_used(
    fresh: LVLM, photographs: Any, call: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="resprune_jax"):
        made = fresh.generate(photographs[0], [QUESTION], max_new_tokens=1, **call)
        # Nor is there anything that strict_nouns could refuse.
        fresh.generate(photographs[0], [QUESTION], max_new_tokens=1, strict_nouns=True, **call)
    assert not [record for record in caplog.records if "nouns" in record.getMessage()]
    assert fresh._extractors == {}
    assert made.noun_backend == ("whole prompt" if "text" in call else "none")


def test_the_fallback_is_said_once_with_words_that_exist(
    fresh: LVLM, photographs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="resprune_jax"):
        for _ in range(2):
            made = fresh.generate(photographs[0], [QUESTION], keep=[6], max_new_tokens=1)
    (said,) = [r.getMessage() for r in caplog.records if "nouns" in r.getMessage()]
    assert made.noun_backend in said
    assert "strict_nouns=True (--strict-nouns) refuses this fallback" in said
    with pytest.raises(CallError, match="is not installed"):
        fresh.generate(photographs[0], QUESTION, keep=6, strict_nouns=True)


def test_without_guidance_the_choice_is_the_same_as_before(lvlm: LVLM, photographs: Any) -> None:
    """alpha=0 leaves the text out: other words, the same picks; a small alpha does not."""
    call = {"keep": NUM_VISUAL_TOKENS // 2, "max_new_tokens": 1}
    one = lvlm.generate(photographs[0], QUESTION, alpha=0, **call)
    other = lvlm.generate(photographs[0], "Why?", alpha=0, **call)
    np.testing.assert_array_equal(one.selections.indices, other.selections.indices)
    assert one.nouns == [[]]
    assert lvlm.generate(photographs[0], QUESTION, alpha=0.5, **call).nouns != [[]]
