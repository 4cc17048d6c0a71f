"""What the nine benchmarks ask, in LLaVA's wording, which the paper's numbers were asked in.

A row is a mapping of a benchmark's own columns, as the Parquet files of lmms-lab have them; the
text is what stands behind the picture in the user's turn, without placeholder and chat template.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from resprune_jax.errors import shown
from resprune_jax.experiments.data.columns import RowError, whole

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."
OCR = "Reference OCR token: "
YES_OR_NO = " Please answer yes or no."
"""How MME's questions end; LLaVA puts `SHORT` in its place."""

LETTERS = "ABCDE"
"""The columns of MMBench's options."""

Row = Mapping[str, Any]


def vqav2(row: Row) -> str:
    """VQAv2: the question, and to answer in a word or phrase."""
    return f"{_text(row, 'question')}\n{SHORT}"


def gqa(row: Row) -> str:
    """GQA: the question, and to answer in a word or phrase."""
    return f"{_text(row, 'question')}\n{SHORT}"


def pope(row: Row) -> str:
    """POPE: the question, and to answer in a word or phrase."""
    return f"{_text(row, 'question').strip()}\n{SHORT}"


def mme(row: Row) -> str:
    """MME: the question with its own instruction replaced by LLaVA's."""
    return f"{_text(row, 'question').strip().replace(YES_OR_NO, '')}\n{SHORT}"


def vizwiz(row: Row) -> str:
    """VizWiz: the question, what to say where it has no answer, and to answer shortly.

    The question as it was spoken: no capital is changed.
    """
    return f"{_text(row, 'question')}\n{UNANSWERABLE}\n{SHORT}"


def textvqa(row: Row, *, ocr_line: bool = True) -> str:
    """TextVQA: the question, a line of the words that OCR read, and to answer shortly.

    Args:
        row: of the data set.
        ocr_line: with the line, as LLaVA asks; without it lmms-eval does.
    """
    line = f"\n{OCR}{', '.join(_texts(row, 'ocr_tokens'))}" if ocr_line else ""
    return f"{_text(row, 'question')}{line}\n{SHORT}"


def sqa_img(row: Row) -> str:
    """ScienceQA: the context where there is one, the question, its options, and to say a letter."""
    hint = optional(row, "hint")
    options = [f"{chr(ord('A') + n)}. {text}" for n, text in enumerate(choices_of(row))]
    context = [f"Context: {hint}"] if hint else []
    return "\n".join([*context, _text(row, "question"), *options, LETTER])


def mmbench_en(row: Row) -> str:
    """MMBench: the hint where there is one, the question, its options, and to say a letter."""
    hint = optional(row, "hint")
    options = [f"{letter}. {text}" for letter, text in options_of(row).items()]
    return "\n".join([*([hint] if hint else []), _text(row, "question"), *options, LETTER])


def mm_vet(row: Row) -> str:
    """MM-Vet: the bare question."""
    return _text(row, "question")


PROMPTS: dict[str, Callable[[Row], str]] = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "sqa-img": sqa_img,
    "textvqa": textvqa,
    "pope": pope,
    "mme": mme,
    "mmbench-en": mmbench_en,
    "mm-vet": mm_vet,
}
"""By benchmark: a row -> the text after the picture.

Raises:
    RowError: a column that is needed is missing or holds something else.
"""


def choices_of(row: Row) -> list[str]:
    """ScienceQA's options, in order."""
    return _texts(row, "choices")


def options_of(row: Row) -> dict[str, str]:
    """MMBench's options by letter, those that are there."""
    found = {letter: optional(row, letter) for letter in LETTERS}
    made = {letter: text for letter, text in found.items() if text}
    if not made:
        raise RowError("no option: MMBench has them in the columns A to D")
    return made


def optional(row: Row, column: str) -> str:
    """A text that may be missing, then "": tables write null, NaN or "nan" for it."""
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value) if isinstance(value, int | float) else value
    if not isinstance(text, str):
        raise RowError(f'"{column}" is {shown(value, 40)}: write it as text')
    whole(column, text)
    return "" if text.strip() in ("", "nan") else text


def _text(row: Row, column: str) -> str:
    text = optional(row, column)
    if not text:
        names = ", ".join(str(name) for name in list(row)[:12]) or "none"
        raise RowError(f'no text in the column "{column}" (columns here: {names})')
    return text


def _texts(row: Row, column: str) -> list[str]:
    value = row.get(column)
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise RowError(f'the column "{column}" is {shown(value, 40)}: it is a list of texts')
    return [whole(column, each) for each in value]
