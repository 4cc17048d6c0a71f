"""Tables from results whose true numbers are known."""

import csv
import io
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resprune_jax import paper
from resprune_jax.errors import CallError
from resprune_jax.experiments.report import others, printed, tables
from resprune_jax.experiments.report.formats import Number, Table, comma_separated
from resprune_jax.experiments.report.measured import Measured
from resprune_jax.experiments.report.reading import answers_of, read_results
from resprune_jax.experiments.report.settings import Choice, base_of
from resprune_jax.experiments.report.tables import Maker, NoTableError
from resprune_jax.experiments.statistics import Estimate, clustered, holm, sign_flip
from tests.experiments.report.folders import FULL, configuration, examples, write

CATEGORIES = ("count", "relation", "text")
IMAGES = 40

Plan = dict[str, tuple[dict[str, Any], tuple[int, int, int]]]
"""Name -> configuration, and how many of the 40 examples of each category are right."""


def plan(*wanted: tuple[dict[str, Any], tuple[int, int, int]]) -> Plan:
    return {one["name"]: (one, right) for one, right in wanted}


def scores_of(right: tuple[int, int, int]) -> np.ndarray:
    """The first so many examples of each category are right."""
    return (np.arange(IMAGES)[:, None] < np.array(right)).astype(float).reshape(-1)


def maker(folder: Path, what: Plan, *, against: str = "resprune", base: Any = (),
          backbone: str = "llava-1.5", **columns: Any) -> Maker:  # fmt: skip
    """The maker of a run's tables."""
    scores = np.stack([scores_of(right) for _, right in what.values()])
    own = [one for one, _ in what.values()]
    write(folder, own, examples(IMAGES, CATEGORIES), scores, **columns)
    results = read_results([folder])
    choice = Choice(results, against, backbone, base)
    return Maker(choice, Measured(results, choice.settings, choice.full), backbone)


def rows_of(table: Table) -> dict[tuple[str, str], list[Any]]:
    """(heading of the block, label) -> cells; the heading up to its budget."""
    return {
        (block.heading.split(" ")[1] if block.heading.startswith("Retain") else block.heading,
         str(row.cells[0])): list(row.cells)
        for block in table.blocks for row in block.rows
    }  # fmt: skip


def close(one: Estimate, other: Estimate) -> bool:
    return bool(np.allclose(astuple(one), astuple(other), atol=1e-12))


METHODS = plan(
    (FULL, (40, 32, 20)),
    (configuration("random", "1/9"), (30, 16, 10)),
    (configuration("random", "1/9", draw=1), (20, 16, 10)),
    (configuration("random", "1/9", draw=2), (10, 16, 10)),
    (configuration("divprune", "1/9"), (36, 31, 20)),
    (configuration("divprune", "1/3"), (40, 32, 20)),
    (configuration("agilepruner", None, settings={"average": 9, "most": 0.3}), (40, 30, 20)),
    (configuration("resprune", "1/9"), (38, 31, 20)),
    (configuration("resprune", "1/3"), (40, 32, 20)),
)


def test_table_one_holds_the_true_numbers(tmp_path):
    (table,) = maker(tmp_path / "run", METHODS).make("1")
    assert list(table.columns) == ["method", "Rel. Perf.", "paper's", *CATEGORIES, "all", "kept"]
    rows = rows_of(table)
    assert list(rows) == [
        ("", "all tokens"), ("1/3", "divprune"), ("1/3", "resprune"), ("1/9", "random"),
        ("1/9", "divprune"), ("1/9", "resprune"),
        ("Budgets of the methods' own", "agilepruner:average=9,most=0.3"),
    ]  # fmt: skip
    values = {at: [cell.value for cell in cells[1:]] for at, cells in rows.items()}
    assert values["", "all tokens"] == [100, 100, 100, 80, 50, 100 * 92 / 120, 144]
    # Random: the mean of three draws; unweighted over categories, 50 % in each.
    assert np.allclose(values["1/9", "random"][3:], [40, 25, 100 * 46 / 120, 16][0:4])
    assert math.isclose(values["1/9", "random"][0], 50)
    expected = 100 * (38 / 40 + 31 / 32 + 20 / 20) / 3
    assert math.isclose(values["1/9", "resprune"][0], expected)
    base, own = ({"c": c, "r": r, "t": t} for c, r, t in ((40, 32, 20), (38, 31, 20)))
    assert math.isclose(expected, paper.relative_performance(own, base, ["c", "r", "t"]))
    # Beside them the paper's.
    assert [values[at][1] for at in list(rows)[1:6]][:2] == [97.9, 99.4]
    assert math.isnan(values["1/9", "random"][1])
    assert [values["1/9", name][1] for name in ("divprune", "resprune")] == [95.7, 98.0]
    marks = {at: cells[1].mark for at, cells in rows.items()}
    assert [at for at, mark in marks.items() if mark] == [("1/9", "random")]
    assert marks["1/9", "random"] == "worse"
    strong = [row.cells[0] for block in table.blocks for row in block.rows if row.strong]
    assert strong == ["resprune", "resprune"]
    assert any("mean of 3 draws" in note for note in table.notes)


def test_intervals_are_paired_and_hold_the_value(tmp_path):
    (table,) = maker(tmp_path / "run", METHODS).make("1")
    for at, cells in rows_of(table).items():
        for cell in cells[1:]:
            if not math.isnan(cell.low):
                assert cell.low <= cell.value <= cell.high, at
    full, *_, other = rows_of(table).values()
    assert (full[1].low, full[1].high) == (100, 100)  # it is relative to itself
    assert full[3].value == 100 and full[3].low < 95  # Wilson's: nothing varies
    assert other[4].high - other[4].low > 10
    by_name = {
        row["configuration"]: row for row in csv.DictReader(io.StringIO(comma_separated(table)))
    }
    random = by_name["random keep=1/9"]
    assert float(random["p"]) < 1e-3 < float(random["difference high"]) + 100
    assert float(random["p Holm"]) >= float(random["p"]) and float(random["difference"]) < -40
    assert float(random["difference low"]) < -47.3 < float(random["difference high"]) < 0
    assert float(by_name["divprune keep=1/3"]["p"]) == 1  # the same answers


def test_intervals_are_those_of_images_not_of_questions(tmp_path):
    made = maker(tmp_path / "run", METHODS).measured
    clusters = np.repeat(np.arange(IMAGES), len(CATEGORIES))
    for n in range(1, len(made.settings)):
        totals, counts = np.bincount(clusters, made.scores[n]), np.full(IMAGES, len(CATEGORIES))
        assert close(made.figure(n, "all"), clustered(totals, counts))
        gain = np.bincount(clusters, made.scores[n] - made.scores[0])
        assert close(made.gain(n, 0, "all"), clustered(gain, counts))


def test_the_test_is_of_relative_performance_by_image(tmp_path):
    rng = np.random.default_rng(2)
    own = [FULL, *(configuration(name, "1/9") for name in ("random", "divprune", "resprune"))]
    asked = [one for one in examples(30, CATEGORIES) if rng.random() < 0.8]
    scores = (rng.random((4, len(asked))) < np.array([[0.9], [0.2], [0.6], [0.6]])).astype(float)
    write(tmp_path / "run", own, asked, scores)
    results = read_results([tmp_path / "run"])
    choice = Choice(results, "resprune")
    made = Measured(results, choice.settings, choice.full)
    parts = np.zeros((2, results.clusters.max() + 1))
    for e, category in enumerate(results.categories):
        there = results.categories == category
        weight = 1 / (len(CATEGORIES) * there.sum() * scores[0, there].mean())
        parts[:, results.clusters[e]] += weight * (scores[1:3, e] - scores[3, e])
    found = [one[0] for one in made.compare([(1, 3), (2, 3)], ["Rel. Perf."])]
    assert np.allclose([one.p for one in found], sign_flip(parts), atol=1e-3)
    assert np.allclose([one.gain.value for one in found], parts.sum(1))
    assert np.allclose([one.holm for one in found], holm(np.array([one.p for one in found])))
    assert found[0].mark == "worse" and parts[1].any()


def axes_plan() -> Plan:
    """Axes around the full method, which some configurations name and some leave to defaults."""
    return plan(
        (FULL, (40, 40, 40)),
        (configuration("resprune", "2/9"), (36, 38, 40)),
        *((configuration("resprune", "2/9", alpha=alpha), right) for alpha, right in (
            (0.0, (20, 20, 20)), (0.25, (35, 38, 40)), (0.75, (36, 38, 40)), (1.0, (37, 38, 40)))),
        *((configuration("resprune", "2/9", aggregate=name), right) for name, right in (
            ("mean", (30, 30, 30)), ("pooled", (32, 38, 40)))),
        *((configuration("resprune", "2/9", alpha=0.75, seed_rule=name), (36, 38, 40))
          for name in ("center", "cls_attention", "max_norm")),
        (configuration("resprune", "2/9", text="prompt"), (34, 38, 40)),
        (configuration("resprune", "2/9", positions="original"), (36, 18, 40)),
        (configuration("relevance", "2/9"), (10, 10, 10)),
        (configuration("divprune", "2/9", positions="original"), (36, 36, 36)),
    )  # fmt: skip


def test_table_four(tmp_path):
    table, by_category = maker(tmp_path / "run", axes_plan()).make("4")
    rows = rows_of(table)
    found = {
        label: (cells[1].value, cells[2].value, cells[1].mark) for (_, label), cells in rows.items()
    }
    assert {label: values[:2] for label, values in found.items()} == {
        "all tokens": (100, 100), "Full method": (95, 98.4),
        "Setting-1: every word": (pytest.approx(100 * 112 / 120), 97.5),
        "Setting-2: no text, alpha 0": (50, 96.6), "Setting-3: top by relevance": (25, 82.4),
    }  # fmt: skip
    assert [values[2] for values in found.values()] == ["", "", "", "worse", "worse"]
    gains = rows_of(by_category)["2/9", "Setting-3: top by relevance"]
    assert [cell.value for cell in gains[1:]] == pytest.approx([-65, -70, -75, -70])
    assert all(cell.mark == "worse" for cell in gains[1:])


def test_tables_five_six_and_seven(tmp_path):
    made = maker(tmp_path / "run", axes_plan())
    five, six, seven = (rows_of(made.make(name)[0]) for name in "567")
    assert [label for _, label in five] == ["all tokens", "0", "0.25", "0.75", "1"]
    assert [cells[2].value for cells in list(five.values())[2:]] == [97.7, 98.4, 98.3]
    assert math.isnan(five["2/9", "0"][2].value)  # the paper's Table V has no alpha 0
    assert five["2/9", "0.75"][1].value == pytest.approx(95)
    assert [label for _, label in six] == ["all tokens", "max", "mean", "pooled"]
    assert [cells[2].value for cells in list(six.values())[1:]] == [98.4, 97.8, 95.4]
    assert [label for _, label in seven] == ["all tokens", "cls_attention", "max_norm", "center"]
    assert [cells[2].value for cells in list(seven.values())[1:]] == [98.4, 98.0, 97.6]
    assert not any(cells[1].mark for cells in seven.values())


def test_positions_and_the_category_that_they_break(tmp_path):
    table, by_category = maker(tmp_path / "run", axes_plan()).make("positions")
    assert "paper's" not in table.columns
    assert [label for _, label in rows_of(table)] == ["all tokens", "reindex", "original"]
    cells = dict(zip(by_category.columns, rows_of(by_category)["2/9", "original"], strict=True))
    gains = {name: (cells[name].value, cells[name].mark) for name in CATEGORIES}
    assert gains["relation"] == (pytest.approx(-50), "worse")
    assert gains["count"] == gains["text"] == (0, "")
    more = by_category.blocks[0].rows[0].more
    assert more["count p"] == 1 and more["relation p Holm"] >= 3 * more["relation p"] > 0


def test_table_one_takes_each_method_at_the_base_or_at_its_own(tmp_path):
    made = maker(tmp_path / "run", axes_plan())
    # DivPrune was run with other positions alone.
    assert [label for _, label in rows_of(made.make("1")[0])] == [
        "all tokens", "relevance", "resprune"
    ]  # fmt: skip
    made = maker(tmp_path / "other", axes_plan(), base=["positions=original"])
    rows = rows_of(made.make("1")[0])
    assert rows["2/9", "divprune"][1].value == pytest.approx(90)
    assert rows["2/9", "resprune"][1].value == pytest.approx(100 * 94 / 120)
    with pytest.raises(NoTableError, match="aggregate"):  # none was run with these positions
        made.make("6")


@pytest.mark.parametrize("name", [*tables.NAMES, *others.NAMES])
def test_tables_that_the_results_do_not_hold_say_so(name: str, tmp_path: Path) -> None:
    made = maker(
        tmp_path / "run", plan((FULL, (4, 4, 4)), (configuration("resprune", "1/9"), (3, 3, 3)))
    )
    make = made.make if name in tables.NAMES else lambda name: others.make(made, name)
    if name in ("1", "costs"):
        assert make(name)
    else:
        with pytest.raises(NoTableError, match=r"resprune|downsample"):
            make(name)


def test_what_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(CallError, match=r"no full model.* none"):
        maker(tmp_path / "a", plan((configuration("resprune", "1/9"), (1, 2, 3))))
    with pytest.raises(CallError, match=r"no method 'fastv': they hold random, divprune"):
        maker(tmp_path / "b", METHODS, against="fastv")
    with pytest.raises(CallError, match="no method 'none'"):
        maker(tmp_path / "c", METHODS, against="none")
    # What names alpha 0.75 and what leaves it to the method differ: its default is another.
    wrong = axes_plan()
    name = "resprune keep=2/9"
    wrong[name] = wrong[name][0], (35, 37, 39)
    with pytest.raises(CallError, match=r"answer.* differently.* --backbone"):
        maker(tmp_path / "d", wrong)
    for word in ("alpha", "beta=1", "alpha="):
        with pytest.raises(CallError, match="AXIS=VALUE"):
            base_of("llava-1.5", [word])


def test_another_base(tmp_path):
    made = maker(tmp_path / "run", plan(
        (FULL, (40, 40, 40)), (configuration("resprune", "2/9"), (36, 38, 40)),
        *((configuration("resprune", "2/9", alpha=a), r) for a, r in (
            (0.1, (30, 30, 30)), (0.3, (36, 38, 40)))),
    ), backbone="qwen2.5-vl")  # fmt: skip
    rows = rows_of(made.make("5")[0])
    assert [label for _, label in rows] == ["all tokens", "0.1", "0.3"]
    assert [cells[2].value for cells in rows.values()] == [100, 96.3, 96.9]
    assert rows_of(made.make("1")[0])["2/9", "resprune"][2].value == 96.9  # Table III


def test_the_papers_numbers_are_found_by_name_and_ratio():
    found = 0
    for backbone, numeral in printed.TABLES.items():
        for row, _ in paper.tables()[numeral].compared():
            name = {"adaprune": "agilepruner"}.get(word := row.name.split(" ")[0].lower(), word)
            ratio = float(row.group.split("ratio = ")[1].rstrip("%)"))
            kept = {66.7: 1 / 3, 77.8: 2 / 9, 88.9: 1 / 9}[ratio]
            assert printed.relative(backbone, "I", name, kept) == row.relative
            found += 1
    print(f"{found} rows of Tables I to III")
    assert found == 64
    assert printed.relative("llava-next", "IV", "full", 2 / 9) is None
    assert printed.relative("qwen2.5-vl", "VII", "max_norm", 2 / 9) == 96.9
    assert printed.relative("llava-1.5", "I", "resprune", 64 / 576) == 98.0
    assert printed.relative("llava-1.5", "I", "resprune", 0.12) is None


def test_hard_examples_are_those_that_downsampling_gets_wrong(tmp_path):
    what = plan(
        (FULL, (40, 40, 40)), (configuration("downsample", "1/9"), (30, 20, 40)),
        (configuration("resprune", "1/9"), (35, 25, 40)),
        (configuration("fastv", "1/9"), (30, 10, 40)),
    )  # fmt: skip
    (table,) = others.make(maker(tmp_path / "run", what), "hard")
    assert "30 of 120" in table.blocks[0].heading
    values = {row.cells[0]: [cell.value for cell in row.cells[1:]] for row in table.blocks[0].rows}
    assert values == {
        "all tokens": [100, 100], "fastv": [0, pytest.approx(100 * 80 / 90)],
        "resprune": [pytest.approx(100 * 10 / 30), 100],
    }  # fmt: skip
    (fastv,) = (row for row in table.blocks[0].rows if row.cells[0] == "fastv")
    assert fastv.cells[1].mark == "worse" and fastv.cells[1].high > 5  # Wilson's at 0
    assert fastv.more["difference"] == pytest.approx(-100 / 3)


def test_costs_and_all_settings(tmp_path):
    count = len(METHODS)
    average = np.full((count, 120), 20.0)
    effective = np.tile(np.arange(120) / 10, (count, 1))
    made = maker(tmp_path / "run", METHODS, average=average, effective_rank=effective)
    (table,) = others.make(made, "costs")
    assert list(table.columns) == [
        "method", "kept", "a layer", "effective rank", "choosing, ms", "answering, ms"
    ]  # fmt: skip
    row = rows_of(table)["1/9", "resprune"]
    assert [cell.value for cell in row[1:]] == pytest.approx([16, 20, 5.95, 0.5, 4])
    assert "a layer" in made.make("1")[0].columns
    lines = list(csv.DictReader(io.StringIO(comma_separated(others.every(made)))))
    by_name = {line["setting"]: line for line in lines}
    assert len(lines) == count - 2 and by_name["random keep=1/9"]["draws"] == "3"
    assert float(by_name["resprune keep=1/9"]["accuracy count"]) == 95
    assert float(by_name["resprune keep=1/9"]["kept"]) == 16


def test_one_category_alone(tmp_path):
    scores = np.array([np.ones(30), np.arange(30) < 21], float)
    own = [FULL, configuration("resprune", "16")]
    write(tmp_path / "run", own, examples(30, [""]), scores)
    results = read_results([tmp_path / "run"])
    choice = Choice(results, "resprune")
    made = Maker(choice, Measured(results, choice.settings, choice.full), "llava-1.5")
    (table,) = made.make("1")
    assert list(table.columns) == ["method", "Rel. Perf.", "paper's", "accuracy", "kept"]
    cells = rows_of(table)["16", "resprune"]
    assert [cell.value for cell in cells[1:]] == pytest.approx([70, 98.0, 70, 16])
    assert all(isinstance(cell, Number) for cell in cells[1:])


def test_a_category_that_the_full_model_never_answers(tmp_path):
    what = plan((FULL, (40, 0, 20)), (configuration("resprune", "1/9"), (30, 1, 20)),
                (configuration("random", "1/9"), (10, 0, 20)))  # fmt: skip
    (table,) = maker(tmp_path / "run", what).make("1")
    for cells in rows_of(table).values():
        assert cells[1].parts() == ("–", "") and not cells[1].mark


def test_cases_are_where_methods_part(tmp_path):
    own = [FULL, *(configuration(name, "1/9") for name in ("random", "divprune", "resprune"))]
    asked = examples(6, ("count", "text"))
    scores = np.ones((4, 12))
    scores[1:3, 4] = scores[1, 6] = 0  # the method alone; with another
    scores[3, 9] = scores[3, 3] = scores[2, 3] = 0  # it alone misses; it and another
    scores[0, 5] = scores[3, 5] = 0  # the full model does not know either
    scores[1, 10] = np.nan
    write(tmp_path / "run", own, asked, scores)
    results = read_results([tmp_path / "run"])
    choice = Choice(results, "resprune")
    made = Maker(choice, Measured(results, choice.settings, choice.full), "llava-1.5")
    (table,) = others.make(made, "cases")
    assert table.columns[3:] == ["all tokens", "resprune", "divprune", "random"]
    keys = {block.heading: [row.cells[0] for row in block.rows] for block in table.blocks}
    assert keys == {
        "resprune is right": [asked[4]["key"]], "resprune is wrong": [asked[9]["key"]]
    }  # fmt: skip
    assert table.blocks[0].rows[0].cells[1:] == ["Is there a star?", "yes", *["yes"] * 4]
    said = answers_of(results, ["random keep=1/9"], [asked[10]["key"]])
    assert said == {("random keep=1/9", asked[10]["key"]): "(no image)"}
