"""`resprune bench generate` on a tiny model: its lines, its report, and runs that end early."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import RunError
from resprune_jax.experiments import cli
from resprune_jax.experiments.bench import budget as bench_budget
from resprune_jax.experiments.bench import timing as bench_timing
from resprune_jax.experiments.bench.generation import command, measuring, weights
from resprune_jax.experiments.bench.generation import model as bench_model
from resprune_jax.experiments.bench.generation import report as bench_report
from resprune_jax.experiments.bench.generation.measuring import Bench, UnmeasuredError
from resprune_jax.experiments.bench.generation.plan import Line
from resprune_jax.models.families.llava.config import LlavaConfig
from tests.compiles import backend_compiles
from tests.experiments.bench.generation.tiny import TINY

DRAW = bench_report.draw
MODEL_CONFIG = bench_model.model_config
WORDS = ("--new-tokens", "3", "--repeats", "2")
QUICK = ("--without-compile",)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, one thread, a machine that is measured on small arrays."""
    import torch

    torch.set_num_threads(1)
    speeds = {"bandwidth": 1e10, "matmul_float32": 1e11, "matmul_bfloat16": 1e11}
    monkeypatch.setattr(bench_timing, "threads", lambda: 1)
    monkeypatch.setattr(command, "speeds", lambda: speeds)
    monkeypatch.setattr(bench_model, "model_config", lambda name: (TINY, "float32"))


def bench(
    out: Path, *words: str, keep: str = "6", batch: str = "2", status: int = 0
) -> dict[str, Any]:
    asked = ["--keep", *keep.split(), "--batch", *batch.split(), *WORDS, *words]
    assert cli.main(["bench", "generate", *asked, "--out", str(out)]) == status
    report: dict[str, Any] = json.loads((out / "generate.json").read_text())
    return report


def sides(report: dict[str, Any], row: str = "batch 2") -> dict[tuple[str, int | None], Any]:
    return {(side["way"], side["keep"]): side for side in report["rows"][row]["sides"]}


def reasons(report: dict[str, Any], row: str = "batch 2") -> dict[tuple[str, int | None], str]:
    left = report["rows"][row]["not_measured"]
    return {(one["way"], one["keep"]): one["why"] for one in left}


@pytest.mark.deep
def test_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        with backend_compiles() as seen:
            times = bench_timing.interleave_parts(*arguments, **options)
        inside.append(len(seen))
        return times

    monkeypatch.setattr(measuring, "interleave_parts", counted)
    report = bench(tmp_path)
    assert inside == [0]  # nothing compiles while passes are timed
    assert report["kind"] == "generate" and report["torch"] is None
    assert report["model"]["visual_tokens"] == 16 and report["model"]["parameters"] > 1000
    (row,) = report["rows"].values()
    assert (row["batch"], row["new_tokens"]) == (2, 3) and not row["not_measured"]
    found = sides(report)
    ways = ("here", "eager", "compiled")
    assert set(found) == {(way, keep) for way in ways for keep in (None, 6)}
    assert report["left_out"] == {"flash": "flash-attn needs a GPU"}
    for (_, keep), side in found.items():
        ms = side["ms"]
        assert set(ms) == {"encode", "select", "prefill", "decode", "first_token", "token"}
        assert side["in_turn"] and side["ready_s"] > 0
        assert all(part["runs"] == 2 and part["median"] > 0 for part in ms.values())
        # The choice is inside the time to the first token.
        assert ms["first_token"]["least"] >= ms["select"]["least"] + ms["prefill"]["least"]
        assert ms["token"]["median"] == pytest.approx(ms["decode"]["median"] / 2)
        assert ("speedup" in side) == ("realised" in side) == (keep is not None)
        assert keep is None or (side["speedup"] > 1) != ("why" in side)
    assert found["here", 6]["memory"]["planned"] > 0
    # One and the same model on both sides: the same weights, the same answers, whatever the way.
    assert row["tokens_equal"] == 1.0
    assert all(found["compiled", keep]["equal_to_eager"] == 1.0 for keep in (None, 6))
    words = (tmp_path / "generate.md").read_text()
    assert words.count("\n| batch 2") == 6 and "realised" in words
    with Image.open(tmp_path / "generate.png") as picture:
        assert picture.width > 500
    printed = capsys.readouterr().out
    assert "batch 2, milliseconds" in printed and "100.0% of the tokens equal" in printed
    assert "compiling and the first pass took" in printed


def entry(line: Line, milliseconds: float) -> dict[str, Any]:
    """A line as it would have been measured."""
    part = bench_timing.Timing((milliseconds / 1e3,) * 3)
    return line.head | {
        "ready_s": 1.0, "in_turn": False, "notes": [],
        "memory": {"planned": None, "measured": 1 << 20},
        "ms": measuring.times(dict.fromkeys(measuring.PARTS, part), 3),
    }  # fmt: skip


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    """A bench that measures nothing and is quick about it; what it was asked for, in order."""
    seen: list[Line] = []

    def look(self: Bench, line: Line) -> dict[str, Any]:
        seen.append(line)
        return entry(line, 5.0 if line.keep else 9.0)

    monkeypatch.setattr(Bench, "look", look)
    monkeypatch.setattr(bench_report, "draw", lambda made, path: path.write_bytes(b""))
    return seen


def valid(out: Path) -> dict[str, Any]:
    """The files of a run that ended early: whole, and no other beside them."""
    assert not list(out.glob("*.partial"))
    report: dict[str, Any] = json.loads((out / "generate.json").read_text())
    words = (out / "generate.md").read_text()
    lines = [line for line in words.splitlines() if line.startswith("| batch ")]
    assert len(lines) == sum(
        len(row["sides"]) + len(row["not_measured"]) for row in report["rows"].values()
    )
    unmeasured = sum("| not measured |" in line for line in lines)
    assert unmeasured == sum(len(row["not_measured"]) for row in report["rows"].values())
    for row in report["rows"]:  # both files tell of the same end
        assert all(why in words for why in reasons(report, row).values())
    return report


@pytest.mark.parametrize("lines", [0, 1, 3, 5])
def test_a_stopped_run_leaves_what_it_measured(
    lines: int, looked_at: list[Line], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    look: Any = Bench.look

    def until(self: Bench, line: Line) -> dict[str, Any]:
        if len(looked_at) == lines:
            signal.raise_signal(signal.SIGINT)
        made: dict[str, Any] = look(self, line)
        return made

    monkeypatch.setattr(Bench, "look", until)
    report = bench(tmp_path, keep="6 3", status=130)
    assert report == valid(tmp_path)
    assert list(sides(report)) == [(line.way, line.keep) for line in looked_at]
    assert len(looked_at) == lines and len(reasons(report)) == 9 - lines
    assert set(reasons(report).values()) == {"not measured (stopped)"}
    monkeypatch.setattr(Bench, "look", look)
    looked_at.clear()
    again = bench(tmp_path, "--resume", keep="6 3")
    assert len(looked_at) == 9 - lines and not reasons(again) and len(sides(again)) == 9


@pytest.mark.parametrize(("minutes", "done"), [(0.5, 1), (2.5, 3), (3.5, 3), (4, 4), (60, 12)])
def test_a_budget_ends_a_run(
    minutes: float, done: int, looked_at: list[Line], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    now = [0.0]
    look: Any = Bench.look

    def minute(self: Bench, line: Line) -> dict[str, Any]:
        now[0] += 60
        self.took = 60.0
        made: dict[str, Any] = look(self, line)
        return made

    monkeypatch.setattr(Bench, "look", minute)
    monkeypatch.setattr(
        command, "Budget", lambda m: bench_budget.Budget(m, clock=lambda: now[0])
    )  # fmt: skip
    report = bench(tmp_path, *QUICK, "--minutes", str(minutes), keep="3 6", batch="1 2")
    assert report == valid(tmp_path)
    # The full model and one budget of every batch come first, ours before theirs.
    order = [(1, "here", None), (1, "here", 3), (1, "eager", None), (1, "eager", 3)]
    order += [(2, way, keep) for _, way, keep in order]
    order += [(batch, way, 6) for batch in (1, 2) for way in ("here", "eager")]
    assert [(line.batch, line.way, line.keep) for line in looked_at] == order[:done]
    left = [why for row in report["rows"] for why in reasons(report, row).values()]
    assert left == ["not measured (time budget)"] * (12 - done)
    assert (tmp_path / "generate.png").is_file()


def test_what_the_machine_cannot_do_is_named(
    looked_at: list[Line], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    look: Any = Bench.look

    def no_compiler(self: Bench, line: Line) -> dict[str, Any]:
        if line.way == "compiled":
            raise UnmeasuredError("InvalidCxxCompiler: no working compiler found")
        made: dict[str, Any] = look(self, line)
        return made

    monkeypatch.setattr(Bench, "look", no_compiler)
    monkeypatch.setattr(bench_report, "draw", DRAW)
    report = valid_of(bench(tmp_path), tmp_path)
    with Image.open(tmp_path / "generate.png") as picture:
        assert picture.width > 500
    why = "InvalidCxxCompiler: no working compiler found"
    assert reasons(report) == {("compiled", None): why, ("compiled", 6): why}
    assert set(sides(report)) == {(way, keep) for way in ("here", "eager") for keep in (None, 6)}
    assert why in (tmp_path / "generate.md").read_text()
    assert "flash-attn needs a GPU" in capsys.readouterr().out
    assert bench(tmp_path, *QUICK)["left_out"]["compiled"] == "--without-compile"


def valid_of(report: dict[str, Any], out: Path) -> dict[str, Any]:
    assert report == valid(out)
    return report


def test_a_failed_run_leaves_what_it_measured(
    looked_at: list[Line], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(self: Bench, *rest: Any) -> Any:
        raise RunError("1 compiles inside the timed region")

    monkeypatch.setattr(Bench, "rounds", fails)
    report = bench(tmp_path, *QUICK, batch="1 2", status=1)
    assert report == valid(tmp_path)
    assert len(sides(report, "batch 1")) == 4 and not sides(report)
    assert set(reasons(report).values()) == {"not measured (the run failed)"}


def test_rounds_that_do_not_fit_leave_the_first_figures(
    looked_at: list[Line], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def too_much(self: Bench, *rest: Any) -> Any:
        raise MemoryError("all of them together")

    monkeypatch.setattr(Bench, "rounds", too_much)
    report = valid_of(bench(tmp_path, *QUICK, batch="1 2"), tmp_path)
    for row in report["rows"].values():
        assert len(row["sides"]) == 4 and not any(side["in_turn"] for side in row["sides"])
        assert row["notes"] == ["no rounds in turn: MemoryError: all of them together"]
    assert (tmp_path / "generate.md").read_text().count("all of them together") == 2


def test_resume_refuses_what_does_not_fit(
    looked_at: list[Line], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bench(tmp_path, *QUICK)
    words = ["bench", "generate", "--out", str(tmp_path), "--keep", "6", "--resume"]
    assert cli.main([*words, "--new-tokens", "5"]) == 2
    assert "--new-tokens 3, not 5" in capsys.readouterr().err
    other = TINY | {"text_config": TINY["text_config"] | {"num_hidden_layers": 2}}
    monkeypatch.setattr(bench_model, "model_config", lambda name: (other, "float32"))
    assert cli.main([*words, "--new-tokens", "3"]) == 2
    assert "about another model" in capsys.readouterr().err


@pytest.mark.deep
def test_without_torch_and_spacy_and_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    absent: Callable[..., None],
) -> None:
    absent("torch", "spacy")
    first = bench(tmp_path)
    assert first["torch"] == "torch is not installed"
    assert set(sides(first)) == {("here", None), ("here", 6)}
    monkeypatch.setattr(Bench, "look", None)
    again = bench(tmp_path, "--resume")
    assert again["rows"] == first["rows"]
    assert "batch 2, here, all: kept" in capsys.readouterr().err
    assert "torch is not installed" in (tmp_path / "generate.md").read_text()


@pytest.mark.deep
def test_random_weights_are_the_same_every_time() -> None:
    config = LlavaConfig.from_hf(TINY)
    leaves, again = (jax.tree.leaves(weights.random_state(config, np.float32)) for _ in "12")
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert all(np.array_equal(a, b) for a, b in zip(leaves, again, strict=True))
    assert len({leaf.tobytes() for leaf in map(np.asarray, leaves) if leaf.std() > 0}) > 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "16"], "the model has 16 visual tokens; keep fewer"),
        (["--keep", "0"], "--keep is 0"),
        (["--new-tokens", "1"], "--new-tokens is 1"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--minutes", "nan"], "--minutes is nan"),
    ],
)
def test_wrong_calls(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "generate", *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_models_of_the_benchmark() -> None:
    for name, hidden, layers, dtype in (
        ("small", 512, 12, "float32"), ("llava-1.5-7b", 4096, 32, "bfloat16"),
    ):  # fmt: skip
        hf, precision = MODEL_CONFIG(name)
        config = LlavaConfig.from_hf(hf)
        assert config.num_visual_tokens == 576 and precision == dtype
        assert (config.text.hidden_size, config.text.num_layers) == (hidden, layers)
