"""Snapshots of what the nine benchmarks ask: LLaVA's wording, sign for sign."""

import math

import pytest

from resprune_jax.experiments.benchmark.prompts import PROMPTS, textvqa
from resprune_jax.experiments.data.columns import RowError
from tests.experiments.benchmark.made import ROWS

SNAPSHOTS = {
    ("vqav2", 0): "Is the kite up?\nAnswer the question using a single word or phrase.",
    ("gqa", 1): "Which colour is it?\nAnswer the question using a single word or phrase.",
    ("vizwiz", 0): (
        "What does the NASA cup say?\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    ),
    ("vizwiz", 1): (
        "is it on\n"
        "When the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    ),
    ("sqa-img", 0): (
        "Context: Look at the cubes.\n"
        "Which is harder?\n"
        "A. iron\n"
        "B. wool\n"
        "Answer with the option's letter from the given choices directly."
    ),
    ("sqa-img", 1): (
        "What is farthest north?\n"
        "A. Maine\n"
        "B. Iowa\n"
        "C. Utah\n"
        "Answer with the option's letter from the given choices directly."
    ),
    ("textvqa", 0): (
        "what is the brand of this DAKOTA camera?\n"
        "Reference OCR token: DAKOTA, DIGITAL\n"
        "Answer the question using a single word or phrase."
    ),
    ("textvqa", 1): (
        "what does it say?\n"
        "Reference OCR token: \n"
        "Answer the question using a single word or phrase."
    ),
    ("pope", 0): (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    ),
    ("mme", 0): "Is this so 0?\nAnswer the question using a single word or phrase.",
    ("mmbench-en", 0): (
        "Who is it?\n"
        "A. a cook\n"
        "B. a clerk\n"
        "C. a guest\n"
        "Answer with the option's letter from the given choices directly."
    ),
    ("mmbench-en", 3): (
        "They wear hats.\n"
        "Who is it?\n"
        "A. one\n"
        "B. two\n"
        "Answer with the option's letter from the given choices directly."
    ),
    ("mm-vet", 1): "What does it say?\nName all lines.",
}


@pytest.mark.parametrize(("name", "number"), SNAPSHOTS)
def test_a_prompt_is_the_one_that_the_paper_asked(name: str, number: int) -> None:
    assert PROMPTS[name](ROWS[name][number]) == SNAPSHOTS[name, number]


def test_every_benchmark_has_a_snapshot() -> None:
    assert {name for name, _ in SNAPSHOTS} == PROMPTS.keys() == ROWS.keys()


def test_without_the_ocr_line_the_prompt_has_two_lines() -> None:
    asked = textvqa(ROWS["textvqa"][0], ocr_line=False)
    assert asked == (
        "what is the brand of this DAKOTA camera?\n"
        "Answer the question using a single word or phrase."
    )
    row = {"question": "what is it?"}  # test files without OCR words
    assert textvqa(row, ocr_line=False).startswith("what is it?\nAnswer")


@pytest.mark.parametrize("hint", [None, "", "nan", math.nan, " "])
def test_what_tables_write_for_nothing_is_no_hint(hint: object) -> None:
    for name in ("sqa-img", "mmbench-en"):
        row = {**ROWS[name][0], "hint": hint}
        assert PROMPTS[name](row).startswith(str(row["question"]))


def test_only_options_that_are_there_are_asked() -> None:
    row = {**ROWS["mmbench-en"][0], "C": math.nan, "D": "None", "E": "nan"}
    assert "\nB. a clerk\nD. None\nAnswer" in PROMPTS["mmbench-en"](row)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("pope", {"question": None}, 'no text in the column "question"'),
        ("gqa", {"question": 3.5j}, '"question" is 3.5j'),
        ("textvqa", {"ocr_tokens": "DAKOTA"}, "list of texts"),
        ("textvqa", {"ocr_tokens": None}, "list of texts"),
        ("sqa-img", {"choices": [1, 2]}, "list of texts"),
        ("mmbench-en", dict.fromkeys("ABC"), "no option"),
    ],
)
def test_a_row_that_cannot_be_asked_says_why(
    name: str, change: dict[str, object], said: str
) -> None:
    with pytest.raises(RowError, match=said):
        PROMPTS[name]({**ROWS[name][0], **change})
