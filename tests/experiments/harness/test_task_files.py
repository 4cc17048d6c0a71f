"""Task files: figures that the scorers give, functions that are there, data that are looked at."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.benchmark.prompts import PROMPTS
from resprune_jax.experiments.benchmark.run.catalogue import FACTS
from resprune_jax.experiments.benchmark.scoring import HEADLINE, aggregate, judge
from resprune_jax.experiments.harness import command
from resprune_jax.experiments.harness.arguments import read
from resprune_jax.experiments.harness.tasks import functions
from tests.experiments.data.writing import parquet, png

FOLDER = Path(functions.__file__).parent
PREFIX = "resprune_jax.experiments.harness.tasks.functions."

ROWS: dict[str, list[dict[str, Any]]] = {
    "pope": [
        {"question": "Is it red?", "answer": "yes", "category": "random", "question_id": "1"},
        {"question": "Is it big?", "answer": "no", "category": "popular", "question_id": "1"},
    ],
    "mme": [
        {"question": f"{text} Please answer yes or no.", "answer": answer, "category": "color",
         "question_id": "color/1.png"}
        for text, answer in (("Red?", "Yes"), ("Blue?", "No"))
    ],
    "textvqa": [
        {"question": "What does it say?", "question_id": "7", "answers": ["stop"] * 10,
         "ocr_tokens": ["STOP", "here"]},
    ],
}  # fmt: skip


class _Loader(yaml.SafeLoader):
    """Reads `!function NAME` as the name."""


_Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")


def loaded(path: Path) -> dict[str, Any]:
    """A task file."""
    found: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    return found


def written(tmp_path: Path, name: str, **given: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A task file and its rows, of two pictures."""
    rows = [{**row, "image": png(50 * n)} for n, row in enumerate(ROWS[name])]
    lines = [json.dumps({**row, "image": f"{n}.png"}) for n, row in enumerate(rows)]
    for n, row in enumerate(rows):
        (tmp_path / f"{n}.png").write_bytes(row["image"])
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    out = tmp_path / "tasks"
    out.mkdir(exist_ok=True)
    options = command.TasksOptions(name=name, data=str(tmp_path / "rows.jsonl"), out=out, **given)
    task = command.write(options)
    told = loaded(out / f"{task}.yaml")
    path = Path(told["dataset_kwargs"]["data_files"]["test"])
    assert path.is_absolute() and path == (out / f"{task}.jsonl").resolve()
    return told, [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", list(PROMPTS))
def test_a_template_names_what_there_is(name: str) -> None:
    own = functions.plain(name)
    told = loaded(FOLDER / f"{own}.yaml")
    figures = [functions.plain(figure) for figure in functions.FIGURES[name]]
    assert told["task"] == f"resprune_{own}" and told["score_key"] == figures[0]
    assert [one["metric"] for one in told["metric_list"]] == figures
    named = [told["doc_to_visual"], told["process_results"]]
    named += [one["aggregation"] for one in told["metric_list"]]
    assert named[1:] == [f"!{PREFIX}{own}_{part}" for part in ("judged", *figures)]
    for each in named:
        assert callable(getattr(functions, each.removeprefix(f"!{PREFIX}")))
    assert told["generation_kwargs"]["max_new_tokens"] == FACTS[name].tokens
    # An empty list keeps lmms-eval from ending answers at blank lines.
    assert told["generation_kwargs"]["until"] == []
    if name in HEADLINE:
        assert functions.FIGURES[name][0] == HEADLINE[name]


def test_there_is_a_template_for_every_benchmark_and_no_other() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")}
    assert names == {functions.plain(name) for name in PROMPTS}


@pytest.mark.parametrize("name", list(ROWS))
def test_prompts_verdicts_and_figures_are_those_of_resprune_benchmark(
    name: str, tmp_path: Path
) -> None:
    told, rows = written(tmp_path, name)
    own = functions.plain(name)
    said = ["yes", "Yes."] if name != "textvqa" else ["stop"]
    verdicts = []
    for row, source, answer in zip(rows, ROWS[name], said, strict=True):
        assert row["prompt"] == PROMPTS[name](source)
        verdicts.append(judge(name, source, answer))
        made = getattr(functions, f"{own}_judged")(row, [answer])
        assert list(made) == [one["metric"] for one in told["metric_list"]]
        assert json.loads(json.dumps(made)) == made  # lmms-eval writes it into its samples
    want = aggregate(name, verdicts)
    for figure in functions.FIGURES[name]:
        part = functions.plain(figure)
        told_to = [functions.PARTS[f"{own}_judged"](row, [answer])[part]
                   for row, answer in zip(rows, said, strict=True)]  # fmt: skip
        assert getattr(functions, f"{own}_{part}")(told_to) == want[figure]


def test_the_line_of_words_can_be_left_out(tmp_path: Path) -> None:
    _, (with_it,) = written(tmp_path, "textvqa")
    told, (without,) = written(tmp_path, "textvqa", ocr_line=False)
    assert "STOP, here" in with_it["prompt"] and "STOP" not in without["prompt"]
    assert told["lmms_eval_specific_kwargs"]["default"]["ocr_line"] is False


def test_pictures_come_from_the_data_and_changed_data_are_refused(tmp_path: Path) -> None:
    told, rows = written(tmp_path, "pope")
    kwargs = told["lmms_eval_specific_kwargs"]["default"]
    for number, row in enumerate(rows):
        (picture,) = functions.PARTS["images"](row, kwargs)
        assert picture.getpixel((0, 0)) == (50 * number,) * 3
    (tmp_path / "1.png").write_bytes(png(99))
    functions._pictures.cache_clear()
    with pytest.raises(RunError, match="write it again with resprune lmms-eval-tasks"):
        functions.PARTS["images"](rows[0], kwargs)


def test_functions_say_of_which_version_they_are() -> None:
    from resprune_jax.experiments.words import OWN, version_of

    assert str(functions.PARTS["pope_f1"]) == f"{OWN} {version_of(OWN)} pope f1"


def test_the_command_that_is_printed_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = parquet(tmp_path, [{**row, "image": png(9)} for row in ROWS["pope"]])
    out = Path("my tasks; (all)")
    assert command.run(command.TasksOptions(name="pope", data=str(path), out=out)) == 0
    said = shlex.split(capsys.readouterr().out)
    assert said[said.index("--include_path") + 1] == str(out)
    words = dict(word.split("=") for word in said[said.index("--model_args") + 1].split(","))
    assert read(words).options.keep == 2 / 9


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "popes"}, "unknown benchmark 'popes'"),
        ({"data": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"name": "mme"}, "has no column 'question_id', 'category', which mme needs"),
        ({"out": Path("rows.parquet")}, "cannot be made a folder"),
        ({"ocr_line": False}, "--no-ocr-line is for textvqa: pope has no such line"),
    ],
)
def test_what_is_wrong_is_one_line(
    change: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = ("question", "answer")
    rows = [{name: row[name] for name in columns} | {"image": png(9)} for row in ROWS["pope"]]
    path = parquet(tmp_path, rows)
    options = {"name": "pope", "data": str(path), "out": Path("tasks"), **change}
    with pytest.raises(CallError) as caught:
        command.run(command.TasksOptions(**options))
    assert why in str(caught.value)
