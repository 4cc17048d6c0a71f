"""The figures of a benchmark out of the verdicts on its answers, with their intervals.

Every figure is made of sums over the rows of a picture, so that a bootstrap draws pictures: what is
asked about one stands or falls together. Per cent, but for MME, whose subtasks have 200 points.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from resprune_jax.errors import CallError, one_of, shown
from resprune_jax.experiments.benchmark.prompts import PROMPTS
from resprune_jax.experiments.benchmark.scoring.judging import SUBTASKS, Verdict
from resprune_jax.experiments.statistics import Estimate, ends, resampled

NAMES = tuple(PROMPTS)

HEADLINE = {
    "vqav2": "accuracy",
    "gqa": "accuracy",
    "vizwiz": "accuracy",
    "sqa-img": "accuracy",
    "textvqa": "accuracy",
    "pope": "f1/mean",
    "mme": "sum",
    "mmbench-en": "accuracy",
}
"""The figure that the paper's tables print; MM-Vet has none here, its judge is a language model."""

Sums = Mapping[tuple[str, ...], np.ndarray]
"""(what is counted, of which part) -> its sum; arrays of one shape."""


def aggregate(name: str, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The figures of a benchmark.

    Args:
        name: of the benchmark.
        verdicts: on all its answers, in any order.

    Returns:
        By name, `HEADLINE` among them; "accuracy/x" is of category x alone, POPE's "f1/mean" the
        mean of its splits. NaN where nothing stands below the line; {} where nothing is scored.

    Raises:
        CallError: an unknown benchmark, or pictures of MME without both their questions.
    """
    one_of("benchmark", name, NAMES)
    scored = [one for one in verdicts if one.score is not None]
    if not scored or name not in _COUNTS:
        return {}
    totals = {part: np.asarray(value) for part, value in _COUNTS[name](scored).items()}
    return {figure: float(value) for figure, value in _FIGURES[name](totals).items()}


def estimate(
    name: str, verdicts: Sequence[Verdict], clusters: Sequence[str]
) -> dict[str, Estimate]:
    """The figures of a benchmark with 95 % intervals: a bootstrap that draws pictures.

    Args:
        name: of the benchmark.
        verdicts: on all its answers.
        clusters: of each, the picture it is about. Rows of one group stand together in any case.

    Returns:
        As `aggregate`; the ends are NaN where too many samples have no such figure.

    Raises:
        CallError: as `aggregate`, or lists of two lengths.
    """
    values = aggregate(name, verdicts)
    samples = _samples(name, verdicts, clusters) if values else {}
    made = {}
    for figure, value in values.items():
        low, high = ends(samples[figure])
        made[figure] = Estimate(value, float(low), float(high))
    return made


def ratio(
    name: str,
    figure: str,
    verdicts: Sequence[Verdict],
    full: Sequence[Verdict],
    clusters: Sequence[str],
) -> Estimate:
    """A figure in per cent of the full model's on the same rows, with its paired 95 % interval.

    Args:
        name: of the benchmark.
        figure: one of `aggregate`'s.
        verdicts: on the answers of one way to answer.
        full: on the full model's.
        clusters: as in `estimate`.

    Raises:
        CallError: an unknown benchmark, or lists of different lengths.
    """
    own, whole = (_samples(name, each, clusters)[figure] for each in (verdicts, full))
    value = _share(*(np.asarray(aggregate(name, each)[figure]) for each in (verdicts, full)))
    low, high = ends(_share(own, whole))
    return Estimate(float(value), float(low), float(high))


def _samples(
    name: str, verdicts: Sequence[Verdict], clusters: Sequence[str]
) -> dict[str, np.ndarray]:
    """The figures of bootstrap samples: the same samples for all answers to the same rows."""
    if len(verdicts) != len(clusters):
        raise CallError(f"{len(verdicts)} verdicts and {len(clusters)} clusters: one list each")
    own = [_COUNTS[name](rows) for rows in _together(verdicts, clusters)]
    parts = sorted({part for one in own for part in one})
    sums = np.array([[one.get(part, 0.0) for one in own] for part in parts])  # [P, S]
    drawn = resampled(sums)  # [draws, P]
    return _FIGURES[name]({part: drawn[:, n] for n, part in enumerate(parts)})


def _together(verdicts: Sequence[Verdict], clusters: Sequence[str]) -> Iterable[list[Verdict]]:
    """The scored verdicts by cluster; a group is where its first row is."""
    home: dict[str, str] = {}
    found: dict[str, list[Verdict]] = defaultdict(list)
    for verdict, cluster in zip(verdicts, clusters, strict=True):
        if verdict.score is not None:
            own = home.setdefault(verdict.group, cluster) if verdict.group else cluster
            found[own].append(verdict)
    return found.values()


def shortcomings(name: str, verdicts: Sequence[Verdict]) -> list[str]:
    """Why figures are not of the whole benchmark: parts that are missing, in words."""
    said = []
    scored = [one for one in verdicts if one.score is not None]
    if name == "mme" and scored:
        there = {one.category for one in scored}
        for half, subtasks in SUBTASKS.items():
            if missing := [each for each in subtasks if each not in there]:
                said.append(
                    f"{half} has {len(subtasks) - len(missing)} of {len(subtasks)} subtasks:"
                    f" no {', '.join(missing[:4])}{' and others' * (len(missing) > 4)}"
                )
    if name == "mmbench-en" and scored:
        own = _groups(scored)
        if torn := sum(len(rows) < rows[0].size for rows in own.values()):
            said.append(
                f"{torn} of {len(own)} questions are not asked in every rotation of their options:"
                " they count as right sooner"
            )
        if open_ := sum(not one.said and not one.failed for one in scored):
            said.append(
                f"{open_} answers name no option: MMBench asks a language model, here they are"
                " wrong"
            )
    if name == "pope" and scored:
        there = {one.category for one in scored} - {""}
        if missing := sorted({"adversarial", "popular", "random"} - there):
            said.append(f"no questions of the splits {', '.join(missing)}")
    return said


def _groups(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = defaultdict(list)
    for one in verdicts:
        found[one.group].append(one)
    return found


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """In per cent; NaN of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * np.where(whole > 0, part / whole, np.nan)


def _found(part: np.ndarray, whole: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """In per cent; 0 where there was nothing to find, NaN where nothing was asked."""
    return np.where(asked > 0, _share(part, np.maximum(whole, 1)), np.nan)


def _categories(totals: Sums) -> list[str]:
    return sorted({part[1] for part in totals if part[1]})


def _count_scores(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, ...], float]:
    made: dict[tuple[str, ...], float] = defaultdict(float)
    for one in verdicts:
        for category in {"", one.category}:
            made["score", category] += one.score or 0.0
            made["asked", category] += 1
    return made


def _accuracies(totals: Sums, *, overall: bool = True) -> dict[str, np.ndarray]:
    return {
        f"accuracy/{category}" if category else "accuracy": _share(
            totals["score", category], totals["asked", category]
        )
        for category in [*([""] if overall else []), *_categories(totals)]
    }


def _count_words(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, ...], float]:
    """What was said where what is true, by split: an answer that failed is the wrong one."""
    made: Counter[tuple[str, ...]] = Counter()
    for one in verdicts:
        right = bool(one.score)
        yes = right == (one.truth == "yes")
        for category in {"", one.category}:
            made["yes" if yes else "no", category, one.truth] += 1
    return made


def _confusion(totals: Sums) -> dict[str, np.ndarray]:
    splits = _categories(totals)
    nothing = np.zeros_like(next(iter(totals.values())), np.float64)
    made: dict[str, np.ndarray] = {}
    for split in ["", *splits]:
        end = f"/{split}" if split else ""
        hit, false, missed, other = (
            totals.get((said, split, truth), nothing)
            for said, truth in (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
        )
        asked = hit + false + missed + other
        made["accuracy" + end] = _share(hit + other, asked)
        made["precision" + end] = _found(hit, hit + false, asked)
        made["recall" + end] = _found(hit, hit + missed, asked)
        made["f1" + end] = _found(2 * hit, 2 * hit + false + missed, asked)
        made["yes ratio" + end] = _share(hit + false, asked)
    for figure in ("f1", "accuracy"):
        own = [made[f"{figure}/{split}"] for split in splits] or [made[figure]]
        made[f"{figure}/mean"] = np.mean(own, axis=0)
    return made


def _count_pairs(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, ...], float]:
    made: Counter[tuple[str, ...]] = Counter()
    for group, rows in _groups(verdicts).items():
        category = rows[0].category
        if len(rows) != rows[0].size:
            raise CallError(
                f"mme: {len(rows)} questions about {shown(group)}: its score is of pairs, give both"
                " questions about a picture"
            )
        made["right", category] += sum(bool(one.score) for one in rows)
        made["asked", category] += len(rows)
        made["both", category] += all(one.score for one in rows)
        made["pairs", category] += 1
    return made


def _points(totals: Sums) -> dict[str, np.ndarray]:
    """MME: a subtask's accuracy and its share of pictures with both answers right, added."""
    made: dict[str, np.ndarray] = {}
    nothing = np.zeros_like(next(iter(totals.values())), np.float64)
    there = _categories(totals)
    for half, subtasks in SUBTASKS.items():
        made[half] = nothing
        for subtask in (each for each in subtasks if each in there):
            right, asked, both, pairs = (
                totals.get((part, subtask), nothing) for part in ("right", "asked", "both", "pairs")
            )
            made[subtask] = _share(right, asked) + _share(both, pairs)
            made[half] = made[half] + made[subtask]
    made["sum"] = made["perception"] + made["cognition"]
    return made


def _count_circles(verdicts: Sequence[Verdict]) -> Mapping[tuple[str, ...], float]:
    """A question is right where every rotation is; those without their first row are left out."""
    made: Counter[tuple[str, ...]] = Counter()
    for rows in _groups(verdicts).values():
        for first in (one for one in rows if one.first):
            above = f"L2/{first.above}" if first.above else ""
            for category in {"", first.category, above}:
                made["score", category] += all(one.score for one in rows)
                made["asked", category] += 1
            made["plain", ""] += bool(first.score)
        made["undecided", ""] += sum(not one.said and not one.failed for one in rows)
        made["rows", ""] += len(rows)
    return made


def _circular(totals: Sums) -> dict[str, np.ndarray]:
    nothing = np.zeros_like(totals["rows", ""])
    asked = totals.get(("asked", ""), nothing)
    return {
        "accuracy": _share(totals.get(("score", ""), nothing), asked),
        **_accuracies({part: own for part, own in totals.items() if part[1]}, overall=False),
        "plain": _share(totals.get(("plain", ""), nothing), asked),
        "undecided": _share(totals["undecided", ""], totals["rows", ""]),
    }


_Count = Callable[[Sequence[Verdict]], Mapping[tuple[str, ...], float]]
_COUNTS: dict[str, _Count] = {
    **dict.fromkeys(("vqav2", "gqa", "vizwiz", "sqa-img", "textvqa"), _count_scores),
    "pope": _count_words,
    "mme": _count_pairs,
    "mmbench-en": _count_circles,
}
_FIGURES: dict[str, Callable[[Sums], dict[str, np.ndarray]]] = {
    **dict.fromkeys(("vqav2", "gqa", "vizwiz", "sqa-img", "textvqa"), _accuracies),
    "pope": _confusion,
    "mme": _points,
    "mmbench-en": _circular,
}
