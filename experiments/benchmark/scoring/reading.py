"""What an answer says, by the rule of the benchmark's own scorer: yes or no, or a letter."""

import re
from collections.abc import Mapping

LETTERS = "ABCDE"

OTHER = "other"
"""MME: neither yes nor no, which is wrong."""


def mme_word(answer: str) -> str:
    """Yes, no or `OTHER` as MME's script reads it: what the first four characters hold.

    In lower case; "yes" counts before "no", and "not" and "know" hold a "no".
    """
    head = answer.lower()[:4]
    return "yes" if "yes" in head else "no" if "no" in head else OTHER


_PHRASE = re.compile("The answer is ([A-Z]).")


def sqa_letter(answer: str) -> str:
    """The option of ScienceQA that LLaVA's script reads; "" where it reads none.

    A capital letter from A to E alone, or with a period and a blank at the beginning ("B. a dog");
    else of the phrase "The answer is B", with any sign behind the letter, if it stands there once.
    Neither "b" nor "(B)" is one, and "The answer is Both" is B.
    """
    if answer in [*LETTERS]:
        return answer
    if answer[:1] in [*LETTERS] and answer[1:3] == ". ":
        return answer[0]
    named = _PHRASE.findall(answer)
    return named[0] if len(named) == 1 else ""


_SIGNS = ".()[],:;!*#{}"
"""What may stand around a letter of MMBench: blanks to its matching."""

_LAST = 4
"""A bare letter counts among so many last words: earlier in a sentence it may be an article."""

_REFUSALS = (
    "can't help with images of people",
    "can't process this file",
    "but without the image provided",
    "Cannot determine the answer",
)
"""Answers with one of these name nothing, whatever letter they hold."""

_ANSWER_IS = re.compile(r"answer\s+is\s+\**([a-d])", re.IGNORECASE)


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str:
    """The option that an answer of MMBench names; "" where a judge would have to decide.

    VLMEvalKit's matching, before it asks a language model. The only letter that is a word, signs
    around it aside; else the letter behind "answer is"; else the only option whose text is part of
    the answer, unless that is more than twice as long as all of them.

    Args:
        answer: the model's.
        options: by letter, those that there are.
    """
    if any(each in answer for each in _REFUSALS):
        return ""
    words = answer.translate(str.maketrans(_SIGNS, " " * len(_SIGNS))).split()
    bare = [letter for letter in options if letter in words]
    if len(bare) == 1 and len(words) - words.index(bare[0]) <= _LAST:
        return bare[0]
    if not bare and "Z" in words:  # how a judge says none of them
        return ""
    if (named := _ANSWER_IS.search(answer)) and named[1].upper() in options:
        return named[1].upper()
    if len(answer) > 2 * sum(map(len, options.values())):
        return ""
    inside = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return inside[0] if len(inside) == 1 else ""
