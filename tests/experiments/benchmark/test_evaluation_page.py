"""docs/how_to/evaluation.md: its programs run, its tables name what there is, as its rule says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.experiments.benchmark.run.catalogue import FACTS
from resprune_jax.experiments.benchmark.run.data import open_benchmark
from resprune_jax.experiments.benchmark.scoring import HEADLINE

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "how_to" / "evaluation.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(start: str) -> tuple[dict[str, Any], str]:
    (code,) = [each for each in PROGRAMS if each.startswith(start)]
    known: dict[str, Any] = {}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "docs/how_to/evaluation.md", "exec"), known)
    return known, said.getvalue()


def test_the_estimates_follow_their_rule() -> None:
    known, said = run("MS = ")
    assert said in PAGE and known["SIZES"].keys() == FACTS.keys()
    measured = (DOCS / "explanation" / "performance.md").read_text("utf-8")
    measured = measured.split("## On a GPU")[1]
    for tokens, (choosing, prefill, further) in known["MS"].items():
        label = "all" if tokens == "full" else tokens
        (row,) = re.findall(rf"^\| batch 32, here, {label} \|(.*)$", measured, re.MULTILINE)
        encoding, chosen, filled, _, token, *_ = row.split("|")
        assert float(chosen.strip() or 0) == choosing and abs(float(encoding) - 36) < 1
        assert (float(filled), float(token)) == (prefill, further)


def test_the_file_of_pocket_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("import io")
    bench = open_benchmark("pope", "pope.parquet")
    assert len(bench.examples) == 40
    splits = {example.category for example in bench.examples}
    assert splits == {"adversarial", "popular", "random"}


def test_the_lines_of_python() -> None:
    known, _ = run("from resprune_jax.experiments.benchmark.prompts")
    assert known["figures"]["f1/mean"] == 100 and "single word" in known["asked"]


def test_every_benchmark_and_column_is_named() -> None:
    table = PAGE.split("## What to download")[1].split("## What comes out")[0]
    lines = {
        cells[1].strip().strip("`"): cells[4]
        for line in table.splitlines()
        if len(cells := line.split("|")) > 6
    }
    for name, facts in FACTS.items():
        needed, _, more = lines[name].partition("(")
        assert set(re.findall(r"`([\w-]+)`", needed)) == set(facts.needed)
        assert set(re.findall(r"`([\w-]+)`", more)) == set(facts.more)
        assert not facts.submission or facts.submission.split(".")[0] in PAGE
    assert all(f"`{figure}`" in PAGE for figure in HEADLINE.values())
