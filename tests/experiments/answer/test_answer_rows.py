"""Runs of many rows: nothing finished is lost, one bad row ends nothing, settings do not mix."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.answer.command import AnswerOptions
from resprune_jax.experiments.answer.results import Results
from resprune_jax.experiments.answer.rows import Row, read_rows
from tests.experiments.fakes import FakeLVLM, picture

ROWS = 11


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Eleven rows about three images, in a folder of their own."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in [("a.png", "red"), ("b.png", "green"), ("c.png", "blue")]:
        picture(folder / name, colour)
    rows = [{"image": f"{'abc'[i % 3]}.png", "prompt": f"question {i}?"} for i in range(ROWS)]
    return write_rows(folder / "rows.jsonl", rows)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def options(questions: Path, output: Path | None, **more: Any) -> AnswerOptions:
    more = {"model": "somewhere", "batch_size": 2, **more}
    return AnswerOptions(rows=questions, output=output, **more)


def run(questions: Path, output: Path | None, **more: Any) -> tuple[int, FakeLVLM]:
    fake = more.pop("fake", None) or FakeLVLM()
    return answer.run(options(questions, output, **more), load=lambda _: fake), fake


def test_a_run_answers_every_row_once(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    status, fake = run(questions, out, keep="4")
    results = read(out)
    assert status == 0
    assert [r["row"] for r in results] == list(range(ROWS))
    assert [len(batch) for batch in fake.batches] == [2, 2, 2, 2, 2, 1]
    for i, result in enumerate(results):
        image = f"{'abc'[i % 3]}.png"
        assert result["answer"] == f"question {i}? {image}"
        assert (result["image"], result["kept"], result["visual_tokens"]) == (image, 4, 16)
        assert result["noun_backend"] == "fake" and result["nouns"] == ["cup"]
        assert result["settings"]["model"] == "somewhere"


# A process of its own, killed for good in the middle of its fourth batch.
KILLED = """
import sys
from pathlib import Path
from resprune_jax.experiments.answer import command as answer
from tests.experiments.fakes import FakeLVLM
options = answer.AnswerOptions(
    model="somewhere", rows=Path(sys.argv[1]), output=Path(sys.argv[2]), batch_size=2
)
answer.run(options, load=lambda _: FakeLVLM(kill_at=3))
"""


def test_a_killed_run_loses_nothing_that_it_finished(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(questions), str(out)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    before = read(out)
    assert [r["row"] for r in before] == list(range(6))

    status, fake = run(questions, out)
    after = read(out)
    assert status == 0
    assert after[:6] == before  # not one finished row was touched
    assert sorted(r["row"] for r in after) == list(range(ROWS))
    asked = [prompt for batch in fake.batches for _, prompt in batch]
    assert asked == [f"question {i}?" for i in range(6, ROWS)]


def test_a_file_cut_at_any_byte_resumes(questions: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    run(questions, whole)
    content = whole.read_bytes()
    lines = content.splitlines(keepends=True)
    start = sum(map(len, lines[:2]))
    end = start + len(lines[2])
    cuts = [*range(start, end - 2, 9), end - 2, end - 1, end, 0, 1, len(content) - 1, len(content)]
    out = tmp_path / "cut.jsonl"
    for cut in cuts:
        out.write_bytes(content[:cut])
        whole_lines = content[:cut].count(b"\n")
        # A line that lacks only its line break is whole, and must not be asked again.
        whole_lines += cut < len(content) and content[cut : cut + 1] == b"\n"
        status, fake = run(questions, out)
        assert status == 0
        assert out.read_bytes().splitlines()[:whole_lines] == content.splitlines()[:whole_lines]
        assert sorted(r["row"] for r in read(out)) == list(range(ROWS))
        assert sum(map(len, fake.batches)) == ROWS - whole_lines
    print(f"resumed from {len(cuts)} cuts")


def test_a_finished_run_does_not_load_the_model(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(questions, out)
    before = out.read_bytes()

    def refuse(_: AnswerOptions) -> Any:
        raise AssertionError("the model was loaded")

    assert answer.run(options(questions, out), load=refuse) == 0
    assert out.read_bytes() == before


def bad_rows(folder: Path) -> Path:
    (folder / "cut.png").write_bytes(picture(folder / "a.png").read_bytes()[:40])
    (folder / "empty.png").write_bytes(b"")
    rows: list[Any] = [
        {"image": "a.png", "prompt": "zero?", "id": "q-0"},
        {"image": "cut.png", "prompt": "one?"},
        {"image": "empty.png", "prompt": "two?"},
        {"image": "missing.png", "prompt": "three?"},
        {"image": "a.png", "prompt": "  "},
        {"image": "a.png"},
        {"image": "a.png", "prompt": "long " * 400},
        {"image": "a.png", "prompt": "seven?", "keep": 0},
        {"image": "a.png", "prompt": "eight?", "keep": 2.5},
        {"image": "a.png", "prompt": "NaN?"},
        {"prompt": "ten?"},
        ["no", "object"],
        {"image": "a.png", "prompt": "twelve?", "keep": 3},
        {"image": "a.png", "prompt": "thirteen?", "keep": None},
    ]
    path = write_rows(folder / "bad.jsonl", rows)
    path.write_text(path.read_text() + '{"image": "a.png", "prompt": \n')
    return path


GOOD = {0, 12, 13}


def test_bad_rows_fail_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    status, fake = run(bad_rows(tmp_path), out, batch_size=4, keep="0.5")
    results = {r["row"]: r for r in read(out)}
    assert status == 1
    assert len(results) == 15 and len(read(out)) == 15
    assert {i for i, r in results.items() if "error" not in r} == GOOD
    assert results[0]["id"] == "q-0" and results[0]["keep"] == 0.5
    assert results[12]["kept"] == 3 and results[13]["kept"] == 16
    expected = {1: "cut.png", 2: "empty.png", 3: "missing.png", 4: "prompt", 5: "prompt"}
    expected |= {6: "context", 7: "keep", 8: "keep", 9: "finite", 10: "image", 11: "object"}
    expected |= {14: "not JSON"}
    for row, word in expected.items():
        assert word in results[row]["error"], results[row]
        assert "\n" not in results[row]["error"]
        assert "Traceback" not in results[row]["error"]
    # The rows of a batch with a broken image run on together.
    assert [p for _, p in fake.batches[0]] == ["zero?"]
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("resprune: 3 rows answered") and "12 failed" in said[-1]
    print(f"{len(expected)} kinds of bad row, {len(GOOD)} good ones beside them")


def test_a_resumed_run_asks_failed_rows_again(tmp_path: Path) -> None:
    out, rows = tmp_path / "out.jsonl", bad_rows(tmp_path)
    run(rows, out, batch_size=4)
    picture(tmp_path / "missing.png")
    status, fake = run(rows, out, batch_size=4)
    results = read(out)
    assert status == 1
    assert sorted(r["row"] for r in results) == list(range(15))
    assert {r["row"] for r in results if "error" not in r} == GOOD | {3}
    answered = [p for batch in fake.batches for _, p in batch if "NaN" not in p]
    assert answered == ["three?"]


def test_an_unforeseen_error_is_a_row_error(questions: Path, tmp_path: Path) -> None:
    class Broken(FakeLVLM):
        def generate(self, images: Any, prompts: Any, **more: Any) -> Any:
            if "question 4?" in prompts:
                raise ZeroDivisionError("division\nby zero")
            return super().generate(images, prompts, **more)

    out = tmp_path / "out.jsonl"
    status, _ = run(questions, out, fake=Broken())
    errors = {r["row"]: r["error"] for r in read(out) if "error" in r}
    assert status == 1
    assert errors == {4: "unexpected ZeroDivisionError: division by zero"}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"alpha": 0.5, "keep": "4"}, "alpha"),
        ({"keep": "4"}, "another row"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"model": "elsewhere"}, "model"),
        ({"dtype": "float32"}, "dtype"),
        ({"image_aspect": "pad"}, "image_aspect"),
        ({"rng_seed": 1}, "rng_seed"),
    ],
)
def test_other_settings_are_refused(
    questions: Path, tmp_path: Path, more: dict[str, Any], word: str
) -> None:
    out = tmp_path / "out.jsonl"
    run(questions, out)
    before = out.read_bytes()
    with pytest.raises(CallError, match=word) as refused:
        run(questions, out, **more)
    assert "--output" in str(refused.value)
    assert out.read_bytes() == before


def test_other_rows_are_refused(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(questions, out)
    rows = read(questions)
    for change in (
        rows[:-1],
        [rows[1], rows[0], *rows[2:]],
        [{**rows[0], "prompt": "another?"}, *rows[1:]],
        [{**rows[0], "keep": 3}, *rows[1:]],
    ):
        write_rows(questions, change)
        with pytest.raises(CallError, match="another row"):
            run(questions, out)
    write_rows(questions, [*rows, {"image": "a.png", "prompt": "one more?"}])
    status, fake = run(questions, out)  # rows that were added behind are no contradiction
    assert status == 0 and fake.batches == [[("a.png", "one more?")]]


@pytest.mark.parametrize("content", ["hello\nworld\n", '{"a": 1}\n', "[1]\n", '{"row": 0}\n'])
def test_a_file_of_something_else_is_left_alone(
    questions: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "notes.txt"
    out.write_text(content)
    with pytest.raises(CallError):
        run(questions, out)
    assert out.read_text() == content


def test_a_file_whose_only_line_has_no_end_is_left_alone(questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("remember the milk")
    with pytest.raises(CallError, match="not a result"):
        run(questions, out)
    assert out.read_text() == "remember the milk"


def test_two_runs_cannot_write_one_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = [Row(0, "a.png", "what?")]
    with Results(out, rows, {"a": 1}) as first:
        with pytest.raises(CallError, match="another run"):
            Results(out, rows, {"a": 1})
        first.write(rows[0].result(error="broken"))
    with Results(out, rows, {"a": 1}) as second:  # rewritten here: the lock moves along
        assert second.done == {}
        with pytest.raises(CallError, match="another run"):
            Results(out, rows, {"a": 1})
        second.write(rows[0].result(answer="yes"))
    assert [r.get("answer") for r in read(out)] == ["yes"]


def test_a_linked_output_stays_a_link(questions: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(real)
    run(questions, link)
    real.write_bytes(real.read_bytes()[:-5])
    real.chmod(0o640)
    run(questions, link)
    assert link.is_symlink() and len(read(real)) == ROWS
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "link.jsonl", "real.jsonl"]


def test_sampling_draws_other_numbers_in_every_row(questions: Path, tmp_path: Path) -> None:
    _, fake = run(questions, tmp_path / "out.jsonl", temperature=0.7, rng_seed=2**32 - 1)
    seeds = [seed for call in fake.calls for seed in call["rng_seed"]]
    assert len(set(seeds)) == len(seeds) == ROWS and all(0 <= seed < 2**32 for seed in seeds)


def test_rows_without_an_output_go_to_standard_output(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = run(questions, None)
    out = capsys.readouterr().out.splitlines()
    assert status == 0 and [json.loads(line)["row"] for line in out] == list(range(ROWS))


def test_several_images_are_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    images = tuple(picture(tmp_path / f"{name}.png") for name in "abc")
    (tmp_path / "b.png").write_bytes(b"no image")
    asked = AnswerOptions(model="m", image=images, prompt="what?", output=out, keep="0.5")
    status = answer.run(asked, load=lambda _: FakeLVLM())
    assert status == 1
    found = {r["row"]: (Path(r["image"]).name, "error" in r) for r in read(out)}
    assert found == {0: ("a.png", False), 1: ("b.png", True), 2: ("c.png", False)}


def test_rows_keep_their_place_over_blank_lines(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"image": "a.png", "prompt": "one?"}\n\n{"image": "a.png", "note": 1}\n')
    rows = read_rows(path, keep=0.25, prompt="the same?")
    assert [(r.index, r.prompt, r.keep, r.error) for r in rows] == [
        (0, "one?", 0.25, None),
        (1, "the same?", 0.25, None),
    ]
    assert rows[0].paths == (tmp_path / "a.png",)
