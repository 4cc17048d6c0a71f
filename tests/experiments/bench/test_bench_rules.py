"""`resprune bench rules`: every rule on every engine that runs one, figures that hang together."""

import json
from pathlib import Path

import pytest

from resprune_jax.experiments import cli


@pytest.mark.deep
def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rules.json"
    words = ["bench", "rules", "--sizes", "40,16,8", "--repeats", "3", "--output", str(out)]
    assert cli.main(words) == 0
    (row,) = json.loads(out.read_text())["rows"]
    sides = {(side["engine"], side["rule"]): side for side in row["sides"]}
    assert {engine for engine, _ in sides} == {"feature", "gram"} and len(sides) == 10
    for (engine, _), side in sides.items():
        base = sides[engine, "built in"]["ms"]["median"]
        assert side["ms"]["runs"] == 3 and side["ratio"] == side["ms"]["median"] / base
    printed = capsys.readouterr().out
    assert printed.count("CoveredNouns") == 2 and "times the built-in" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--sizes", "40,16"], "write N,d,K"), (["--batch", "0"], "--batch"),
     (["--repeats", "0"], "--repeats"), (["--output", "x.txt"], "--output")],
)  # fmt: skip
def test_wrong_calls(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "rules", *words]) == 2
    assert said in capsys.readouterr().err
