"""`resprune bench serve`: its figures from invented rounds, and a real run of few requests."""

import json
from pathlib import Path

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.bench.serving.command import (
    Round,
    ServeBenchOptions,
    markdown,
    report_of,
    run,
)


def _round(seconds: float, texts: list[str], rows: float, cpu: float | None) -> Round:
    return Round(seconds, [seconds / 2] * len(texts), texts, 0.0, rows, cpu)


def test_figures_are_those_of_the_middle_round() -> None:
    options = ServeBenchOptions(clients=2)
    alone = [_round(seconds, ["a", "b"], 1.0, 0.05) for seconds in (0.2, 0.1, 0.9)]
    together = [
        _round(seconds, ["a", text], 2.0, 0.04)
        for seconds, text in ((0.1, "b"), (0.05, "b"), (0.3, "c"))
    ]
    report = report_of(options, alone, together)
    assert report["sides"]["one after the other"]["per_second"] == 10
    assert report["sides"]["together"]["per_second"] == 20
    assert report["sides"]["together"]["cpu_ms"] == 20
    assert report["times_the_throughput"] == 2
    assert report["equal_answers"] == 5 / 6
    report["machine"] |= {"platform": "cpu", "cores": 2}
    assert "2.0 times the throughput; 83.3% of the answers are equal" in markdown(report)
    assert "20 ms of CPU each these cores answer 100 a second at most" in markdown(report)


def test_a_system_that_tells_no_cpu_time_limits_nothing() -> None:
    rounds = [_round(0.1, ["a"], 1.0, None)]
    report = report_of(ServeBenchOptions(clients=1), rounds, rounds)
    assert report["sides"]["together"]["cpu_ms"] is None
    assert "at most" not in markdown(report)


def test_one_client_has_nothing_to_come_together() -> None:
    with pytest.raises(CallError, match="give 2 or more"):
        run(ServeBenchOptions(clients=1))


@pytest.mark.serve
def test_a_real_run(tmp_path: Path) -> None:
    options = ServeBenchOptions(clients=3, rounds=1, new_tokens=2, out=tmp_path)
    assert run(options) == 0
    report = json.loads((tmp_path / "serve.json").read_text())
    alone, together = report["sides"].values()
    assert alone["batch_rows"] == 1 < together["batch_rows"]
    assert report["equal_answers"] == 1
    assert 0 < alone["cpu_ms"] < 10_000
    assert "requests a second" in (tmp_path / "serve.md").read_text()
