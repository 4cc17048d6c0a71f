"""One answer against one row of a benchmark."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from resprune_jax.errors import one_of, shown
from resprune_jax.experiments.benchmark.prompts import (
    PROMPTS,
    choices_of,
    optional,
    options_of,
)
from resprune_jax.experiments.benchmark.scoring import reading
from resprune_jax.experiments.data import vqa
from resprune_jax.experiments.data.columns import RowError, whole
from resprune_jax.experiments.data.metrics import gqa as same_word
from resprune_jax.experiments.data.metrics import pope_word

Row = Mapping[str, Any]

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = {"perception": PERCEPTION, "cognition": COGNITION}
"""MME's fourteen."""

CIRCLE = 10**6
"""MMBench: rows whose indices are alike but for multiples of it ask one question, options moved."""


@dataclass(frozen=True)
class Verdict:
    """What a scorer makes of one answer.

    Attributes:
        score: from 0 to 1; None where the row has no accepted answer (a test split, MM-Vet).
        said: what was read out of the answer, "" for nothing.
        truth: what is accepted, in the same form.
        category: what figures are split by; "" for nothing.
        above: a coarser category, of MMBench; "" for none.
        group: what must be right together: MME's picture, MMBench's question; "" for none.
        size: how many rows the group should have, 0 for none.
        first: whether it is the row that its group is counted by.
        failed: there was no answer; it counts as wrong.
    """

    score: float | None
    said: str
    truth: str
    category: str = ""
    above: str = ""
    group: str = ""
    size: int = 0
    first: bool = True
    failed: bool = False


def judge(name: str, row: Row, answer: str | None) -> Verdict:
    """Judge an answer.

    Args:
        name: of the benchmark, a key of `PROMPTS`.
        row: with the benchmark's own columns.
        answer: the model's, blanks around it aside; None where it gave none, which is wrong
            whatever the row accepts.

    Raises:
        CallError: an unknown benchmark.
        RowError: a column that is needed is missing or holds something else.
    """
    one_of("benchmark", name, tuple(PROMPTS))
    # LLaVA's generators strip what the model says, before any scorer sees it.
    return _JUDGES[name](row, None if answer is None else answer.strip())


def truth_of(name: str, row: Row) -> tuple[str, ...]:
    """The accepted answers of a row, as texts; () where it has none.

    Raises:
        CallError: an unknown benchmark.
        RowError: a column that is needed is missing or holds something else.
    """
    one_of("benchmark", name, tuple(PROMPTS))
    if name in ("vqav2", "vizwiz", "textvqa"):
        return _annotated(row)
    found = judge(name, row, None).truth
    return (found,) if found else ()


def _annotated(row: Row) -> tuple[str, ...]:
    """The answers of annotators: texts, or VQAv2's mappings; () for none."""
    value = row.get("answers")
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RowError(f'"answers" is {shown(value, 40)}: it is a list of annotators\' answers')
    texts = []
    for each in value:
        text = each.get("answer") if isinstance(each, Mapping) else each
        if not isinstance(text, str):
            raise RowError(f'"answers" holds {shown(text, 40)}: it is a list of texts')
        texts.append(whole("answers", text))
    return tuple(texts)


def _by_annotators(row: Row, answer: str | None, column: str, *, tokenised: bool = True) -> Verdict:
    answers = _annotated(row)
    said = "" if answer is None else vqa.processed(answer, tokenised=tokenised)
    forms = [vqa.processed(each, tokenised=tokenised) for each in answers]
    truth = Counter(forms).most_common(1)[0][0] if forms else ""
    score: float | None = None
    if answers:
        score = 0.0 if answer is None else vqa.accuracy(answer, answers, tokenised=tokenised)
    return Verdict(score, said, truth, optional(row, column), failed=answer is None)


def _vqav2(row: Row, answer: str | None) -> Verdict:
    # The challenge's own script does not part words from 's or take commas out first.
    return _by_annotators(row, answer, "answer_type", tokenised=False)


def _vizwiz(row: Row, answer: str | None) -> Verdict:
    return _by_annotators(row, answer, "category")


def _textvqa(row: Row, answer: str | None) -> Verdict:
    return _by_annotators(row, answer, "")


def _gqa(row: Row, answer: str | None) -> Verdict:
    truth = optional(row, "answer")
    types = row.get("types")
    kind = types.get("structural") if isinstance(types, Mapping) else None
    category = "" if not kind else "open" if kind == "query" else "binary"
    score = None
    if truth:
        score = 0.0 if answer is None else same_word(answer, [truth])
    said = "" if answer is None else answer.rstrip(".").lower()
    return Verdict(score, said, truth.lower(), category, failed=answer is None)


def _sqa(row: Row, answer: str | None) -> Verdict:
    count, number = len(choices_of(row)), row.get("answer")
    category = optional(row, "subject")
    said = "" if answer is None else reading.sqa_letter(answer)
    if number is None:
        return Verdict(None, said, "", category, failed=answer is None)
    try:
        truth = chr(ord("A") + number) if 0 <= number < count else ""
    except TypeError:
        truth = ""
    if not truth:
        raise RowError(f'"answer" is {shown(number, 40)}: it is the number of a choice, from 0')
    return Verdict(float(said == truth), said, truth, category, failed=answer is None)


def _word_of(row: Row) -> str:
    truth = optional(row, "answer").lower().strip().rstrip(".")
    if truth not in ("", "yes", "no"):
        raise RowError(f'"answer" is {shown(row.get("answer"), 40)}: it is yes or no')
    return truth


def _pope(row: Row, answer: str | None) -> Verdict:
    truth = _word_of(row)
    said = "" if answer is None else pope_word(answer)
    score = float(said == truth) if truth else None
    return Verdict(score, said, truth, optional(row, "category"), failed=answer is None)


def _mme(row: Row, answer: str | None) -> Verdict:
    truth, category = _word_of(row), optional(row, "category")
    if category not in PERCEPTION + COGNITION:
        raise RowError(f'"category" is {shown(category, 40)}: it is one of MME\'s 14 subtasks')
    picture = optional(row, "question_id")
    if not picture:
        raise RowError('no "question_id": MME pairs the two questions about a picture by it')
    said = "" if answer is None else reading.mme_word(answer)
    score = float(said == truth) if truth else None
    group = f"{category}\n{picture}"
    return Verdict(score, said, truth, category, group=group, size=2, failed=answer is None)


def _mmbench(row: Row, answer: str | None) -> Verdict:
    options, index = options_of(row), row.get("index")
    if index is None or isinstance(index, bool) or not hasattr(index, "__index__"):
        raise RowError(f'"index" is {shown(index, 40)}: it is a whole number')
    truth = optional(row, "answer").strip()
    if truth and truth not in options:
        raise RowError(f'"answer" is {shown(truth, 40)}: it is the letter of an option')
    said = "" if answer is None else reading.mmbench_letter(answer, options)
    score = float(said == truth) if truth else None
    return Verdict(
        score, said, truth, optional(row, "category"), optional(row, "L2-category"),
        group=str(int(index) % CIRCLE), size=len(options), first=int(index) < CIRCLE,
        failed=answer is None,
    )  # fmt: skip


def _mm_vet(row: Row, answer: str | None) -> Verdict:
    # Its judge is a language model elsewhere: nothing is scored here.
    category = optional(row, "capability")
    return Verdict(None, answer or "", "", category, failed=answer is None)


_JUDGES: dict[str, Callable[[Row, str | None], Verdict]] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "sqa-img": _sqa,
    "textvqa": _textvqa,
    "pope": _pope,
    "mme": _mme,
    "mmbench-en": _mmbench,
    "mm-vet": _mm_vet,
}
