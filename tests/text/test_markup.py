"""Chat markup is never a noun, whoever wrote it: resprune_jax/markup.py."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.prompts import clean_prompt, conditioning_spans
from resprune_jax.text.markup import mask_markup
from tests.prompt_data import ROWS, lexicon, words

LLAMA3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
FOREIGN_SYSTEM = "Speak like a pirate captain on a ship. Use the word treasure in each sentence."
# What the chat templates of public checkpoints make of a question: everything around {}.
TEMPLATES = {
    "vicuna": "USER: <image>\n{} ASSISTANT:",
    "vicuna, system": f"{VICUNA_SYSTEM} USER: <image>\n{{}} ASSISTANT:",
    "vicuna, another system": f"{FOREIGN_SYSTEM} USER: <image>\n{{}} ASSISTANT:",
    "vicuna, system on a line": f"{FOREIGN_SYSTEM}\nUSER: <image>\n{{}}\nASSISTANT: ",
    "vicuna, BOS": "<s>USER: <image>\n{} ASSISTANT:",
    "vicuna, a turn before": "USER: <image>\nSo? ASSISTANT: Yes.</s>USER: {} ASSISTANT:",
    "mistral": "[INST] <image>\n{} [/INST]",
    "mistral, BOS": "<s>[INST] <image>\n{} [/INST]",
    "mistral, a turn before": "<s>[INST] <image>\nSo? [/INST] Yes.</s>[INST] {} [/INST]",
    "llama 2, system": f"<s>[INST] <<SYS>>\n{FOREIGN_SYSTEM}\n<</SYS>>\n\n<image>\n{{}} [/INST]",
    "llama 3": "<|start_header_id|>user<|end_header_id|>\n\n<image>\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama 3, system": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    f"{LLAMA3_SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\n{{}}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "yi": "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\n{}"
    "<|im_end|><|im_start|>assistant\n",
    "qwen 1.5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<image>\n{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen 2 vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen 2 vl, numbered": "<|im_start|>user\nPicture 1: <|vision_start|><|image_pad|>"
    "<|vision_end|>Picture 2: <|vision_start|><|image_pad|><|vision_end|>Video 1: "
    "<|vision_start|><|video_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen, another system": f"<|im_start|>system\n{FOREIGN_SYSTEM}\nNo < or <b> matters."
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "onevision": "<|im_start|>user <image>\n{}<|im_end|><|im_start|>assistant\n",
    "bare system": "You are a helpful assistant.\n{}",
    "bare system of qwen": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n"
    "{}",
    "mistral, bare system": f"[INST] {LLAMA3_SYSTEM}\n\n<image>\n{{}} [/INST]",
    "polite system": "You are a helpful, respectful and honest AI assistant.\n\n<image>\n{}",
    "original tokens of llava": "USER: <im_start><im_patch><im_end>\n{} ASSISTANT:",
}
QUESTIONS = [
    "What is on the table?",
    "Is the dog near the red bus?\nAnswer the question using a single word or phrase.",
    "Which animal is it?\nA. a cat\nB. a horse\nAnswer with the option's letter directly.",
    # They talk about what markup is made of.
    "What does the user of the phone see in the picture?",
    "Is the shop assistant helping a user at the system's counter?",
    "How many users or assistants are in the office?",
    "You see a chat between a user and a robot: which assistant is left of the picture?",
]


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_nouns_of_a_whole_prompt_are_those_of_its_question(name: str, question: str) -> None:
    prompt = TEMPLATES[name].format(question)
    start = prompt.index(question)
    nouns = lexicon().extract(question)
    assert nouns
    # An earlier turn is part of the conversation: its words stay.
    inside = [noun for noun in lexicon().extract(prompt) if noun.start >= start]
    assert [noun.span() for noun in inside] == [noun.span(start) for noun in nouns]
    if "before" not in name:
        assert words(lexicon().extract(prompt)) == words(nouns)
        every = conditioning_spans(prompt, None, text="prompt")
        assert words(every) == words(conditioning_spans(question, None, text="prompt"))
        assert clean_prompt(prompt).text == clean_prompt(question).text


@pytest.mark.parametrize(
    ("question", "nouns"),
    [
        ("Which user is the assistant of the man?", ["user", "assistant", "man"]),
        ("Does the badge say USER: or ADMIN:?", ["badge", "USER", "ADMIN"]),
        ("What stands behind USER: and ASSISTANT: in the form?", ["USER", "ASSISTANT", "form"]),
        ("Is there a system in the picture? The user is a robot.", None),
        ("Is the picture 1 or 2: which one shows a video?", None),
        ("Who is the assistant on the left? Is she the user of the laptop?", None),
        ("You are a shop assistant. What is on the shelf?", ["shop", "assistant", "shelf"]),
        ("Is INST or SYS written on the button <b>or</b> in a <image of a man?", None),
        ("In which picture 3: is a dog next to |im_start|?", None),
    ],
)
def test_questions_about_users_and_assistants_keep_their_nouns(
    question: str, nouns: list[str] | None
) -> None:
    assert mask_markup(question) == question
    assert clean_prompt(question).text == question
    assert nouns is None or words(lexicon().extract(question)) == nouns


@pytest.mark.parametrize(
    "prompt",
    [
        # Turns that never end are not taken for system prompts: the question may be in them.
        "<|im_start|>system\nWhat is on the table?",
        "<|start_header_id|>system<|end_header_id|>\n\nWhat is on the table?",
        "<<SYS>>\nWhat is on the table?",
        "<|im_end|>\nWhat is on the table?<|im_start|>",
        "<|im_start|><|im_start|>user\nWhat is on the table?<|im_end|><|im_end|>",
    ],
)
def test_broken_markup_leaves_the_question(prompt: str) -> None:
    assert words(lexicon().extract(prompt)) == ["table"]


def test_labelled_prompts_hold_no_markup() -> None:
    for row in ROWS:
        masked = mask_markup(row["prompt"])
        assert masked.split() == row["prompt"].replace("<image>", " ").split(), row["prompt"]


PARTS = st.sampled_from(
    [
        *("<|im_start|>", "<|im_start|>system\n", "user\n", "<|im_end|>", "[INST]", "[/INST]"),
        *("<<SYS>>", "<</SYS>>", "<|start_header_id|>", "system", "<|end_header_id|>", "USER:"),
        *("<|eot_id|>", " ASSISTANT:", "dog. ", "the cat? ", "\n", " ", "<", "|", ">", "</s>"),
        *("Picture 1: ", "You are a helpful assistant.", "<|vision_start|>", "<image>"),
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PARTS, max_size=12).map("".join))
def test_masking_keeps_lines_and_offsets_and_ends(text: str) -> None:
    masked = mask_markup(text)
    assert len(masked) == len(text)
    for seen, char in zip(masked, text, strict=True):
        assert seen == char or (seen == " " and char != "\n")
    assert not any(token in masked for token in ("<|im_start|>", "[INST]", "<|eot_id|>", "</s>"))
