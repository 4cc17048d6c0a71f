"""`resprune report` from end to end, its pictures, and budgets by error."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli
from resprune_jax.experiments.report.figures import figures
from resprune_jax.experiments.report.measured import Measured
from resprune_jax.experiments.report.reading import read_results
from resprune_jax.experiments.report.settings import Choice
from resprune_jax.experiments.report.tables import Maker
from resprune_jax.experiments.report.tolerance import above_fixed, points
from tests.experiments.report.folders import FULL, budget, configuration, examples, write

KEEPS = ("1/3", "2/9", "1/9")
TOLERANCES = (0.2, 0.05)
CONFIGURATIONS = [
    FULL,
    *(configuration(name, keep) for keep in KEEPS for name in ("random", "divprune", "resprune")),
    *(configuration("resprune", "1/3", tolerance=one) for one in TOLERANCES),
]
IMAGES = 30
FIGURES = ("accuracy", "residual", "tolerance")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which every figure can be made; one row failed."""
    asked = examples(IMAGES, ["count", "text"])
    rng = np.random.default_rng(0)
    right = {"none": 0.95, "resprune": 0.85, "divprune": 0.8, "random": 0.5}
    shape = len(CONFIGURATIONS), len(asked)
    chance = np.array([right[one["method"]] for one in CONFIGURATIONS])
    scores = (rng.random(shape) < chance[:, None]).astype(float)
    scores[2, 7] = np.nan
    kept = np.array([[budget(one["keep"])] * shape[1] for one in CONFIGURATIONS])
    # Half of the images need few tokens; the other half all that may be.
    kept[-2:, ::2] = [[16], [32]]
    residual = rng.uniform(0.05, 0.4, shape)
    residual[0] = np.nan
    folder = tmp_path_factory.mktemp("report") / "run"
    return write(folder, CONFIGURATIONS, asked, scores, kept=kept, residual=residual,
                 run={"data": "pocket:validation"})  # fmt: skip


def measured(run: Path) -> tuple[Choice, Measured]:
    results = read_results([run])
    choice = Choice(results, "resprune")
    return choice, Measured(results, choice.settings, choice.full)


def test_a_report_in_every_format(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["report", str(run), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ("cases", "costs", "table-i", "tolerance")
    assert made == sorted([
        "configurations.csv", "report.md", "report.tex",
        *(f"tables/{name}.{kind}" for name in names for kind in ("csv", "tex")),
        *(f"figures/{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")),
    ])  # fmt: skip
    assert "left out: The seed token" in said and "downsample was not run" in said
    page = (out / "report.md").read_text("utf-8")
    assert "1 of 720 rows failed" in page and "divprune keep=1/3, test/00003/1: no image" in page
    for kind, file in re.findall(
        r"(!\[|\\input|\\includegraphics)[^(]*\((figures/\w+.png)\)", page
    ):
        assert kind and (out / file).is_file()
    tex = (out / "report.tex").read_text("utf-8")
    named = re.findall(r"\\(?:input|includegraphics\[[^]]*\])\{([^}]+)\}", tex)
    assert len(named) == 7 and all((out / file).is_file() for file in named)
    for name in FIGURES:
        with Image.open(out / f"figures/{name}.png") as file:
            picture = np.asarray(file.convert("RGB"))
        assert picture.shape[1] > 1000 and (picture == [213, 94, 0]).all(-1).sum() > 200
        assert (out / f"figures/{name}.pdf").read_bytes().startswith(b"%PDF-")


def test_the_same_results_give_the_same_bytes(run, tmp_path):
    words = ["report", str(run), "--tables", "I,tolerance", "--format", "csv,md"]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        assert cli.main([*words, "--output", str(folder)]) == 0
    made = [{p.name: p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert made[0] == made[1] and len(made[0]) == 4
    assert cli.main([*words, "--output", str(tmp_path / "c"), "--rng-seed", "1"]) == 0
    assert (tmp_path / "c/tables/table-i.csv").read_bytes() != made[0]["table-i.csv"]
    _, draw = figures(Maker(*measured(run), "llava-1.5"))["tolerance"]
    assert draw(["pdf"]) == draw(["pdf"])


def test_markdown_without_a_folder(run, capsys):
    assert cli.main(["report", str(run), "--tables", "1,7", "--against", "divprune"]) == 0
    said = capsys.readouterr().out
    assert "| **divprune** |" in said and "## Left out" in said and "seed_rule of divprune" in said


def test_a_run_that_is_never_at_the_base_says_where_it_is(tmp_path, capsys):
    told = [FULL, *(configuration("resprune", "1/9", alpha=a, tagger="lexicon") for a in (0, 0.5))]
    asked = examples(6, ["count"])
    write(tmp_path / "run", told, asked, np.ones((3, 6)))
    words = ["report", str(tmp_path / "run"), "--tables", "1,5"]
    assert cli.main([*words, "--base", "alpha=0.5"]) == 1
    assert "no resprune at the base was run: with --base tagger=lexicon it was" in (
        capsys.readouterr().err
    )
    assert cli.main([*words, "--base", "alpha=0.5", "tagger=lexicon"]) == 0
    assert "| **0.5** |" in capsys.readouterr().out


def test_a_method_that_failed_on_every_example(tmp_path):
    """It is in the tables with 0, and takes no place in figures."""
    asked = examples(10, ["count", "text"])
    scores = np.ones((len(CONFIGURATIONS), 20))
    columns = {"kept": np.array([[budget(one["keep"])] * 20 for one in CONFIGURATIONS], float)}
    for name in ("average", "visual_tokens"):
        columns[name] = columns["kept"].copy()
    for n, one in enumerate(CONFIGURATIONS):
        if one["method"] == "random" or "tolerance" in one:
            for values in (scores, *columns.values()):
                values[n] = np.nan
    write(tmp_path / "run", CONFIGURATIONS, asked, scores, **columns)
    out = tmp_path / "out"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(out)]) == 0
    page = (out / "report.md").read_text("utf-8")
    assert page.count("| random | 0.0↓ |") == 3 and "100 of 240 rows failed, in 5 conf" in page
    assert (out / "figures" / "accuracy.png").exists()
    assert not (out / "figures" / "tolerance.png").exists()


@pytest.mark.parametrize("others", [8, 30])
def test_every_method_is_named_in_the_figure(tmp_path, others):
    """Beside its line's end, or in the corner: what ends at more tokens, or all where many are."""
    names = ["resprune", "random", *(f"other-{n:02}" for n in range(others))]
    told = [FULL, *(configuration(m, k) for m in names for k in ("1/3", "1/9"))]
    asked = examples(10, ["count", "text"])
    kept = np.array([[budget(one["keep"])] * 20 for one in told], float)
    average = np.where(kept == 16, 16 + 60 * np.array([["05" in c["name"]] for c in told]), kept)
    scores = np.ones((len(told), 20))
    scores[[n for n, one in enumerate(told) if one["method"] == "other-07"], :19] = 0
    write(tmp_path / "run", told, asked, scores, kept=kept, average=average)
    _, draw = figures(Maker(*measured(tmp_path / "run"), "llava-1.5"))["accuracy"]
    (axes,) = draw.args[0]().axes
    texts = [each.get_text() for each in axes.texts]
    (corner,) = [text for text in texts if "grey" in text]
    for name in names:
        assert sum(bool(re.search(rf"\b{name}\b", text)) for text in texts) == 1, name
    listed = re.findall(r"other-\d\d(?: \(below\))?", corner)
    assert listed[-1] == "other-07 (below)" and ("other-05" in listed[:-1])
    assert len(listed) == (2 if others == 8 else others - 5)  # five others are coloured
    heights = sorted(each.xy[1] for each in axes.texts if each.get_text() != corner)
    low, high = axes.get_ylim()
    assert np.diff(heights).min() > 0.025 * (high - low) and max(axes.get_yticks()) <= 100


@pytest.mark.parametrize("every", [False, True])
def test_settings_that_keep_no_token_take_no_place_in_figures(tmp_path, every):
    told = [FULL, *(configuration(m, k) for m in ("resprune", "random") for k in ("1/3", "1/9"))]
    kept = np.array([[budget(one["keep"])] * 12 for one in told], float)
    kept[1 if every else 3 :] = 0
    asked = examples(6, ["count", "text"])
    write(tmp_path / "run", told, asked, np.ones((5, 12)), kept=kept, average=kept)
    out = tmp_path / "out"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(out)]) == 0
    assert (out / "figures" / "accuracy.png").exists() is not every
    assert "random" in (out / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "no results folder"),
        (["{run}", "--tables", "1,2"], 2, "unknown --tables word '2'"),
        (["{run}", "--tables", "4,IV"], 2, "names 4 twice"),
        (["{run}", "--format", ","], 2, "--format is empty"),
        (["{run}", "--base", "gamma=1"], 2, "write AXIS=VALUE"),
        (["{run}", "--against", "spare"], 2, "no method 'spare'"),
        (["{run}", "{run}"], 2, "is given twice"),
        (["{run}/rows"], 2, "no sweep.json"),
        (["{run}x"], 2, "does not exist"),
        (["{run}", "--tables", "4,hard"], 1, "no table that is asked for"),
        (["{run}", "--output", "{run}/sweep.json"], 2, "--output"),
        (["{run}", "--rng-seed", "-1"], 2, "--rng-seed"),
        (["{run}", "--case", "test/00000/0"], 2, "give --output, and png or pdf"),
        (["{run}", "--case", "x", "--output", "{run}-out", "--format", "md"], 2, "png or pdf"),
        (["{run}", "--case", "x", "--output", "{run}-out"], 2, "it has changed since"),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(
    words: list[str], status: int, says: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", *(word.replace("{run}", str(run)) for word in words)]) == status
    error = capsys.readouterr().err
    assert error.startswith("resprune: ") and error.count("\n") == 1 and says in error


def test_points_of_fixed_budgets_and_budgets_by_error(run):
    choice, own = measured(run)
    fixed, by_error = points(choice, own)
    assert [(one.keep, one.kept.value) for one in fixed] == [
        ("1/9", 16), ("2/9", 32), ("1/3", 48), (None, 144)
    ]  # fmt: skip
    assert [(one.tolerance, one.kept.value) for one in by_error] == [(0.2, 32), (0.05, 40)]
    assert all(one.kept.low <= one.kept.value <= one.kept.high for one in [*fixed, *by_error])
    for one in [*fixed, *by_error]:
        accuracy = own.scores[one.setting].mean()
        assert one.accuracy.value == accuracy
        assert np.allclose(one.accuracy_samples.mean(), accuracy, atol=0.01)


def test_the_gain_over_fixed_budgets_against_a_loop(run):
    choice, own = measured(run)
    fixed, by_error = points(choice, own)
    # In every sample: a straight line over log tokens between the two budgets around it.
    for one in by_error:
        slow = []
        for r, kept in enumerate(one.kept_samples):
            below, above = max(p for p in (16, 32, 48) if p <= kept), min(
                p for p in (32, 48, 144) if p > kept)  # fmt: skip
            low, high = (
                next(p for p in fixed if p.kept.value == at).accuracy_samples[r]
                for at in (below, above)
            )
            part = (np.log(kept) - np.log(below)) / (np.log(above) - np.log(below))
            slow.append(one.accuracy_samples[r] - (low + part * (high - low)))
        gain = above_fixed(one, fixed)
        assert np.allclose([gain.low, gain.high], np.quantile(slow, [0.025, 0.975]))
        assert gain.low < gain.value < gain.high
    # Fewer tokens than any fixed budget: nothing to set it against.
    assert np.isnan(above_fixed(by_error[0], fixed[2:]).value)
    same = above_fixed(fixed[1], fixed)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.deep
def test_a_case_study_of_a_real_sweep(tmp_path, capsys):
    """Sweep, report and picture; the model answers again what it answered in the sweep."""
    run, out = str(tmp_path / "run"), tmp_path / "out"
    methods = ["--methods", "none", "resprune", "random", "downsample", "--keep", "1/9"]
    assert cli.main(["sweep", *methods, "--alpha", "0.75", "--examples", "5", "--output", run]) == 0
    words = ["report", run, "--output", str(out), "--tables", "1", "--format", "md,png"]
    assert cli.main([*words, "--case", "validation/00000/9"]) == 2
    assert "is no example of this run" in capsys.readouterr().err
    assert cli.main([*words, "--case", "validation/00000/3"]) == 0
    assert "figures/case.png" in (out / "report.md").read_text("utf-8")
    assert "in the results" not in capsys.readouterr().err
    # Three panels: downsampling keeps no tokens.
    with Image.open(out / "figures/case.png") as picture:
        assert 2 < picture.width / picture.height < 3.2
