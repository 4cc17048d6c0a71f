"""Metrics: how far an answer is one of those that are accepted, from 0 to 1.

exact     the same text, without regard to case, punctuation, articles and blanks (`plain`)
contains  an accepted text stands in the answer, word by word, in the same form
vqa       VQA accuracy over ten annotators (VQAv2, TextVQA, VizWiz; vqa.py)
gqa       the same text, lower case and without periods at the end (GQA as LLaVA hands it in)
yesno     the first "yes" or "no" of the first sentence; an answer with neither is wrong
pope      POPE's rule: an answer whose first sentence has no "no" or "not" says yes
choice    the letter of an option (ScienceQA, MMBench): "B", "(b)", "B. a dog", "The answer is B."
pocket    the judge of the pocket model's test set
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from resprune_jax.errors import one_of
from resprune_jax.experiments.data import vqa
from resprune_jax.experiments.pocket.judge import is_right

Metric = Callable[[str, Sequence[str]], float]
"""(the model's answer, accepted answers) -> score in [0, 1]."""

_ARTICLES = frozenset(("a", "an", "the"))


@lru_cache(maxsize=2**14)
def plain(text: str) -> str:
    """A text in the form in which `exact` compares.

    Unicode's compatibility form (NFKC), case folded. Apostrophes and commas between digits go, a
    point between digits and a minus before one stay, every other mark of punctuation is a blank.
    The words "a", "an" and "the" go. Where nothing is left ("A", "?"), step by step less is taken
    away: an option's letter stays one.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().strip()
    cut = re.sub(r"['’]|(?<=\d),(?=\d)", "", folded)
    kept = []
    for i, char in enumerate(cut):
        before, after = cut[i - 1 : i], cut[i + 1 : i + 2]
        number = after.isdecimal() and (
            (char == "." and before.isdecimal()) or (char in "-−" and before in ("", " "))
        )
        blank = unicodedata.category(char).startswith("P") and not number
        kept.append(" " if blank else "-" if char == "−" else char)
    words = "".join(kept).split()
    bare = [word for word in words if word not in _ARTICLES]
    return " ".join(bare or words) or folded


def exact(answer: str, answers: Sequence[str]) -> float:
    """1 where `plain` makes the answer the same as one that is accepted."""
    said = plain(answer)
    return float(any(said == plain(each) for each in answers))


def contains(answer: str, answers: Sequence[str]) -> float:
    """1 where the words of an accepted answer follow one another in the answer, both `plain`."""
    said = f" {plain(answer)} "
    return float(any(f" {plain(each)} " in said for each in answers if plain(each)))


def gqa(answer: str, answers: Sequence[str]) -> float:
    """1 where the texts are one in lower case, blanks around them and periods at the end aside."""
    said = _lower(answer)
    return float(any(said == _lower(each) for each in answers))


def _lower(text: str) -> str:
    return text.strip().rstrip(".").strip().lower()


def _sentence(text: str) -> list[str]:
    """The words of the first sentence that has any, in lower case."""
    for part in re.split(r"[.!?\n]", text.lower().replace("’", "'")):
        if words := re.findall(r"[^\W_]+(?:'[^\W_]+)*", part):
            return words
    return []


def _says_no(word: str) -> bool:
    return word in ("no", "not") or word.endswith("n't")


def yesno(answer: str, answers: Sequence[str]) -> float:
    """1 where the first sentence says what is accepted: its first yes or no, else a negation."""
    words = _sentence(answer)
    said = next((word for word in words if word in ("yes", "no")), None)
    if said is None and any(map(_says_no, words)):
        said = "no"
    return float(said is not None and any(said == _lower(each) for each in answers))


def pope_word(answer: str) -> str:
    """Yes or no as POPE's script reads it: "no" where the first sentence has no, No or not.

    Up to the first period, without commas; words are what stands between blanks, so a line break
    is part of one. An empty answer says yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def pope(answer: str, answers: Sequence[str]) -> float:
    """1 where `pope_word` is what is accepted."""
    said = pope_word(answer)
    return float(any(said == _lower(each) for each in answers))


_ALONE = re.compile(r"[(\[]?([A-Za-z])[)\]]?[.:]?")
_FIRST = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])[.:)\]])(?:[.:]?\s|$)")
_LETTER = r"(?:[(\[]([A-Za-z])[)\]]|([A-Z])(?=[.,;:!]|\s*$))"
_NAMED = re.compile(
    rf"\b(?i:answer)(?:\s+(?i:is))?:?\s+(?:(?i:option|choice)\s+)?{_LETTER}"
    r"|\b(?i:option|choice)\s+[(\[]?([A-Z])\b",
    re.MULTILINE,
)


def letter_of(text: str) -> str | None:
    """The option that an answer names, as a capital letter; None where it names none or several.

    In this order: the answer is a letter, in brackets or with a period or not; it begins with one
    ("B. a dog", "(b) a dog"; "A dog" is no option); it says "answer is B.", "option B" and the
    like, always the same letter.
    """
    text = text.strip()
    if found := _ALONE.fullmatch(text) or _FIRST.match(text):
        return next(filter(None, found.groups())).upper()
    named = {next(filter(None, found.groups())).upper() for found in _NAMED.finditer(text)}
    return named.pop() if len(named) == 1 else None


def choice(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer names an accepted letter, or is an accepted text (as in `exact`)."""
    letters = {each.upper() for each in answers if _is_letter(each)}
    if letter_of(answer) in letters:
        return 1.0
    return exact(answer, [each for each in answers if not _is_letter(each)])


def _is_letter(text: str) -> bool:
    return re.fullmatch("[A-Za-z]", text) is not None


def pocket(answer: str, answers: Sequence[str]) -> float:
    """1 where the pocket model's judge calls it right."""
    return float(any(is_right(answer, each) for each in answers))


METRICS: dict[str, Metric] = {
    "exact": exact,
    "contains": contains,
    "vqa": vqa.accuracy,
    "gqa": gqa,
    "yesno": yesno,
    "pope": pope,
    "choice": choice,
    "pocket": pocket,
}


def problem(metric: str, answers: Sequence[str]) -> str | None:
    """Why a metric cannot score by these accepted answers, None where it can.

    Args:
        metric: a name of `METRICS`.
        answers: at least one.
    """
    if metric in ("yesno", "pope") and {_lower(each) for each in answers} - {"yes", "no"}:
        return "takes the answers yes and no alone: use another metric"
    if metric == "choice" and not any(map(_is_letter, answers)):
        return "needs an option's letter among the answers, A to Z: write it, or use exact"
    if metric == "vqa" and len(answers) < vqa.FEWEST:
        return (
            f"counts annotators, of which there are {len(answers)}: give the answers of all ten "
            f"(at least {vqa.FEWEST}), or use exact"
        )
    return None


def score(metric: str, answer: str, answers: Sequence[str]) -> float:
    """How far an answer is right.

    Args:
        metric: a name of `METRICS`.
        answer: the model's.
        answers: those that are accepted.

    Returns:
        From 0 to 1.

    Raises:
        CallError: an unknown metric.
    """
    one_of("metric", metric, tuple(METRICS))
    return METRICS[metric](answer, answers)
