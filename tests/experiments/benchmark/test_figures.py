"""Figures and intervals against the slow way: answers drawn again, and all of them counted anew."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.experiments.benchmark.scoring import (
    HEADLINE,
    Verdict,
    aggregate,
    estimate,
    judge,
    ratio,
    shortcomings,
)
from resprune_jax.experiments.statistics import ends, resampled
from tests.experiments.benchmark.made import ROWS

WORDS = {
    "vqav2": ["yes", "no", "2", "3", "two"],
    "gqa": ["no", "blue", "Bowl.", "cup"],
    "vizwiz": ["Unanswerable", "yes", "no"],
    "sqa-img": ["A", "B", "C. Utah", "b"],
    "textvqa": ["Dakota", "nothing", "x"],
    "pope": ["Yes", "No", "yes, it is", "not one"],
    "mme": ["Yes", "No", "maybe", "yes."],
    "mmbench-en": ["A", "B", "C", "the answer is b", "a cook"],
}


@st.composite
def answered(draw: st.DrawFn) -> tuple[str, list[Verdict], list[str]]:
    """A benchmark, verdicts on answers to some copies of its rows, and the pictures."""
    name = draw(st.sampled_from(sorted(WORDS)))
    verdicts, clusters = [], []
    for copy in range(draw(st.integers(1, 3))):
        picture = draw(st.integers(0, 2))
        for row in ROWS[name]:
            said = draw(st.sampled_from([*WORDS[name], None]))
            verdict = judge(name, row, said)
            if verdict.group:
                verdict = dataclasses.replace(verdict, group=f"{verdict.group} {copy}")
            verdicts.append(verdict)
            # Rows of a group need not name one picture.
            clusters.append(str(picture if draw(st.booleans()) else copy))
    return name, verdicts, clusters


def home(verdicts: list[Verdict], clusters: list[str]) -> list[str]:
    """The cluster that each row is drawn with."""
    first: dict[str, str] = {}
    return [
        first.setdefault(one.group, own) if one.group else own
        for one, own in zip(verdicts, clusters, strict=True)
    ]


@settings(max_examples=15, deadline=None)
@given(answered())
def test_intervals_are_of_figures_over_pictures_drawn_again(
    made: tuple[str, list[Verdict], list[str]],
) -> None:
    name, verdicts, clusters = made
    found = estimate(name, verdicts, clusters)
    values = aggregate(name, verdicts)
    assert {figure: one.value for figure, one in found.items()} == values
    own = home(verdicts, clusters)
    names = list(dict.fromkeys(own))
    drawn = resampled(np.eye(len(names)))  # how often each picture is in each sample
    samples: list[float] = []
    known: dict[bytes, float] = {}
    for counts in drawn:
        key = counts.tobytes()
        if key not in known:
            again = [
                dataclasses.replace(one, group=one.group and f"{one.group} {copy}")
                for picture, times in zip(names, counts.astype(int), strict=True)
                for copy in range(times)
                for one, place in zip(verdicts, own, strict=True)
                if place == picture
            ]
            whole = {one.category for one in again} == {one.category for one in verdicts}
            # Without one of its parts a sum or a mean of splits is none.
            parts = name in ("mme", "pope")
            value = aggregate(name, again).get(HEADLINE[name], math.nan)
            known[key] = value if whole or not parts else math.nan
        samples.append(known[key])
    low, high = map(float, ends(np.asarray(samples)))
    assert (found[HEADLINE[name]].low, found[HEADLINE[name]].high) == pytest.approx(
        (low, high), nan_ok=True
    )


@settings(max_examples=40, deadline=None)
@given(answered(), st.data())
def test_a_row_that_failed_never_helps(
    made: tuple[str, list[Verdict], list[str]], data: st.DataObject
) -> None:
    name, verdicts, _ = made
    number = data.draw(st.integers(0, len(verdicts) - 1))
    worse = list(verdicts)
    row = ROWS[name][number % len(ROWS[name])]
    failed = dataclasses.replace(judge(name, row, None), group=verdicts[number].group)
    worse[number] = failed
    assert failed.score == 0 and failed.failed
    before, after = (aggregate(name, own)[HEADLINE[name]] for own in (verdicts, worse))
    assert after <= before + 1e-9


@settings(max_examples=20, deadline=None)
@given(answered())
def test_an_answer_is_all_of_itself(made: tuple[str, list[Verdict], list[str]]) -> None:
    name, verdicts, clusters = made
    figure = HEADLINE[name]
    found = ratio(name, figure, verdicts, verdicts, clusters)
    if aggregate(name, verdicts)[figure] > 0:
        assert found.value == pytest.approx(100)
        if math.isfinite(found.low):
            assert (found.low, found.high) == pytest.approx((100, 100))
    else:
        assert math.isnan(found.value)


def test_the_order_of_rows_does_not_count() -> None:
    for name, words in WORDS.items():
        verdicts = [judge(name, row, words[n % 3]) for n, row in enumerate(ROWS[name])]
        assert aggregate(name, verdicts) == aggregate(name, verdicts[::-1])


def test_what_has_no_answer_is_not_scored() -> None:
    bare = {**ROWS["vqav2"][0], "answers": None}
    verdict = judge("vqav2", bare, "yes")
    assert verdict.score is None and aggregate("vqav2", [verdict]) == {}
    both = [verdict, judge("vqav2", ROWS["vqav2"][0], "Yes.")]
    assert aggregate("vqav2", both)["accuracy"] == 100
    found = estimate("vqav2", both, ["a", "b"])["accuracy"]
    assert (found.value, found.low, found.high) == (100, 100, 100)
    hers = judge("mm-vet", ROWS["mm-vet"][0], "x = -1 or -5")
    assert hers.score is None and aggregate("mm-vet", [hers]) == {}


def test_parts_that_are_missing_are_said() -> None:
    mme = [judge("mme", row, "Yes") for row in ROWS["mme"]]
    said = shortcomings("mme", mme)
    assert "1 of 10 subtasks" in said[0] and "1 of 4 subtasks" in said[1]
    torn = [judge("mmbench-en", row, "A") for row in ROWS["mmbench-en"][:4]]
    assert "1 of 2 questions are not asked in every rotation" in shortcomings("mmbench-en", torn)[0]
    vague = [judge("mmbench-en", row, "hm") for row in ROWS["mmbench-en"]]
    assert "5 answers name no option" in shortcomings("mmbench-en", vague)[0]
    pope = [judge("pope", row, "Yes") for row in ROWS["pope"]]
    assert shortcomings("pope", pope) == []
    assert "adversarial, popular" in shortcomings("pope", pope[:4])[0]


def test_lists_of_two_lengths_and_unknown_names_are_refused() -> None:
    verdicts = [judge("pope", row, "Yes") for row in ROWS["pope"]]
    with pytest.raises(CallError, match="12 verdicts and 1 clusters"):
        estimate("pope", verdicts, ["a"])
    with pytest.raises(CallError, match="unknown benchmark 'popes'"):
        judge("popes", {}, "Yes")
    with pytest.raises(CallError, match="choose one of vqav2, gqa"):
        aggregate("coco", verdicts)
