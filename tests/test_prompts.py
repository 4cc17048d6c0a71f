"""Cleaning prompts, and the words that condition a selection: resprune_jax/prompts.py."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.prompts import (
    Noun,
    clean_prompt,
    conditioning_spans,
)
from tests.prompt_data import ROWS, SHORT, lexicon, words


def test_every_labelled_prompt_cleans_exactly() -> None:
    for row in ROWS:
        assert clean_prompt(row["prompt"]).text == row["cleaned"], row["prompt"]
    print(f"{len(ROWS)} of {len(ROWS)} labelled prompts clean exactly")
    assert len(ROWS) == 32


VARIANTS = [
    "Answer in one word.",
    "Please respond with a single number only.",
    "Reply with only yes or no.",
    "Answer the question with Yes or No.",
    "Please answer with 'yes' or 'no'.",
    "Just answer yes/no!",
    "Give a one-word answer.",
    "Please provide a short and concise response.",
    "Keep your answer brief.",
    "Your answer should be a single word or phrase.",
    "Use a single word or phrase to answer the question.",
    "Answer concisely.",
    "Answer the question directly.",
    "Please be brief.",
    "Do not explain your answer.",
    "Let's think step by step.",
    'If the given information is insufficient, answer with "unanswerable".',
    "Choose the best option from the choices below.",
    "Output only the letter.",
    "Respond with only the letter (A, B, C or D) of the correct option.",
    "Answer with the option’s letter from the given choices directly.",
    "Answer the question in at most three words.",
    "Please try to answer the question with short words or phrases if possible.",
    "ANSWER THE QUESTION USING A SINGLE WORD OR PHRASE.",
    "Answer the question\nusing a single word.",
    "请直接回答问题。",
]
QUESTION = "What breed is the dog?"


@pytest.mark.parametrize("instruction", VARIANTS)
def test_instructions_are_removed_wherever_they_stand(instruction: str) -> None:
    for prompt in (
        f"{QUESTION}\n{instruction}",
        f"{QUESTION} {instruction}",
        f"{instruction}\n{QUESTION}",
        f"{instruction} {QUESTION}",
        f"<image>\r\n{QUESTION}\r\n{instruction}\r\n",
        f"{QUESTION}\n{instruction}\n{SHORT}",
        f"{QUESTION}\n{instruction.rstrip('.!。')}",
    ):
        assert clean_prompt(prompt).text == QUESTION, prompt


LOOK_ALIKES = [
    "What is the answer written on the board?",
    "Which word or phrase is painted on the wall?",
    "How many options are on the menu below the sign?",
    "Does the letter on the envelope say yes or no?",
    "Should the man answer the phone with his left hand?",
    "Who would answer yes or no to this ballot question?",
    "Describe the short answer on the test paper.",
    "Which choice of drink is directly above the letters?",
    "Select the red car: what brand is it?",
    "Answer which of the two words is longer.",
    "Provide a short answer key for the test.",
    "Can you pick the letter below the picture of the cat?",
    "A. Lincoln is on which coin?",
    "Is the word 'image' printed on the <b>label</b>?",
    "Please answer the phone in the picture if it rings.",
    "Is the information on the label sufficient?",
    "Tell me which person could answer in one word.",
    "Describe the guard who asks everyone to answer yes or no.",
]


@pytest.mark.parametrize("prompt", LOOK_ALIKES)
def test_questions_that_look_like_instructions_stay(prompt: str) -> None:
    assert clean_prompt(prompt).text == prompt
    assert clean_prompt(prompt).masked == prompt
    assert clean_prompt(f"{prompt}\n{SHORT}").text == prompt


def test_the_ocr_line_is_a_switch() -> None:
    line = "Reference OCR token: HEINEKEN, Lager, 0.0%"
    prompt = f"What brand of beer is on the shelf?\n{line}\n{SHORT}"
    assert clean_prompt(prompt).text == "What brand of beer is on the shelf?"
    kept = clean_prompt(prompt, ocr_line="keep").text
    assert kept == f"What brand of beer is on the shelf?\n{line}"
    assert words(lexicon().extract(prompt)) == ["brand", "beer", "shelf"]
    assert {"HEINEKEN", "Lager"} <= set(words(lexicon().extract(prompt, ocr_line="keep")))
    with pytest.raises(CallError, match="ocr_line='drop' is unknown"):
        clean_prompt(prompt, ocr_line="drop")


def test_templates_leave_the_question() -> None:
    vicuna = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
    )
    for system in ("", vicuna, vicuna.rstrip() + "\n"):
        prompt = f"{system}USER: <image>\n{QUESTION}\n{SHORT} ASSISTANT:"
        assert clean_prompt(prompt).text == QUESTION, prompt
    options = "Which animal is it?\nOptions: (A) a cat (B) a dog\nAnswer:"
    assert clean_prompt(options).text == "Which animal is it?\na cat a dog"


def test_masking_keeps_offsets() -> None:
    prompt = f"<image>\r\nIs the cat red? Answer yes or no. The dog?\n{SHORT}\nA. one\nB. two"
    masked = clean_prompt(prompt).masked
    assert len(masked) == len(prompt)
    for word in ("cat", "dog", "one", "two"):
        assert masked.index(word) == prompt.index(word)
    assert masked.count("\n") == prompt.count("\n")


@pytest.mark.parametrize("prompt", [None, 3, b"What is this?", ["What is this?"]])
def test_a_prompt_is_a_string(prompt: Any) -> None:
    with pytest.raises(CallError, match="a prompt is a string, not"):
        clean_prompt(prompt)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(CallError, match="surrogate pair at character 8"):
        clean_prompt("What is \ud83d?")


# Which of these an instruction is, told from a colon or a question mark far behind it.
@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("Select the option letter" + " " * 290 + "?", None),
        ("Select the option letter from the choices: which dog is red?", "which dog is red?"),
        ("Select the correct answer from the options above." + " " * 500, ""),
        ("Choose the best option from the choices below" + " " * 500 + "\nIs it?", "Is it?"),
        ("Pick the letter of the option: A, B or C.\nWhat is red?", "What is red?"),
        ("select the answer: " * 50 + "?", None),
        ("Output the answer of the options" + "!" * 400 + "\nWhat is red?", "What is red?"),
    ],
)
def test_long_instructions_end_where_they_did(prompt: str, left: str | None) -> None:
    assert clean_prompt(prompt).text == (" ".join(prompt.split()) if left is None else left)


FRAGMENTS = st.one_of(
    st.sampled_from([row["prompt"] for row in ROWS]),
    st.sampled_from(VARIANTS + LOOK_ALIKES),
    st.sampled_from(
        ["<image>", "USER: ", " ASSISTANT:", "Answer:", "Options:", "\nA. ", "\r\n(B) ", "\n", " "]
    ),
    st.sampled_from(
        ["Reference OCR token: stop, sign\n", "é", "e\u0301", "’s", "dog", "。", "\u2028"]
    ),
    st.text(max_size=12),
)
PROMPTS = st.lists(FRAGMENTS, max_size=8).map("".join)


@settings(max_examples=300, deadline=None)
@given(prompt=PROMPTS, ocr_line=st.sampled_from(["strip", "keep"]))
def test_masks_and_offsets_hold_for_any_text(prompt: str, ocr_line: str) -> None:
    clean = clean_prompt(prompt, ocr_line=ocr_line)
    assert len(clean.masked) == len(prompt)
    for seen, char in zip(clean.masked, prompt, strict=True):
        assert seen == char or (seen == " " and char != "\n")
    assert clean.text.split() == clean.masked.split()
    end = 0
    for noun in lexicon().extract(prompt, ocr_line=ocr_line):
        assert end <= noun.start < noun.end
        assert prompt[noun.start : noun.end] == noun.text
        assert clean.masked[noun.start : noun.end] == noun.text
        end = noun.end


def test_setting_1_takes_every_word_but_the_placeholder() -> None:
    prompt = "<image>\nIs it a dog? Answer briefly."
    every = conditioning_spans(prompt, None, text="prompt")
    assert words(every) == ["Is", "it", "a", "dog?", "Answer", "briefly."]
    assert [prompt[noun.start : noun.end] for noun in every] == words(every)
    assert conditioning_spans(prompt, lexicon()) == [Noun("dog", 16, 19)]
    with pytest.raises(CallError, match="text='words' is unknown"):
        conditioning_spans(prompt, lexicon(), text="words")
    with pytest.raises(CallError, match="needs an extractor"):
        conditioning_spans(prompt, None)
