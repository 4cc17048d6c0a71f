"""`resprune benchmark` as a user calls it."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments import cli
from resprune_jax.experiments.benchmark.run import submissions
from resprune_jax.experiments.benchmark.run.command import folders_of
from resprune_jax.experiments.benchmark.run.data import open_benchmark
from resprune_jax.experiments.benchmark.run.submissions import write
from resprune_jax.experiments.benchmark.scoring import aggregate
from resprune_jax.experiments.sweep.shards import Shards, hold, read_manifest
from tests.experiments.benchmark import fake
from tests.experiments.benchmark.made import ROWS, album, parquet


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model is loaded: answers are drawn."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    monkeypatch.setattr("resprune_jax.models.load.load_model", fake.load(folder))
    monkeypatch.setattr("resprune_jax.experiments.sweep.engine.Engine", fake.FakeEngine)
    return folder


def files(out: Path) -> dict[str, bytes]:
    """Everything that is handed on, by its path."""
    kept = [out / "scores.json", *(path for path in (out / "answers").rglob("*") if path.is_file())]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def scores_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "scores.json").read_text(encoding="utf-8")))


def words(name: str, data: Path, out: Path, checkpoint: Path, *more: str) -> list[str]:
    return [
        "benchmark", "--name", name, "--data", str(data), "--output", str(out), "--model",
        str(checkpoint), "--max-new-tokens", "2", "--batch", "8", "--keep", "1/3", *more,
    ]  # fmt: skip


def test_a_run_that_is_stopped_goes_on_to_the_same_files(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = parquet(tmp_path / "rows.parquet", ROWS["mmbench-en"])
    whole, again = tmp_path / "whole", tmp_path / "again"
    call = words("mmbench-en", data, whole, quick, "--block", "2")
    assert cli.main(call) == 0
    said = capsys.readouterr().out
    assert "| none |" in said and "| resprune keep=1/3 |" in said and "accuracy (95 %)" in said
    assert "the paper" not in said
    made = files(whole)
    assert set(made) == {"scores.json"} | {
        f"answers/{folder}/{file}"
        for folder in ("none", "resprune-keep=1of3")
        for file in ("answers.jsonl", "mmbench-en.xlsx")
    }
    scores = json.loads(made["scores.json"])
    bench = open_benchmark("mmbench-en", str(data))
    rows = pq.read_table(whole / "rows", partitioning=None).to_pylist()
    for one in scores["configurations"]:
        own = {row["example"]: row for row in rows if row["configuration"] == one["name"]}
        verdicts = [bench.verdict(key, own[key]["answer"]) for key in bench.rows]
        expected = aggregate("mmbench-en", verdicts)
        assert {k: v["value"] for k, v in one["figures"].items()} == pytest.approx(expected)
        assert one["rows"] == 5 and one["failed"] == 0 and one["printed_in_the_paper"] is None
        for row, verdict in zip((own[key] for key in bench.rows), verdicts, strict=True):
            assert row["score"] == verdict.score
    manifest = read_manifest(whole)
    assert manifest["benchmark"] == "mmbench-en" and manifest["ocr_line"] is True

    write = Shards.write

    def interrupted(self: Shards, block: int, rows: Any) -> None:
        if block == 1:
            raise KeyboardInterrupt
        write(self, block, rows)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", interrupted)
        call = words("mmbench-en", data, again, quick, "--block", "2")
        assert cli.main(call) == 130
    assert [path.name for path in (again / "rows").iterdir()] == ["00000.parquet"]
    assert not (again / "scores.json").exists()
    capsys.readouterr()
    assert cli.main(call) == 0
    assert "2 of 3 blocks answered now" in capsys.readouterr().out
    assert files(again) == made
    # Nothing is left to answer: the scores are made again.
    (again / "scores.json").unlink()
    assert cli.main(call) == 0
    assert "0 of 3 blocks answered now" in capsys.readouterr().out
    assert files(again) == made

    for change in (["--examples", "3"], ["--alpha", "0.5"]):
        assert cli.main([*call, *change]) == 2
        assert "holds another sweep" in capsys.readouterr().err
    assert files(again) == made


def test_blocks_of_another_run_are_told(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = [tmp_path / "own", tmp_path / "other"]
    for out, split in zip(outs, ("random", "popular"), strict=True):
        rows = [row for row in ROWS["pope"] if row["category"] == split]
        call = words("pope", parquet(tmp_path / f"{split}.parquet", rows), out, quick)
        assert cli.main(call) == 0
    block = Path("rows") / "00000.parquet"
    (outs[1] / block).write_bytes((outs[0] / block).read_bytes())
    capsys.readouterr()
    assert cli.main(call) == 1
    captured = capsys.readouterr()
    assert "lacks 8 rows of this run" in captured.err and "Traceback" not in captured.err


def test_a_picture_that_cannot_be_read_costs_its_rows(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row) for row in ROWS["pope"]]
    rows[0]["image"] = {"bytes": b"\x89PNG and no picture", "path": "a.png"}
    out = tmp_path / "out"
    data = parquet(tmp_path / "rows.parquet", rows)
    call = words("pope", data, out, quick, "--method", "none")
    assert cli.main(call) == 1
    captured = capsys.readouterr()
    assert "1 rows failed" in captured.out and "Traceback" not in captured.err
    found = pq.read_table(out / "rows", partitioning=None).to_pylist()
    errors = {row["example"]: row["error"] for row in found if row["error"]}
    assert list(errors) == ["random/1"] and "row 0" in errors["random/1"]
    assert "\n" not in errors["random/1"] and len(found) == 12
    scores = json.loads((out / "scores.json").read_text())
    assert scores["configurations"][0]["failed"] == 1
    bench = open_benchmark("pope", str(data))
    verdicts = [
        bench.verdict(row["example"], None if row["error"] else row["answer"]) for row in found
    ]
    figures = scores["configurations"][0]["figures"]
    assert {k: v["value"] for k, v in figures.items()} == pytest.approx(aggregate("pope", verdicts))
    assert any("count as wrong" in note for note in scores["notes"])
    lines = (out / "answers" / "none" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == 12 and json.loads(lines[0])["text"] == ""
    # Nothing is answered now, and the row has failed all the same.
    assert cli.main(call) == 1


@pytest.mark.parametrize("name", ROWS)
def test_every_benchmark_runs_to_its_scores(
    name: str, quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = parquet(tmp_path / "rows.parquet", ROWS[name]), tmp_path / "out"
    more = ["--images", str(album(tmp_path / "pictures.parquet"))] if name == "gqa" else []
    assert cli.main(words(name, data, out, quick, "--paper", "llava-1.5", *more)) == 0
    said = capsys.readouterr().out
    scores = scores_of(out)
    full, pruned = scores["configurations"]
    assert (full["kept"], pruned["kept"], full["rows"]) == (12, 4, len(ROWS[name]))
    lines = (out / "answers" / "none" / "answers.jsonl").read_text().splitlines()
    assert len(lines) == len(ROWS[name])
    if name == "mm-vet":
        assert scores["headline"] == "" and full["figures"] == {} and "elsewhere" in said
    else:
        figure = scores["headline"]
        own, whole = (each["figures"][figure]["value"] for each in (pruned, full))
        if whole:
            assert pruned["relative"]["value"] == pytest.approx(100 * own / whole)
        assert full["relative"] is None and f"{figure} (95 %)" in said
        assert "printed in the paper" in said and "(Table I, LLaVA-1.5-7B)" in said
    column = full["printed_in_the_paper"]
    assert column["row"] == "LLaVA-1.5-7B" and column["table"] == "I"
    assert pruned["printed_in_the_paper"]["row"] == "ResPrune (Ours)"


def test_a_test_split_is_written_and_not_scored(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{k: v for k, v in row.items() if k != "answers"} for row in ROWS["vqav2"]]
    ids = tmp_path / "ids.json"
    ids.write_text('[{"question_id": 1001}, {"question_id": 5}, {"question_id": 1000}]')
    data, out = parquet(tmp_path / "rows.parquet", rows), tmp_path / "out"
    assert cli.main(words("vqav2", data, out, quick, "--ids", str(ids))) == 0
    assert "2 of 2 rows hold no accepted answer" in capsys.readouterr().out
    found = json.loads((out / "answers" / "none" / "vqav2.json").read_text())
    assert [one["question_id"] for one in found] == [1001, 5, 1000] and found[1]["answer"] == ""
    assert scores_of(out)["configurations"][0]["figures"] == {}


def test_the_line_of_ocr_words_is_a_switch(quick: Path, tmp_path: Path) -> None:
    data = parquet(tmp_path / "rows.parquet", ROWS["textvqa"])
    asked = {}
    for line in ("strip", "keep", "off"):
        out = tmp_path / line
        assert cli.main(words("textvqa", data, out, quick, "--ocr-line", line)) == 0
        examples = pq.read_table(out / "examples.parquet")["question"].to_pylist()
        one = read_manifest(out)["configurations"][1]
        asked[line] = ["Reference OCR" in text for text in examples], one.get("ocr_line")
    assert asked == {
        "strip": ([True, True], "strip"), "keep": ([True, True], "keep"),
        "off": ([False, False], None),
    }  # fmt: skip
    call = words("textvqa", data, tmp_path / "strip", quick, "--ocr-line", "off")
    assert cli.main(call) == 2


@pytest.mark.parametrize(("told", "aspect"), [([], "pad"), (["processor"], "processor")])
def test_pictures_are_prepared_as_the_authors_do(
    told: list[str], aspect: str, quick: Path, tmp_path: Path
) -> None:
    data = parquet(tmp_path / "rows.parquet", ROWS["pope"])
    more = ["--image-aspect", *told] if told else []
    call = words("pope", data, tmp_path / "out", quick, *more)
    del call[call.index("--max-new-tokens") : call.index("--max-new-tokens") + 2]
    assert cli.main(call) == 0
    assert fake.FakeEngine.told.image_aspect == aspect
    assert fake.FakeEngine.told.max_new_tokens == 128
    assert read_manifest(tmp_path / "out")["image_aspect"] == aspect


def test_another_chat_template_is_another_run(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = parquet(tmp_path / "rows.parquet", ROWS["pope"]), tmp_path / "out"
    template = tmp_path / "chat.jinja"
    template.write_text("A: {{ messages }}")
    call = words("pope", data, out, quick, "--chat-template", str(template))
    assert cli.main(call) == 0
    assert fake.load.told["chat_template"] == template  # type: ignore[attr-defined]
    assert len(read_manifest(out)["chat_template"]) == 64
    template.write_text("B: {{ messages }}")
    assert cli.main(call) == 2 and cli.main(call[:-2]) == 2
    assert "holds another sweep: chat_template" in capsys.readouterr().err


def test_another_process_ends_the_run(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, out = parquet(tmp_path / "rows.parquet", ROWS["pope"]), tmp_path / "out"
    shared = ["--block", "4", "--num-processes", "2"]
    assert cli.main(words("pope", data, out, quick, *shared, "--process-id", "0")) == 0
    assert "1 blocks are not there yet" in capsys.readouterr().out
    assert not (out / "scores.json").exists()
    held = []

    def looked_at(*told: Any) -> Any:
        # Two that end together must not write at once.
        with pytest.raises(CallError), hold(out / ".lock-scores", shared=False):
            pass
        held.append(told)
        return write(*told)

    monkeypatch.setattr(submissions, "write", looked_at)
    assert cli.main(words("pope", data, out, quick, *shared, "--process-id", "1")) == 0
    assert len(held) == 2
    assert scores_of(out)["configurations"][0]["rows"] == 12


@pytest.mark.deep
def test_a_real_model_answers_the_same_however_often_it_is_stopped(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [dict(row) for row in ROWS["pope"]]
    rows[0]["image"] = {"bytes": b"\x89PNG and no picture", "path": "a.png"}
    data = parquet(tmp_path / "rows.parquet", rows)
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert cli.main(words("pope", data, whole, checkpoint, "--block", "4")) == 1
    assert {one["failed"] for one in scores_of(whole)["configurations"]} == {1}
    write = Shards.write
    left = iter(range(100))

    def interrupted(self: Shards, block: int, rows: Any) -> None:
        if next(left) % 2:
            raise KeyboardInterrupt
        write(self, block, rows)

    monkeypatch.setattr(Shards, "write", interrupted)
    while (status := cli.main(words("pope", data, again, checkpoint, "--block", "4"))) == 130:
        assert not (again / "scores.json").exists()
    assert status == 1 and files(again) == files(whole)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--name", "popes"], "unknown benchmark 'popes': choose one of vqav2, gqa"),
        (["--data", "nowhere.parquet"], "nowhere.parquet does not exist"),
        (["--name", "textvqa"], "no column 'ocr_tokens', which textvqa needs"),
        (["--ocr-line", "off"], "--ocr-line is for textvqa: pope has no such line"),
        (["--name", "textvqa", "--ocr-line", "off", "keep"], "--ocr-line off asks other prompts"),
        (["--ids", "ids.json"], "--ids is for vqav2"),
        (["--images", "nowhere"], "--images nowhere does not exist"),
        (["--chat-template", "none.jinja"], "--chat-template none.jinja does not exist"),
        (["--batch", "12"], "give a multiple of 8"),
        (["--examples", "0"], "--examples"),
        (["--method", "respune"], "unknown method 'respune'"),
        (["--keep", "7/3"], "write a share between 0 and 1"),
        (["--methods", "none"], "did you mean --method"),
        (["--model", "nowhere/at-all", "--method", "none"], "nowhere/at-all"),
    ],
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    told = {"--name": "pope", "--data": str(parquet(tmp_path / "pope.parquet", ROWS["pope"])),
            "--output": "out"}  # fmt: skip
    told = {option: value for option, value in told.items() if option not in more}
    assert cli.main(["benchmark", *(word for pair in told.items() for word in pair), *more]) in (
        1, 2,
    )  # fmt: skip
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("resprune: ")]
    assert len(lines) == 1 and said in lines[0] and len(lines[0]) < 600, captured.err
    assert not (tmp_path / "out").exists()


def test_a_share_of_nothing_is_no_number(
    quick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "answer": "never"} for row in ROWS["gqa"]]
    images = album(tmp_path / "pictures.parquet")
    data = parquet(tmp_path / "rows.parquet", rows)
    assert cli.main(words("gqa", data, tmp_path / "out", quick, "--images", str(images))) == 0
    said = capsys.readouterr().out
    assert "| n/a |" in said and "nan" not in said
    (_, pruned) = scores_of(tmp_path / "out")["configurations"]
    assert pruned["relative"] == {"value": None, "low": None, "high": None}


def test_folders_of_configurations_are_their_own() -> None:
    names = [
        "none",
        "resprune keep=1/3",
        "resprune keep=1-3",
        "RESPRUNE keep=1of3",
        "../x",
        "a.py:M",
    ]
    folders = folders_of(names)
    assert folders["none"] == "none" and folders["resprune keep=1/3"] == "resprune-keep=1of3"
    assert len({name.lower() for name in folders.values()}) == len(names)
    assert not any(set(name) & set("/\\: ") or name.startswith(".") for name in folders.values())
