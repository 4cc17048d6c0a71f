"""VQA accuracy, as the VQA challenge publishes it and TextVQA and VizWiz take it over.

An answer is right as far as annotators gave it: of ten, each is left out in turn, and the answer
scores min(matches among the other nine / 3, 1); the mean counts. Before, both sides are put into
one form (visualqa.org/evaluation.html): lower case, no articles, number words as digits,
punctuation taken out, missing apostrophes of contractions put in.

Both sides are always processed, as EvalAI and TextVQA do it. The challenge's first script left them
as they were where all ten annotators agree, so that "Yes." missed "yes" there.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

FEWEST = 4
"""Answers below which even the best one cannot score 1: three others must agree."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # not the apostrophe, the colon, the period
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {name: str(value) for value, name in enumerate(_DIGITS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))


def _contractions() -> dict[str, str]:
    """The challenge's table: contractions by what is written of them, an apostrophe missing.

    Made of the words that take each ending. It is not a rule of English: "shes", "im" and "thatll"
    stay, as in the table (its "Im" has a capital, which no word here has any more).
    """
    words = {
        "n't": "ai are ca could did does do had has have is might must need ought sha should was"
               " were wo would",
        "'ve": "could might must not should they we what where who would you",
        "'d": "he how it someone something there they where who you",
        "'ll": "how it somebody someone something they what who why you",
        "'s": "he how somebody someone that there what when where who why",
        "'re": "there they what why you",
        "'am": "ma",
        "'clock": "o",
        "'all": "y",
    }  # fmt: skip
    pairs = [(word, end) for end, own in words.items() for word in own.split()]
    made = {(word + end).replace("'", ""): word + end for word, end in pairs}
    # Of two apostrophes one may be there already: "couldn'tve", "couldnt've".
    twice = {
        "n't've": "could had might should would",
        "'d've": "he it she somebody someone something there they we who you",
        "'ll": "y'all",
    }
    for end, own in twice.items():
        for word in own.split():
            marks = (word + end).split("'")
            for kept in range(1, len(marks)):
                head, tail = "".join(marks[:kept]), "".join(marks[kept:])
                made[f"{head}'{tail}"] = word + end
    # "y'all'd've" has three; one of them may be missing too.
    made |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
    made |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return made | {"twas": "'twas", "somebody'd": "somebodyd"}  # the last as the table has it


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=2**14)
def processed(text: str, *, tokenised: bool = True) -> str:
    """A text in the form in which answers are compared.

    Args:
        text: an annotator's answer or a model's.
        tokenised: as EvalAI and TextVQA do it. False is the challenge's own script, which neither
            takes commas and question marks out first nor parts words from 's; a comma between
            digits lets it delete every mark.

    Returns:
        Lower case words with a blank between them, without articles and punctuation. Commas and
        question marks are deleted, and 's is a word of its own; another mark is deleted where it
        stands beside a blank anywhere in the text, and elsewhere becomes a blank. A period stays
        before a digit alone. Apostrophes and colons stay.
    """
    text = re.sub(r"[\n\t]", " ", text).lower().strip()
    if tokenised:  # commas go first, whatever stands beside them ("1,000")
        text = text.replace(",", "").replace("?", "").replace("'s", " 's").strip()
    thousands = re.search(r"(?<=\d),+(?=\d)", text) is not None
    out = text
    for mark in _MARKS:
        beside = thousands or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside else " ")
    # The challenge's script has a flag where the count belongs: no more than 32.
    out = re.sub(r"\.(?!\d)", "", out, count=32)
    words = [_NUMBERS.get(word, word) for word in out.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def accuracy(answer: str, answers: Sequence[str], *, tokenised: bool = True) -> float:
    """VQA accuracy of an answer.

    Args:
        answer: the model's.
        answers: one of each annotator, ten as a rule.
        tokenised: how both sides are processed, see `processed`.

    Returns:
        The mean over annotators of min(others that gave the answer / 3, 1).
    """
    forms = Counter(processed(text, tokenised=tokenised) for text in answers)
    given = forms[processed(answer, tokenised=tokenised)]
    left_out = given * min((given - 1) / 3, 1.0) if given else 0.0
    return (left_out + (len(answers) - given) * min(given / 3, 1.0)) / len(answers)
