"""The grid: which configurations axes span, and what is refused before anything is loaded."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.sweep.command import SweepOptions
from resprune_jax.experiments.sweep.config import read_config
from resprune_jax.experiments.sweep.grid import (
    AXES,
    Grid,
    configurations,
    read_keep,
    split_method,
)
from resprune_jax.experiments.sweep.presets import PRESETS
from resprune_jax.models.prompts.options import CallOptions

VALUES: dict[str, list[Any]] = {
    "alpha": [0.0, 0.25, 0.75, 1.25],
    "aggregate": ["max", "mean", "pooled"],
    "nonnegative": ["clip", "shift", "minmax"],
    "relevance_sign": [1, -1],
    "seed_rule": ["cls_attention", "max_norm", "text", "mean_similarity", "center"],
    "text": ["nouns", "prompt"],
    "ocr_line": ["strip", "keep"],
    "tagger": ["auto", "lexicon"],
    "tolerance": ["off", "0.05"],
    "positions": ["reindex", "original"],
}


def some(values: list[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), unique=True, max_size=2).map(tuple)


@given(
    st.fixed_dictionaries({axis: some(values) for axis, values in VALUES.items()}),
    st.lists(st.sampled_from(["1/9", "64", "0.5"]), unique=True, min_size=1).map(tuple),
)
@settings(max_examples=30, deadline=None)
def test_every_point_of_the_axes_is_there_once(axes: dict[str, Any], keep: tuple[str, ...]):
    found = configurations([Grid(methods=("resprune",), keep=keep, **axes)])
    points = {(one.keep, *(one.axes.get(axis) for axis in AXES)) for one in found}
    spans = [axes[axis] or (None,) for axis in AXES]
    expected = {
        (budget, *(_as_recorded(axis, value) for axis, value in zip(AXES, point, strict=True)))
        for budget in keep
        for point in itertools.product(*spans)
    }
    assert points == expected
    assert len(found) == len({one.name for one in found}) == len(expected)
    for one in found:
        told = one.options()
        assert isinstance(told, CallOptions)
        assert told.settings.get("alpha") == one.axes.get("alpha")
        assert told.tolerance == one.tolerance


def _as_recorded(axis: str, value: Any) -> Any:
    if axis == "tolerance" and value not in (None, "off"):
        return float(value)
    return value


def test_an_axis_that_means_nothing_to_a_method_gives_one_configuration():
    grid = Grid(
        methods=("none", "divprune", "fastv", "visionzip", "random", "resprune"), keep=("1/9",),
        alpha=(0.25, 0.75), positions=("reindex", "original"), tolerance=("off", "0.1"), draws=3,
    )  # fmt: skip
    counts: dict[str, int] = {}
    for one in configurations([grid]):
        counts[one.method] = counts.get(one.method, 0) + 1
    # Positions: of methods that keep tokens as they are; tolerance: of those that measure energy.
    assert counts == {
        "none": 1, "divprune": 2, "fastv": 1, "visionzip": 1, "random": 6, "resprune": 8,
    }  # fmt: skip


def test_grids_are_joined_and_what_they_share_is_asked_once():
    alphas = Grid(methods=("resprune",), keep=("1/9",), alpha=(0.25, 0.75))
    seeds = Grid(methods=("none", "resprune"), keep=("1/9", "1/3"), seed_rule=("text",))
    found = configurations([alphas, seeds, alphas])
    assert [one.name for one in found] == [
        "resprune keep=1/9 alpha=0.25",
        "resprune keep=1/9 alpha=0.75",
        "none",
        "resprune keep=1/9 seed_rule=text",
        "resprune keep=1/3 seed_rule=text",
    ]


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"methods": ("respune",)}, "unknown method 'respune'"),
        ({"keep": ("0",)}, "--keep 0 keeps no visual token"),
        ({"keep": ("4/3",)}, "write a share between 0 and 1"),
        ({"keep": ("1/9", "1/9")}, "keep names '1/9' twice"),
        ({"alpha": (0.5, 0.5)}, "alpha names 0.5 twice"),
        ({"alpha": (float("nan"),)}, "alpha is a number"),
        ({"alpha": (10**400,)}, "alpha is a number"),
        ({"alpha": (-1.0,)}, "alpha must be finite and non-negative"),
        ({"seed_rule": ("centre",)}, "seed_rule must be one of"),
        ({"tolerance": ("often",)}, "neither a number nor off"),
        ({"tolerance": ("2",)}, "tolerance must lie in"),
        ({"relevance_sign": (3,)}, "relevance_sign is 1 or -1"),
        ({"draws": 0}, "draws must lie in"),
        ({"keep": ()}, "keep is empty"),
        ({"methods": ()}, "the grid is empty"),
        ({"methods": ("resprune", "resprune")}, "methods names 'resprune' twice"),
        ({"methods": ("fastv:layer=x",)}, "layer"),
    ],
)
def test_a_wrong_grid_is_one_line(grid: dict[str, Any], said: str):
    base: dict[str, Any] = {"methods": ("resprune",), "keep": ("1/9",)}
    with pytest.raises(CallError, match=said) as error:
        configurations([Grid(**{**base, **grid})])
    assert "\n" not in str(error.value)


@given(st.fractions(min_value=0, max_value=1))
def test_shares_are_read_as_they_are_written(share: Any):
    written = f"{share.numerator}/{share.denominator}"
    if 0 < share < 1:
        assert read_keep(written) == float(share)
    else:
        with pytest.raises(CallError):
            read_keep(written)


def test_settings_of_a_method_may_hold_rows_of_numbers():
    name, told = split_method("pdrop:layers=8,16,24,ratio=0.5")
    assert name == "pdrop"
    assert told == {"layers": "8,16,24", "ratio": 0.5}
    assert split_method("mine.py:Mine") == ("mine.py:Mine", {})
    assert split_method("mine.py:Mine:power=2") == ("mine.py:Mine", {"power": 2})


CONFIG = """
data = "pocket:test"
block = 20
[[grids]]
methods = ["none", "resprune"]
alpha = [0.25, 1]
[[grids]]
methods = ["random"]
keep = ["1/9", 64]
"""


def test_a_file_says_what_the_command_line_may(tmp_path: Path):
    path = tmp_path / "sweep.toml"
    path.write_text(CONFIG)
    options, grids = read_config(SweepOptions(output=tmp_path, config=path, examples=10))
    assert (options.data, options.block, options.examples) == ("pocket:test", 20, 10)
    names = [one.name for one in configurations(grids)]
    assert names[0] == "none" and "resprune keep=1/9 alpha=1.0" in names
    assert names[-2:] == ["random keep=1/9", "random keep=64"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blok = 3", "'blok' is no option"),
        ("block = '3'", "block is a int, got '3'"),
        ("alpha = 0.5", "alpha is a list of values"),
        ("[[grids]]\nalphas = [1]", "'alphas' is no axis"),
        ("grids = []", "grids is a list of tables"),
        ("grids = [3]", "is a table of axes"),
        ("output = 3", "output is a path"),
        ("process_id = 1", "'process_id' is no option"),
        ("block = 30", "--block 20 and"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, said: str):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(CallError, match=said) as error:
        read_config(SweepOptions(output=tmp_path, config=path, block=20))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "text", "said"),
    [
        ({"alpha": (0.5,)}, "", "--alpha and --preset tables"),
        ({"methods": ("resprune",)}, "", "--methods and --preset tables"),
        ({}, "text = ['prompt']", "--text and --preset tables"),
        ({"preset": "none", "alpha": (0.5,)}, CONFIG, r"--alpha 0.5 and .* grid 0 \[0.25, 1\]"),
        ({"preset": "none", "keep": ("1/3",)}, CONFIG, r"--keep 1/3 and .* grid 1 "),
    ],
)
def test_an_axis_that_would_be_passed_over_is_refused(
    tmp_path: Path, given: dict[str, Any], text: str, said: str
):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    told = {"preset": "tables", **given}
    with pytest.raises(CallError, match=said):
        read_config(SweepOptions(output=tmp_path, config=path, **told))


def test_what_holds_for_every_grid_of_a_preset_or_a_file(tmp_path: Path):
    _, grids = read_config(SweepOptions(output=tmp_path, preset="tables", keep=("1/9",)))
    assert {grid.keep for grid in grids if not grid.tolerance} == {("1/9",)}
    path = tmp_path / "sweep.toml"
    path.write_text("keep = ['1/9']\nalpha = [0.5]\n[[grids]]\nmethods = ['resprune']\n"
                    "[[grids]]\nmethods = ['resprune']\nalpha = [1]\n")  # fmt: skip
    _, grids = read_config(SweepOptions(output=tmp_path, config=path))
    assert [(grid.keep, grid.alpha) for grid in grids] == [(("1/9",), (0.5,)), (("1/9",), (1,))]


@pytest.mark.parametrize("text", ["[", "{", "a = ", ""])
def test_a_file_of_something_else(tmp_path: Path, text: str):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(RunError, match="neither TOML nor JSON"):
        read_config(SweepOptions(output=tmp_path, config=path))


def test_the_presets_are_grids():
    for grids in PRESETS.values():
        found = configurations(grids)
        print(f"{len(found)} configurations, {sum(one.optional for one in found)} of them optional")
        assert len({one.name for one in found}) == len(found)
        for method in ("resprune", "random", "downsample", "none"):
            assert any(one.method == method for one in found)
