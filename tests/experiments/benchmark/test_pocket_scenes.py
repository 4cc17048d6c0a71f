"""The pocket model on its own scenes, written out as four of the benchmarks have their files."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resprune_jax.experiments import cli
from resprune_jax.experiments.benchmark.prompts import PROMPTS
from resprune_jax.experiments.data.examples import open_dataset
from resprune_jax.models.load import load_model
from tests.experiments.benchmark.made import Row, parquet

SCENES = 8
SIZES = ("small", "large")


def scenes() -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Number, picture, and the questions by family."""
    data = open_dataset("pocket:test", limit=5 * SCENES)
    for number in range(SCENES):
        own = data.examples[5 * number : 5 * number + 5]
        file = io.BytesIO()
        Image.fromarray(data.pictures(own[0])[0]).save(file, "PNG")
        yield (
            number,
            {"bytes": file.getvalue(), "path": f"{number}.png"},
            {each.category: (each.question.split("\n")[0], each.answers[0]) for each in own},
        )


def pope() -> list[Row]:
    return [
        {"question_id": number, "question": asked["existence"][0], "image": picture,
         "answer": asked["existence"][1], "category": ("random", "popular")[number // 2 % 2]}
        for number, picture, asked in scenes()
    ]  # fmt: skip


def vqav2() -> list[Row]:
    return [
        {"question_id": 5 * number + place, "question": question, "image": picture,
         "answers": [{"answer": answer, "answer_id": n} for n in range(10)]}
        for number, picture, asked in scenes()
        for place, (question, answer) in enumerate(asked.values())
    ]  # fmt: skip


def mme() -> list[Row]:
    """Two questions about every picture; of both the right answer is as the scene has it."""
    return [
        {"question_id": f"existence/{number}.png", "category": "existence", "image": picture,
         "question": f"{question} Please answer yes or no.", "answer": answer.capitalize()}
        for number, picture, asked in scenes()
        for question, answer in (
            asked["existence"], (f"{asked['existence'][0]} Look twice.", asked["existence"][1]),
        )
    ]  # fmt: skip


def mmbench_en() -> list[Row]:
    """What size it is, the options in both orders."""
    rows = []
    for number, picture, asked in scenes():
        question, answer = asked["attributes"]
        if answer in SIZES:
            for turn in range(2):
                options = SIZES[::-1] if turn else SIZES
                rows.append(
                    {"index": number + turn * 10**6, "question": question, "A": options[0],
                     "B": options[1], "answer": "AB"[options.index(answer)], "image": picture,
                     "category": "size", "L2-category": "attributes"}
                )  # fmt: skip
    return rows


FILES = {"pope": pope, "vqav2": vqav2, "mme": mme, "mmbench-en": mmbench_en}


def right_of(name: str, row: Row, text: str) -> bool:
    """Whether the pocket model, which says bare words, is right: written down a second time."""
    if name == "vqav2":
        return text == row["answers"][0]["answer"]
    if name == "mmbench-en":
        return text == row[row["answer"]]
    return text == row["answer"].lower()


@pytest.mark.deep
@pytest.mark.parametrize("name", FILES)
def test_the_scores_of_the_pocket_model_are_its_right_answers(name: str, tmp_path: Path) -> None:
    rows = FILES[name]()
    data, out = parquet(tmp_path / f"{name}.parquet", rows), tmp_path / "out"
    # All five families with a budget, else the full model alone: each shape compiles for long.
    methods = ["none", "resprune"] if name == "vqav2" else ["none"]
    call = ["benchmark", "--name", name, "--data", str(data), "--output", str(out),
            "--method", *methods, "--keep", "16", "--tagger", "lexicon"]  # fmt: skip
    assert cli.main(call) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    for one, folder in zip(
        scores["configurations"], ["none", "resprune-keep=16-tagger=lexicon"], strict=False
    ):
        path = out / "answers" / folder / "answers.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["prompt"] for line in lines] == [PROMPTS[name](row) for row in rows]
        said = [line["text"] for line in lines]
        right = [right_of(name, row, text) for row, text in zip(rows, said, strict=True)]
        share = 100 * sum(right) / len(right)
        figures = {figure: value["value"] for figure, value in one["figures"].items()}
        both = [all(right[n : n + 2]) for n in range(0, len(right), 2)]
        if name == "mme":
            assert figures["sum"] == pytest.approx(share + 100 * sum(both) / len(both))
        elif name == "mmbench-en":
            assert figures["accuracy"] == pytest.approx(100 * sum(both) / len(both))
            named = [text in (*SIZES, "A", "B") for text in said]
            assert figures["undecided"] == 100 - 100 * sum(named) / len(named)
            continue  # it never learned to answer beside a list of options
        else:
            assert figures["accuracy"] == pytest.approx(share)
        assert share > 60


@pytest.mark.deep
def test_answers_are_those_of_generate(tmp_path: Path) -> None:
    rows = mme()[:8]
    data, out = parquet(tmp_path / "mme.parquet", rows), tmp_path / "out"
    call = ["benchmark", "--name", "mme", "--data", str(data), "--output", str(out),
            "--method", "resprune", "--keep", "8", "--tagger", "lexicon"]  # fmt: skip
    assert cli.main(call) == 0
    (path,) = (out / "answers").rglob("answers.jsonl")
    said = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    made = load_model("pocket").generate(
        pictures, [PROMPTS["mme"](row) for row in rows], keep=8, tagger="lexicon", max_new_tokens=6
    )
    assert said == list(made.texts)
