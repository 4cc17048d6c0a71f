"""Our scorers on invented rows whose official scores were worked out apart (rows/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.benchmark.scoring import Verdict, aggregate, judge
from resprune_jax.experiments.data.columns import RowError

ROWS = Path(__file__).parent / "rows"
FILES = sorted(path.stem for path in ROWS.glob("*.jsonl"))
NEAR = 1e-9
UNKNOWN = {"mme-061", "mme-062"}
"""Rows of a subtask that MME does not have: refused alone already, not only with others."""


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    lines = (ROWS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def sets_of(name: str) -> list[dict[str, Any]]:
    return list(json.loads((ROWS / f"{name}.expected.json").read_text(encoding="utf-8"))["sets"])


def verdict(row: dict[str, Any]) -> Verdict:
    return judge(row["benchmark"], row["row"], row["prediction"])


def test_there_are_rows_of_every_scorer() -> None:
    assert FILES == ["gqa", "mmbench", "mme", "pope", "sqa", "vqa"]
    assert all(len(rows_of(name)) >= 30 for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_every_row_has_its_official_score(name: str) -> None:
    wrong = {}
    for key, row in rows_of(name).items():
        if key in UNKNOWN:
            with pytest.raises(RowError, match="14 subtasks"):
                verdict(row)
            continue
        expected, found = row["expected"], verdict(row).score
        if expected is None or found is None:
            same = expected is found
        else:
            same = abs(expected - found) < NEAR
        if not same:
            wrong[key] = (row["prediction"], expected, found, row["why"])
    assert not wrong


def flat(name: str, expected: dict[str, Any]) -> dict[str, float]:
    """What a set says, by our names of figures and in our units."""
    if name == "pope":
        words = {"yes_ratio": "yes ratio"}
        parts = {"": expected["all"], **{f"/{k}": v for k, v in expected["splits"].items()}}
        found = {
            f"{words.get(figure, figure)}{end}": 100 * value
            for end, own in parts.items()
            for figure, value in own.items()
            if figure.islower()
        }
        means = {"f1/mean": expected["mean_f1"], "accuracy/mean": expected["mean_accuracy"]}
        return found | {figure: 100 * value for figure, value in means.items()}
    if name == "mme":
        halves = {"sum": expected["total"], **{h: expected[h] for h in ("perception", "cognition")}}
        return halves | {subtask: own["score"] for subtask, own in expected["subtasks"].items()}
    if name == "mmbench":
        found = {"accuracy": expected["circular"], "plain": expected["plain"]}
        found |= {f"accuracy/L2/{k}": v for k, v in expected["L2-category"].items()}
        found |= {f"accuracy/{k}": v for k, v in expected["category"].items()}
        return {figure: 100 * value for figure, value in found.items()}
    return {"accuracy": 100 * expected["accuracy"]}


SETS = [(name, own["name"]) for name in FILES for own in sets_of(name)]


@pytest.mark.parametrize(("name", "which"), SETS)
def test_every_set_has_its_official_figures(name: str, which: str) -> None:
    rows = rows_of(name)
    own = next(each for each in sets_of(name) if each["name"] == which)
    asked = [rows[key] for key in own["ids"]]
    benchmark = asked[0]["benchmark"]
    if "error" in own["expected"]:
        with pytest.raises((CallError, RowError)):
            aggregate(benchmark, [verdict(row) for row in asked])
        return
    found = aggregate(benchmark, [verdict(row) for row in asked])
    expected = flat(name, own["expected"])
    assert expected.keys() <= found.keys()
    assert {k: found[k] for k in expected} == pytest.approx(expected, abs=100 * NEAR)
