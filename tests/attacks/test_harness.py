"""The harness finds what it is there to find, and loses no outcome."""

import json
from pathlib import Path

import pytest

from tests.attacks import __main__ as command
from tests.attacks import harness
from tests.attacks.harness import Fuzzer, Outcome
from tests.attacks.planted import busy as planted_busy
from tests.attacks.planted import outcomes as planted
from tests.attacks.worker import Worker

PLANTED = planted.__name__


@pytest.fixture(scope="module")
def worker():
    with Worker() as made:
        yield made


@pytest.mark.parametrize("fuzzer", planted.FUZZERS, ids=lambda fuzzer: fuzzer.name)
def test_a_planted_fault_is_found_and_its_neighbours_are_not(
    worker: Worker, fuzzer: Fuzzer
) -> None:
    kinds = [worker.run(PLANTED, fuzzer, seed).kind for seed in range(fuzzer.cases)]
    fault, _ = planted.FAULTS[fuzzer.name]
    assert kinds == ["ok", "refused", fault, "refused"]


def test_limits_are_those_of_a_case_and_not_of_the_process(worker: Worker) -> None:
    """Cases whose CPU time together is far beyond what one may take."""
    (busy,) = planted_busy.FUZZERS
    outcomes = [worker.run(planted_busy.__name__, busy, seed) for seed in range(3)]
    assert [outcome.kind for outcome in outcomes] == ["ok"] * 3, harness.report(outcomes)
    assert sum(outcome.cpu_s for outcome in outcomes) > 1.5 * busy.cpu_s


def test_a_fuzzer_that_does_not_load_is_no_outcome() -> None:
    with Worker() as made, pytest.raises(RuntimeError, match="does not load"):
        made.run("tests.attacks.nowhere", planted.FUZZERS[0], 0)


def test_records_go_on_where_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = next(fuzzer for fuzzer in planted.FUZZERS if fuzzer.name == "two lines")
    monkeypatch.setattr(command, "everything", lambda: [(PLANTED, one)])
    asked: list[int] = []
    real = Worker.run

    def counted(self: Worker, module: str, fuzzer: Fuzzer, seed: int) -> Outcome:
        asked.append(seed)
        return real(self, module, fuzzer, seed)

    monkeypatch.setattr(Worker, "run", counted)
    path = tmp_path / "deep" / "outcomes.jsonl"
    call = ["--file", str(path), "--workers", "1"]
    assert command.main([*call, "--cases", "2"]) == 0 and asked == [0, 1]
    assert command.main(call) == 1 and asked[2:] == [2, 3]
    assert "seed 2: bad message: unprintable '\\n'" in capsys.readouterr().out
    # A line that was being written when the call was killed is not believed; a fault is run again.
    whole = path.read_text()
    path.write_text(whole.rstrip()[:-9])
    assert command.main(call) == 1 and asked[4:] == [2, 3]
    # Another source is another fuzzer.
    monkeypatch.setattr(command, "revision", lambda module: "other")
    assert command.main(call) == 1 and asked[6:] == [0, 1, 2, 3]
    rows = [json.loads(line) for line in path.read_text().split("\n") if '"other"' in line]
    assert {(row["seed"], row["kind"]) for row in rows} == {
        (0, "ok"), (1, "refused"), (2, "bad message"), (3, "refused"),
    }  # fmt: skip
    assert command.main([*call, "--fresh"]) == 1 and len(asked) == 14


def test_fuzzers_are_found_without_a_list() -> None:
    names = harness.modules()
    assert {"tests.attacks.fuzzers.text", "tests.attacks.fuzzers.configs"} <= set(names)
    assert not [name for name in names if "planted" in name or "test_" in name]
    assert len({fuzzer.name for _, fuzzer in harness.everything()}) == len(harness.everything())


def test_a_revision_is_that_of_the_inputs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["tests.attacks.fuzzers.weights", "tests.attacks.fuzzers.words"]
    before = [harness.revision(name) for name in names]
    real = harness.inspect.getsource

    def edited(module: object) -> str:
        return real(module) + "#" * ("mutations" in str(module))

    monkeypatch.setattr(harness.inspect, "getsource", edited)
    after = [harness.revision(name) for name in names]
    assert after[0] != before[0] and after[1] == before[1]


def test_draws_repeat_and_differ() -> None:
    first = [harness.draw(name, seed).integers(1 << 30) for name in "ab" for seed in (0, 1)]
    again = [harness.draw(name, seed).integers(1 << 30) for name in "ab" for seed in (0, 1)]
    assert first == again and len(set(first)) == 4
