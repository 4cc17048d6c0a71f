"""Conversations: the text is that of transformers' template, and the last question is the one."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaProcessor

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM, Conversation, Turn
from resprune_jax.models.prompts.chat import PromptEncoder
from tests.models.prompts.chats import TEMPLATES, TOKENIZERS, config, save

CONVERSATIONS = [
    Conversation("What is on it?", (Turn("user", "A table?", 1), Turn("assistant", "Yes."))),
    Conversation("How many books?", (Turn("system", "Answer with one word."),)),
    Conversation(
        "And in this one?",
        (Turn("user", "A cup?", 1), Turn("assistant", "one"), Turn("user", "Red?"),
         Turn("assistant", "yes")),
    ),
]  # fmt: skip


def messages(talk: Conversation, images: int, parts: bool) -> list[dict[str, Any]]:
    own = sum(turn.images for turn in talk.before)
    turns = [*talk.before, Turn("user", talk.question, images - own)]
    made = []
    for turn in turns:
        content: Any = [{"type": "image"}] * turn.images + [{"type": "text", "text": turn.text}]
        if not parts:
            content = "<image>\n" * turn.images + turn.text
        made.append({"role": turn.role, "content": content})
    return made


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_the_text_is_that_of_transformers(tmp_path: Path, template: str, number: int) -> None:
    talk = CONVERSATIONS[number]
    tokenizer = next(iter(TOKENIZERS.values()))
    folder = save(tmp_path, tokenizer, TEMPLATES[template])
    ours = PromptEncoder.from_checkpoint(folder, config(tokenizer))
    theirs = LlavaProcessor.from_pretrained(folder)
    images = sum(turn.images for turn in talk.before) + 1
    chat = messages(talk, images, template != "string")
    wanted = theirs.apply_chat_template(chat, add_generation_prompt=True)
    made = ours.encode(talk, ("image",) * images)
    assert made.text == wanted
    assert made.question.strip() == talk.question
    end = made.question_start + len(made.question)
    assert made.text[made.question_start : end] == made.question


def test_without_a_template_vicunas_turns(lvlm: LVLM) -> None:
    encoder = PromptEncoder(
        lvlm.encoder.tokenizer, image_token_id=lvlm.encoder.image_token_id, template=None,
        eos_ids=[2],
    )  # fmt: skip
    talk = Conversation(
        "And red?",
        (Turn("system", "Be brief."), Turn("user", "A cup?", 1), Turn("assistant", "no")),
    )
    image = encoder.placeholders["image"][1]
    assert encoder.encode(talk).text == (
        f"Be brief. USER: {image}\nA cup? ASSISTANT: no</s>USER: And red? ASSISTANT:"
    )


def test_a_bare_conversation_is_its_question(lvlm: LVLM) -> None:
    asked = "How many people are in the picture?"
    plain, same = (lvlm.encoder.encode(one) for one in (asked, Conversation(asked)))
    assert (plain.text, plain.ids.tolist()) == (same.text, same.ids.tolist())


@pytest.mark.deep
def test_the_last_question_guides_the_choice(lvlm: LVLM, photographs: list[Any]) -> None:
    asked = "How many people are in the picture?"
    plain = lvlm.generate(photographs[0], asked, keep=4, max_new_tokens=4)
    same = lvlm.generate(photographs[0], Conversation(asked), keep=4, max_new_tokens=4)
    assert (plain.prompts, plain.nouns) == (same.prompts, same.nouns)
    talk = Conversation(asked, (Turn("user", "A dog?", 1), Turn("assistant", "yes")))
    both = lvlm.generate(photographs[:2], [asked, talk], keep=4, max_new_tokens=4)
    assert both.nouns[0] == both.nouns[1] == plain.nouns[0]
    assert "dog" in both.prompts[1].lower() and both.errors == [None, None]


def test_what_is_no_conversation(lvlm: LVLM) -> None:
    encode = lvlm.encoder.encode
    image = lvlm.encoder.placeholders["image"][1]
    with pytest.raises(CallError, match="role"):
        Conversation("a?", (Turn("judge", "no"),))  # type: ignore[arg-type]
    with pytest.raises(CallError, match="only the user"):
        Conversation("a?", (Turn("assistant", "here", 1),))
    with pytest.raises(CallError, match="message is a text"):
        Conversation("a?", (Turn("user", 7),))  # type: ignore[arg-type]
    with pytest.raises(CallError, match="messages show 2 images, and 1"):
        encode(Conversation("a?", (Turn("user", "b?", 2), Turn("assistant", "c"))))
    with pytest.raises(CallError, match="placeholder"):
        encode(Conversation("a?", (Turn("user", f"b {image}?", 1),)))
    with pytest.raises(CallError, match="Unicode"):
        encode(Conversation("a?", (Turn("user", "\ud800", 1),)))
    with pytest.raises(CallError, match="empty"):
        encode(Conversation(" "))
    with pytest.raises(CallError, match="needs a chat template"):
        encode(Conversation("a?", (Turn("user", "b?"),)), chat_template=False)
