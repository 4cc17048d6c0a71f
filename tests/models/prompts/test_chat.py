"""Prompts to ids: equal to transformers' processor, and clear about what cannot work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaProcessor

from resprune_jax.errors import CallError
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.expansion import check_context, check_visual, expand, pad_batch
from tests.models.prompts.chats import (
    TEMPLATES,
    TOKENIZERS,
    VISUAL,
    config,
    conversation,
    encoder,
    processor,
    save,
)

QUESTIONS = [
    "What is on the table?",
    "What\nis   there?\n\nA. dog\nB. two cats\nAnswer with the option's letter.",
    "  blanks around it \n",
    "\tWhat? ",
    "桌子上有什么?",
    "cafe\u0301, caf\u00e9 and \U0001f415",
    "USER: <im age> </s> <s> ASSISTANT:",
    "a" * 700,
    "?",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path: Path, name: str, template: str) -> None:
    """From a saved folder: text, ids and offsets as the processor's chat gives them."""
    tokenizer = TOKENIZERS[name]
    folder = save(tmp_path, tokenizer, TEMPLATES[template])
    ours = PromptEncoder.from_checkpoint(folder, config(tokenizer))
    theirs = LlavaProcessor.from_pretrained(folder)
    image = Image.new("RGB", (30, 40), "red")
    decided = 0
    for question in QUESTIONS:
        for n_images in (1, 2):
            chat = conversation(question, image, n_images, template != "string")
            text = theirs.apply_chat_template(chat, add_generation_prompt=True)
            if template == "string":  # its pictures travel beside the text
                wanted = theirs(images=[image] * n_images, text=text)["input_ids"][0]
            else:
                whole: Any = theirs.apply_chat_template(
                    chat, add_generation_prompt=True, tokenize=True, return_dict=True
                )
                wanted = whole["input_ids"][0]
            got = ours.encode(question, ("image",) * n_images)
            ids, index = expand(got.ids, ours.image_token_id, [VISUAL] * n_images)
            assert got.text == text
            assert ids.tolist() == list(wanted), (question, n_images)
            assert index.max() == VISUAL * n_images - 1
            end = got.question_start + len(got.question)
            assert got.text[got.question_start : end] == got.question
            assert got.question.strip() == question.strip()
            assert len(got.offsets) == len(got.pieces) == len(got.ids)
            spans = [got.text[a:b] for a, b in got.offsets[got.ids == ours.image_token_id]]
            assert spans == ["<image>"] * n_images
            bos = tokenizer.bos_token_id
            once = name != "plain" or template == "bos"
            assert got.ids[0] == bos if once else got.ids[0] != bos
            assert got.ids.tolist()[1:2] != [bos], "one BOS, not two"
            decided += 1
    print(f"{decided} prompts equal to transformers' processor")


def test_a_checkpoint_that_transformers_saved(checkpoint: Path) -> None:
    """The suite's own checkpoint: configuration, end-of-sequence id and a ragged batch."""
    from tests.checkpoints.llava import IMAGE_SIZE, NUM_VISUAL_TOKENS

    llava = LlavaConfig.from_hf(json.loads((checkpoint / "config.json").read_text()))
    ours = PromptEncoder.from_checkpoint(checkpoint, llava)
    assert ours.eos_ids.tolist() == [2]
    theirs = LlavaProcessor.from_pretrained(checkpoint)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    rows = [ours.encode(question) for question in QUESTIONS]
    pairs = [expand(row.ids, ours.image_token_id, [NUM_VISUAL_TOKENS]) for row in rows]
    ids, visual_index, valid = pad_batch(pairs, max(len(own) for own, _ in pairs))
    wanted = theirs(images=[image] * len(rows), text=[row.text for row in rows])["input_ids"]
    assert [own[mask].tolist() for own, mask in zip(ids, valid, strict=True)] == wanted
    assert (visual_index.max(axis=1) == NUM_VISUAL_TOKENS - 1).all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_whole_texts_are_taken_as_they_are(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ours, theirs = encoder(tokenizer), processor(tokenizer, None)
    image = Image.new("RGB", (30, 40), "red")
    for text in [
        "USER: <image>\nWhat? ASSISTANT:",
        "<image><image> two, no space",
        " <image> What is this <image>",
        "Compare\n<image>\nand\n<image>.",
    ]:
        n_images = text.count("<image>")
        got = ours.encode(text, ("image",) * n_images, chat_template=False)
        ids, _ = expand(got.ids, ours.image_token_id, [VISUAL] * n_images)
        wanted = theirs(images=[image] * n_images, text=text)["input_ids"][0]
        assert ids.tolist() == list(wanted)
        assert (got.text, got.question, got.question_start) == (text, text, 0)


def test_a_text_with_bos_gets_no_second_one() -> None:
    tokenizer = TOKENIZERS["llama"]
    text = "<s>USER: <image>\nWhat? ASSISTANT:"
    got = encoder(tokenizer).encode(text, chat_template=False)
    assert got.ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert got.ids.tolist().count(1) == 1


def test_question_start_needs_no_search() -> None:
    """A question that also occurs before its own place, and one that is part of the template."""
    template = TEMPLATES["parts"].replace("ASSISTANT:", "USER: What? ASSISTANT:")
    template = "What? USER {# a system line #}" + template
    ours = encoder(TOKENIZERS["byte"], template)
    for question in ["What?", "USER", ":", "A"]:
        got = ours.encode(question)
        assert got.question_start == len("What? USER USER: <image>\n")
        assert got.text[got.question_start :].startswith(question + " ")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% for m in messages %}", "[Uu]nexpected end|Unexpected end of template"),
        ("{{ raise_exception('no user may speak') }}", "no user may speak"),
        ("<image> and nothing else", "gives 1 placeholders and the question 0 times"),
        ("{{ messages[0]['content'][1]['text'] }}", "gives 0 placeholders"),
        (TEMPLATES["parts"] * 2, "gives 2 placeholders and the question 2 times"),
        (
            TEMPLATES["parts"].replace("{{ c['text']", "{{ c['text'].replace('W', 'w')"),
            "changes the question",
        ),
    ],
)
def test_unusable_templates(template: str, reason: str) -> None:
    ours = encoder(TOKENIZERS["byte"], template)
    with pytest.raises(CallError, match=reason) as caught:
        ours.encode("What?")
    assert "chat_template=False" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_some_prompts() -> None:
    refusing = (
        "{% for c in messages[0]['content'] if c['type'] == 'image' %}<image>{% endfor %}"
        "{% set text = messages[0]['content'][-1]['text'] %}"
        "{% if 'rude' in text or messages[0]['content'] | length > 2 %}"
        "{{ raise_exception('not\nhere') }}{% endif %}{{ text }}"
    )
    ours = encoder(TOKENIZERS["byte"], refusing)
    assert ours.encode("What?").text == "<image>What?"
    for question, n_images in [("rude", 1), ("What?", 2)]:
        with pytest.raises(CallError, match="cannot be used: not here; give the whole text"):
            ours.encode(question, ("image",) * n_images)


def test_parts_are_preferred_to_a_string() -> None:
    """A template that takes both ways gets the one that names the pictures."""
    both = (
        "{% set c = messages[0]['content'] %}{% if c is string %}string {{ c }}"
        "{% else %}parts <image>{{ c[-1]['text'] }}{% endif %}"
    )
    assert encoder(TOKENIZERS["byte"], both).encode("What?").text == "parts <image>What?"


def test_a_template_for_one_image_only() -> None:
    only_one = "<image>{{ messages[0]['content'][-1]['text'] }}"
    ours = encoder(TOKENIZERS["byte"], only_one)
    assert ours.encode("What?").text == "<image>What?"
    with pytest.raises(CallError, match=r"1 image placeholders .* for 2 images"):
        ours.encode("What?", ("image", "image"))


@pytest.mark.parametrize("blank", ["", " ", "\n\t "])
@pytest.mark.parametrize("chat_template", [True, False])
def test_blank_prompts(blank: str, chat_template: bool) -> None:
    with pytest.raises(CallError, match="the prompt is empty"):
        encoder(TOKENIZERS["byte"]).encode(blank, chat_template=chat_template)


def test_wrong_prompts() -> None:
    ours = encoder(TOKENIZERS["byte"])
    with pytest.raises(CallError, match=r"image placeholder <image>.*chat_template=False"):
        ours.encode("<image>\nWhat?")
    with pytest.raises(CallError, match="has 0 image placeholders"):
        ours.encode("What?", chat_template=False)
    with pytest.raises(CallError, match=r"has 2 image placeholders .* for 1 images"):
        ours.encode("<image><image>", chat_template=False)
    with pytest.raises(CallError, match="not valid Unicode"):
        ours.encode("What \ud800?")
    with pytest.raises(CallError, match="a prompt is a text, got bytes"):
        ours.encode(b"What?")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=40), st.sampled_from([*TEMPLATES, None]))
def test_any_text_is_encoded_or_refused(question: str, template: str | None) -> None:
    ours = encoder(TOKENIZERS["legacy"], TEMPLATES[template] if template else None)
    try:
        got = ours.encode(question)
    except CallError:
        return
    end = got.question_start + len(got.question)
    assert got.text[got.question_start : end] == got.question
    assert got.question.strip() == question.strip()


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(CallError, match="slow one"):
        PromptEncoder(Slow(), image_token_id=1, template=None, eos_ids=[])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_decode(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ours = encoder(tokenizer)
    answer = tokenizer("a red cup, two books", add_special_tokens=False)["input_ids"]
    ids = [*answer, tokenizer.eos_token_id]
    assert ours.decode(np.asarray(ids, np.int32)) == "a red cup, two books"
    assert ours.decode([]) == ""
    # Rows of the embedding table beyond the vocabulary, which noise may pick.
    assert ours.decode([*ids, 480]) == "a red cup, two books"


def test_expand_and_pad() -> None:
    ids, index = expand(np.array([1, 9, 5, 9, 6], np.int32), 9, [3, 2])
    assert ids.tolist() == [1, 9, 9, 9, 5, 9, 9, 6]
    assert index.tolist() == [-1, 0, 1, 2, -1, 3, 4, -1]
    none = expand(np.array([9, 5], np.int32), 9, [0])
    assert [x.tolist() for x in none] == [[5], [-1]]
    batch, visual, valid = pad_batch([(ids, index), none], 10, pad_id=7)
    assert batch.tolist() == [[1, 9, 9, 9, 5, 9, 9, 6, 7, 7], [5, *[7] * 9]]
    assert visual.tolist() == [[-1, 0, 1, 2, -1, 3, 4, -1, -1, -1], [-1] * 10]
    assert valid.sum(axis=1).tolist() == [8, 1] and valid[0, :8].all()
    assert all(x.dtype == np.int32 for x in (ids, index, batch, visual)) and valid.dtype == bool
    with pytest.raises(CallError, match="2 image placeholders for 1 images"):
        expand(np.array([9, 9]), 9, [1])
    with pytest.raises(CallError, match="0 visual tokens or more"):
        expand(np.array([9, 9]), 9, [1, -1])
    with pytest.raises(CallError, match="8 tokens does not fit the length 7"):
        pad_batch([(ids, index)], 7)


@pytest.mark.parametrize("tokens", [131_073, 300_000, 576 * 10**6])
def test_more_visual_tokens_than_can_be_chosen_from(tokens: int) -> None:
    check_visual(131_072)
    with pytest.raises(CallError, match=rf"{tokens} visual tokens before pruning, .* 131072"):
        check_visual(tokens)


def test_context() -> None:
    check_context(4000, 96, 4096)
    with pytest.raises(CallError, match=r"4001 tokens .* 96 new tokens exceed .* 4096"):
        check_context(4001, 96, 4096)
