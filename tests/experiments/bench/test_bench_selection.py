"""`resprune bench selection` on tiny problems: what it finds, writes, and leaves out."""

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax import engines, select
from resprune_jax.errors import RunError
from resprune_jax.exact import greedy
from resprune_jax.experiments import cli
from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench import rows as bench_rows
from resprune_jax.experiments.bench import selection as bench_selection
from resprune_jax.experiments.bench import timing as bench_timing
from resprune_jax.experiments.bench.budget import Budget
from resprune_jax.experiments.bench.markdown import selection_markdown
from resprune_jax.experiments.bench.problems import (
    ALPHA,
    SIZES,
    Size,
    make_problem,
    parted,
    visual_tokens,
)
from resprune_jax.experiments.bench.rows import Row, measure
from tests.compiles import backend_compiles

SPEED = {"bandwidth": 1e10, "matmul_float32": 1e11, "matmul_bfloat16": 1e11}
SIZE = Size(40, 48, 8)


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, whatever else runs here, and a machine that is measured on small arrays."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(bench_timing, "threads", lambda: 1)
    monkeypatch.setattr(bench_selection, "speeds", lambda: bench_timing.speeds(size=1 << 14))


def row_of(batch: int = 1, *, questions: int = 0, dtype: Any = "float32", **changes: Any) -> Any:
    """Measure a tiny row."""
    options: dict[str, Any] = {
        "names": ("feature",), "repeats": 2, "limit": 60.0, "speed": SPEED,
        "torch_missing": None, "torch_compile": False,
    }  # fmt: skip
    return measure(Row(SIZE, batch, dtype, questions), **(options | changes))


def bench(out: Path, *words: str) -> dict[str, Any]:
    """Run the command on a tiny size; returns its report."""
    command = ["bench", "selection", "--sizes", "40,48,8", "--engines", "feature", *words]
    assert cli.main([*command, "--out", str(out)]) == 0
    report: dict[str, Any] = json.loads((out / "selection.json").read_text())
    return report


def counted(compiles: list[int]) -> Callable[..., Any]:
    """`interleave` that notes how many backend compiles it saw inside."""

    def interleave(*arguments: Any, **options: Any) -> Any:
        with backend_compiles() as seen:
            times = bench_timing.interleave(*arguments, **options)
        compiles.append(len(seen))
        return times

    return interleave


@pytest.mark.deep
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_picks_what_we_pick(dtype: str) -> None:
    decided = 0
    chosen = partial(select, keep=33, alpha=ALPHA, engine="feature")
    for batch, questions in ((3, 0), (1, 3), (1, 0)):
        problem = make_problem(Size(96, 128, 33), batch, dtype, questions=questions)
        # One image, or three questions about one, in the shape of three images: one compile.
        rows = np.arange(3) % problem.rows
        images = problem.tokens[rows % len(problem.tokens)]
        ours = chosen(images, relevance=problem.relevance[rows], first=problem.first[rows])
        sides = list(bench_torch.sides(problem, "cpu", compiled=False))
        assert {side.group for side in sides} == {bench_torch.ALGORITHM_1, bench_torch.CHOLESKY}
        assert len(sides) == (2 if problem.rows == 1 else 3)
        for side in sides:
            theirs = side.call().numpy()
            np.testing.assert_array_equal(
                theirs, ours.indices[: problem.rows], err_msg=f"{side.name} {batch} {questions}"
            )
            decided += theirs.size
    print(f"{decided} picks equal")


def test_torch_chooses_for_generation_as_we_do() -> None:
    problem = make_problem(Size(96, 128, 33), 3, "float32")
    tokens, _, _ = bench_torch.on_device(problem, "cpu")
    nouns = tokens[:, 5:6] + 0.3 * tokens[:, 9:10]
    picks = bench_torch.choose(tokens, nouns, 33).numpy()
    unit = problem.tokens / np.linalg.norm(problem.tokens, axis=-1, keepdims=True)
    noun = nouns.numpy() / np.linalg.norm(nouns.numpy(), axis=-1, keepdims=True)
    relevance = np.maximum((unit @ noun.mT)[..., 0], 0)
    ours = select(problem.tokens, 33, relevance=relevance, alpha=ALPHA, engine="feature")
    np.testing.assert_array_equal(picks, ours.indices)


@pytest.mark.deep
def test_a_row_holds_every_engine_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, backend_compiles() as compiles:
        patch.setattr(bench_rows, "interleave", counted(inside := []))
        row = row_of(names=("auto", *engines.ENGINES))
    own = set(engines.ENGINES) - set(engines.KERNELS)  # the kernels are for other backends
    here = {"auto", *own, "Gram product", "auto: prepare", "auto: the picks"}
    assert here <= set(row["sides"])
    for name, why in row["left_out"].items():
        assert ("runs on a" if name in engines.KERNELS else "when it was tried") in why
    assert inside == [0] and len(compiles) >= len(here)
    assert row["counted"] == "torch Algorithm 1, each"
    for name, side in row["sides"].items():
        ms = side["ms"]
        assert ms["runs"] == 2 and 0 < ms["low"] <= ms["median"] <= ms["high"], name
        ratio = row["sides"][row["counted"]]["ms"]["median"] / ms["median"]
        assert side["ratio"] == pytest.approx(ratio)
    planned = row["sides"]["gram"]["memory"]["planned"]
    assert planned["temporaries"] > 4 * 40 * 40 and planned["outputs"] == 4 * 8
    agreement = row["agreement"]
    assert agreement["against"].startswith("torch Algorithm 1")
    assert {"auto", "auto: the picks", *own} <= set(agreement["sides"])
    assert all(each == {"equal": 1, "of": 1} for each in agreement["sides"].values())


def test_a_new_engine_appears_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, "brand_new", engines.ENGINES["feature"])
    monkeypatch.setattr(engines, "FROM_TOKENS", frozenset({"feature", "brand_new"}))

    def elsewhere(*arguments: Any) -> Any:
        raise NotImplementedError("needs another backend")

    monkeypatch.setitem(engines.ENGINES, "elsewhere", elsewhere)
    names = bench_engines.engine_names()
    assert {"brand_new", "elsewhere"} < set(names)
    row = row_of(torch_missing="left out", names=("feature", "brand_new", "elsewhere"))
    assert row["sides"]["brand_new"]["ms"]["median"] > 0
    assert row["agreement"]["sides"]["brand_new"] == {"equal": 1, "of": 1}
    assert "needs another backend" in row["left_out"]["elsewhere"]
    assert "elsewhere" not in row["sides"]


def test_questions_share_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows, "interleave", counted(inside := []))
    row = row_of(questions=4, names=("auto",), dtype="bfloat16")
    assert row["questions"] == 4 and inside == [0]
    assert {"torch Algorithm 1, shared pass", "torch Algorithm 1, each"} <= set(row["agreement"]
            ["sides"]) | {row["agreement"]["against"]}  # fmt: skip
    assert all(each == {"equal": 4, "of": 4} for each in row["agreement"]["sides"].values())
    # The product is done once for all: the time of one question has no share of its own.
    assert "of_product" not in row["sides"]["auto"] and "auto: prepare" not in row["sides"]


def test_the_choice_by_size_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ValueError("broken")

    for name in engines.ENGINES:
        monkeypatch.setitem(engines.ENGINES, name, broken)
    # Of another size than the other rows: what is compiled already would not be traced again.
    with pytest.raises(RunError, match="auto must run everywhere: ValueError: broken"):
        row_of(7, names=("auto",), torch_missing="left out")


def test_what_takes_too_long_or_too_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of(limit=1e-12)
    assert not row["sides"]
    assert {"feature", "torch Algorithm 1, each"} <= set(row["left_out"])
    assert "would take about" in row["left_out"]["feature"]
    monkeypatch.setattr(bench_rows, "free_memory", lambda: 10_000)
    row = row_of()
    assert "the tokens alone take" in row["left_out"]["all"] and not row["sides"]
    monkeypatch.setattr(bench_rows, "free_memory", lambda: 20_000)
    row = row_of(torch_missing="left out")
    assert "are free" in row["left_out"]["feature"]


@pytest.mark.parametrize(("batch", "questions"), [(1, 0), (2, 0), (1, 3)])
def test_torch_is_left_out_of_large_sizes_by_estimate(
    batch: int, questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_rows.foretell, "WORTH", SIZE.n * SIZE.d * SIZE.keep)
    sizes: list[Size] = []
    sides = bench_torch.sides

    def seen(problem: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(problem.size)
        return sides(problem, *rest, **options)

    monkeypatch.setattr(bench_torch, "sides", seen)
    names = ("feature",) if batch == 1 and not questions else ()
    row = row_of(batch, questions=questions, torch_limit=0.0, names=names)
    # Torch ran at smaller sizes alone: nothing waited for it at this one.
    assert sizes == [Size(5, 48, 1), Size(10, 48, 2)]
    groups = {bench_torch.ALGORITHM_1, bench_torch.CHOLESKY}
    assert set(row["estimates"]) == groups and groups <= set(row["left_out"])
    for group in groups:
        assert "by estimate" in row["left_out"][group] and row["estimates"][group]["ms"] > 0
    # No ratio has an estimate in it, and no time.
    assert row["counted"] is None and row["sides"]
    assert all(side["ratio"] is None for side in row["sides"].values())
    assert not any(name.startswith("torch") for name in row["sides"])
    report = {
        "rows": {"row": row}, "speeds": SPEED, "fits": {},
        "machine": {"device": "x", "cores": 1, "memory_bytes": 1, "jax": "", "torch": "",
                    "python": ""},
    }  # fmt: skip
    words = selection_markdown(report)
    assert words.count("(estimated)") == 2 * len(names) and "**" not in words
    # One that is cheap enough by estimate is measured.
    row = row_of(batch, questions=questions, torch_limit=1e6, names=())
    assert sizes[-1] == SIZE and row["counted"] and not row["estimates"]


def test_small_sizes_are_never_foretold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_rows.foretell, "foretell", None)
    assert row_of(torch_limit=0.0, names=())["counted"]


def stop_at(number: int | None, now: list[float]) -> Any:
    """`measure` that takes a minute, measures nothing, and hears Ctrl-C at a row."""

    def measured(row: Row, **options: Any) -> dict[str, Any]:
        if now[0] / 60 == number:
            signal.raise_signal(signal.SIGINT)
        now[0] += 60
        return {
            "n": row.size.n, "d": row.size.d, "keep": row.size.keep, "batch": row.batch,
            "questions": row.questions, "dtype": row.dtype, "sides": {}, "left_out": {},
            "estimates": {}, "agreement": {}, "counted": None, "seconds": 60.0,
        }  # fmt: skip

    return measured


@pytest.mark.parametrize("ends", ["budget", "signal"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_ends_early_leaves_what_it_measured(
    done: int, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    by_signal = ends == "signal"
    monkeypatch.setattr(bench_selection, "measure", stop_at(done if by_signal else None, now))
    # The clock of the budget is at its end before the first row where none is to be measured.
    start = 0.0 if by_signal or done else 1e9
    clock = iter([0.0])
    monkeypatch.setattr(
        bench_selection,
        "Budget",
        lambda minutes: Budget(minutes, clock=lambda: next(clock, start + now[0])),
    )
    words = ["--batch", "1", "2", "3", "--dtype", "float32", "--without-questions"]
    minutes = [] if by_signal else ["--minutes", str(done or 1)]
    command = ["bench", "selection", "--sizes", "40,48,8", *words, *minutes, "--without-torch"]
    status = cli.main([*command, "--out", str(tmp_path)])
    assert status == (130 if by_signal else 0)
    assert not list(tmp_path.glob("*.partial"))
    report = json.loads((tmp_path / "selection.json").read_text())
    names = [f"40x48 -> 8, batch {batch}, float32" for batch in (1, 2, 3)]
    assert list(report["rows"]) == names[:done]
    why = "not measured (stopped)" if by_signal else "not measured (time budget)"
    assert report["not_measured"] == dict.fromkeys(names[done:], why)
    assert (tmp_path / "selection.md").read_text().count(why) == 3 - done


def test_a_machine_without_a_compiler_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(step: Any) -> Any:
        def fails(*arguments: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

        return fails

    monkeypatch.setattr(bench_torch, "_compile", no_compiler)
    row = row_of(torch_compile=True)
    assert "C++ compiler" in row["left_out"]["torch Algorithm 1, each compiled"]
    assert row["counted"] == "torch Algorithm 1, each"


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batch", "1", "2", "--dtype", "float32", "--repeats", "2", "--without-compile")
    report = bench(tmp_path, *words)
    assert (report["kind"], report["version"]) == ("selection", bench_selection.VERSION)
    assert set(report) == {
        "kind", "version", "machine", "rows", "speeds", "torch", "fits", "not_measured",
    }  # fmt: skip
    assert list(report["rows"]) == [
        "40x48 -> 8, batch 1, float32", "40x48 -> 8, 8 questions, float32",
        "40x48 -> 8, batch 2, float32",
    ]  # fmt: skip
    for row in report["rows"].values():
        assert set(row) == {
            "n", "d", "keep", "batch", "questions", "dtype", "sides", "left_out", "agreement",
            "counted", "seconds", "estimates",
        }  # fmt: skip
        for side in row["sides"].values():
            assert {"group", "memory", "ms", "ratio", "bytes", "bandwidth_share"} <= set(side)
    words = (tmp_path / "selection.md").read_text()
    assert words.count("\n| 40x48 -> 8, batch 1, float32 | ") == 2 and "**" in words
    with Image.open(tmp_path / "selection.png") as picture:
        assert picture.width > 500 and len(picture.getcolors(1 << 20) or [1, 2, 3]) > 2
    printed = capsys.readouterr().out
    assert "the reference" in printed and "8 of 8" in printed and "ratio" in printed


def test_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ("--dtype", "float32", "--repeats", "2", "--without-torch", "--without-questions")
    first = bench(tmp_path, *words, "--batch", "1")
    again = bench(tmp_path, *words, "--batch", "1", "2", "--resume")
    kept = "40x48 -> 8, batch 1, float32"
    assert again["rows"][kept] == first["rows"][kept] and len(again["rows"]) == 2
    assert again["torch"] == "left out" and again["rows"][kept]["counted"] is None
    other = first | {"machine": first["machine"] | {"cores": 999}}
    (tmp_path / "selection.json").write_text(json.dumps(other))
    command = ["bench", "selection", "--sizes", "40,48,8", *words, "--resume", "--out"]
    assert cli.main([*command, str(tmp_path)]) == 2
    assert "another machine or version" in capsys.readouterr().err
    (tmp_path / "selection.json").write_text("{}")
    assert cli.main([*command, str(tmp_path)]) == 2
    assert "no report of this command" in capsys.readouterr().err


def test_it_needs_neither_torch_nor_spacy(
    tmp_path: Path, absent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    absent("torch", "spacy")
    report = bench(tmp_path, "--batch", "1", "--dtype", "float32", "--repeats", "2")
    assert report["torch"] == "torch is not installed"
    assert "torch rows: torch is not installed" in capsys.readouterr().err
    for row in report["rows"].values():
        assert row["left_out"]["torch"] == "torch is not installed" and "feature" in row["sides"]
        assert row["agreement"]["against"] == "feature"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "40,48"], "write N,d,K"),
        (["--sizes", "40,48,41"], "K between 1 and N"),
        (["--batch", "0"], "--batch is 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--torch-limit", "-1"], "--torch-limit is -1"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--engines", "warp"], "'warp' is no engine: there are auto, feature"),
    ],
)
def test_wrong_calls(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "selection", *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tokens_look_like_real_ones() -> None:
    tokens = visual_tokens(Size(240, 64, 1), 2)
    assert np.array_equal(tokens, visual_tokens(Size(240, 64, 1), 2))  # the same every time
    for image in tokens:
        norms = np.linalg.norm(image, axis=1)
        assert norms.min() > 0 and len(np.unique(image, axis=0)) == 240
        assert norms.max() > 4 * np.median(norms)  # a few outliers
        assert (norms > 3 * np.median(norms)).mean() < 0.03
        cosines = (image @ image.T) / norms[:, None] / norms
        neighbours, far = np.diagonal(cosines, 1).mean(), cosines[:60, 180:].mean()
        assert neighbours > far + 0.2 and far > 0.05  # regions, and a mean that all share
        assert np.linalg.matrix_rank(image) == 64
    assert not np.array_equal(tokens[0], tokens[1])


def test_where_two_selections_part() -> None:
    problem = make_problem(Size(30, 16, 5), 1, "float32")
    chosen = np.asarray(
        greedy(
            problem.tokens[0], 5, relevance=problem.relevance[0], alpha=ALPHA,
            first=int(problem.first[0]),
        ).indices
    )  # fmt: skip
    assert parted(problem, 0, chosen, chosen) is None
    other = chosen.copy()
    other[3] = next(i for i in range(30) if i not in chosen)
    found = parted(problem, 0, chosen, other)
    assert found["step"] == 3 and found["gap"] > 1e-4  # a clear mistake, no tie
    twin = problem.tokens.copy()
    twin[0, other[3]] = twin[0, chosen[3]]
    problem.relevance[0, other[3]] = problem.relevance[0, chosen[3]]
    tie = type(problem)(problem.size, "float32", twin, problem.relevance, problem.first)
    assert parted(tie, 0, chosen, other)["gap"] < 1e-12


def test_the_default_rows_are_those_of_the_issue() -> None:
    rows = bench_selection.plan_rows(bench_selection.SelectionOptions())
    assert {row.size for row in rows} == set(SIZES)
    assert {(row.batch, row.dtype) for row in rows if not row.questions} == {
        (batch, dtype) for batch in (1, 8, 32) for dtype in ("float32", "bfloat16")
    }  # fmt: skip
    assert len(rows) == len(SIZES) * 6 + 2 and len(set(rows)) == len(rows)
