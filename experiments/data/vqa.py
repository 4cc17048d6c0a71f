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
    """Contractions by what is left of them without an apostrophe.

    Made by rule: a verb with n't, a word with 've, 'd, 'll or 's, and both at once. Forms that are
    words of their own (well, hell, shell, ill, its, lets, wed, shed, id, were) stay as they are.
    The challenge's list is near this one: dialect ('ow's) is left out here, "shes" and "im" there.
    """
    denied = ["ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is", "might",
              "must", "need", "ought", "sha", "should", "was", "were", "wo", "would"]  # fmt: skip
    people = ["i", "you", "he", "she", "it", "we", "they", "that", "there", "who", "what", "how",
              "where", "when", "why", "somebody", "someone", "something", "everyone"]  # fmt: skip
    able = ["could", "might", "must", "should", "would"]
    pairs = [(verb, "n't") for verb in denied]
    pairs += [(f"{verb}n't", "'ve") for verb in [*able, "had"]]
    pairs += [(word, "'ve") for word in [*able, "i", "you", "we", "they", "who", "what", "there"]]
    pairs += [(word, end) for word in people for end in ("'d", "'ll", "'d've")]
    pairs += [(word, "'s") for word in people if word not in ("i", "you", "we", "they")]
    pairs += [("i", "'m"), ("you", "'re"), ("they", "'re"), ("what", "'re")]
    pairs += [("there", "'re"), ("why", "'re"), ("where", "'ve"), ("y'all", "'ll")]
    pairs += [("ma", "'am"), ("o", "'clock"), ("y", "'all")]
    words = {"well", "hell", "shell", "ill", "its", "wed", "shed", "id"}
    whole = [stem + end for stem, end in pairs]
    made = {text.replace("'", ""): text for text in whole if text.replace("'", "") not in words}
    # One apostrophe of two may be there already: "couldn'tve", "couldnt've".
    for text in whole:
        first, *others = text.split("'")
        if len(others) == 2:
            made[f"{first}'{others[0]}{others[1]}"] = made[f"{first}{others[0]}'{others[1]}"] = text
    return made


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
    out = re.sub(r"\.(?!\d)", "", out)
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
