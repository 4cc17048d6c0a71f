"""What an answer says, by the rule of the benchmark's own scorer: yes or no, or a letter."""

import re
from collections.abc import Mapping

LETTERS = "ABCDE"

OTHER = "other"
"""MME: neither yes nor no, which is wrong."""


def pope_word(answer: str) -> str:
    """ "no" where the first sentence has the word no, No or not, else "yes", by POPE's script.

    Up to the first period, without commas, words between blanks. An empty answer says yes.
    """
    words = answer.split(".")[0].replace(",", "").split()
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mme_word(answer: str) -> str:
    """ "yes", "no" or `OTHER`, by MME's script: what stands in the first four characters.

    Lower case, without periods and blanks around; a single y or n counts.
    """
    said = answer.lower().strip().replace(".", "")
    if len(said) == 1:
        return {"y": "yes", "n": "no"}.get(said, OTHER)
    head = said[:4]
    return "yes" if "yes" in head else "no" if "no" in head else OTHER


_SENTENCE = re.compile(r"The answer is ([A-Z])(?:\.|\s*$)")


def sqa_letter(answer: str) -> str:
    """The option of ScienceQA that an answer names, a capital letter; "" where it names none.

    What LLaVA's script or lmms-eval's reads: a letter alone, a capital one with a period at the
    beginning ("B. a dog"), or the sentence "The answer is B." once.
    """
    said = answer.strip()
    if re.fullmatch("[A-Za-z]", said):
        return said.upper()
    if re.match(r"[A-Z]\.", said):
        return said[0]
    named = _SENTENCE.findall(said)
    return named[0] if len(named) == 1 else ""


# How a letter may be written as a word of its own, beside bare: before and behind it.
_FRAMES = (
    ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."),
    (":", ""), (":", ","), (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip

_LONG = 3
"""In an answer of more words a bare "A" may be the article."""


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str:
    """The option that an answer of MMBench names; "" where a judge would have to decide.

    MMBench's own matching, before it asks a language model: one letter that stands as a word of
    its own, bare or in one of the usual frames, in their order; else the only option whose text
    is part of the answer.

    Args:
        answer: the model's.
        options: by letter, those that there are.
    """
    words = set(answer.split())
    bare = [letter for letter in LETTERS if letter in words]
    if len(bare) == 1 and not ("A" in words and len(answer.split()) > _LONG):
        return bare[0]
    for before, behind in _FRAMES:
        framed = [letter for letter in LETTERS if f"{before}{letter}{behind}" in words]
        if len(framed) == 1:
            return framed[0]
    said = answer.lower()
    named = [letter for letter, text in options.items() if text.lower() in said]
    return named[0] if len(named) == 1 else ""
