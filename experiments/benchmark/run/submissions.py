"""Answers in the forms that others score: LLaVA's lines, and what each benchmark's server takes.

A row that failed has the answer "", so that every question of a file is there.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.experiments.benchmark.prompts import LETTERS, optional
from resprune_jax.experiments.benchmark.run.catalogue import FACTS
from resprune_jax.experiments.benchmark.run.data import Benchmark
from resprune_jax.experiments.benchmark.run.xlsx import Cell, workbook
from resprune_jax.experiments.common import check_file, make_folder
from resprune_jax.experiments.data.columns import RowError, name_of
from resprune_jax.experiments.data.lines import read_lines
from resprune_jax.experiments.data.vqa import processed
from resprune_jax.experiments.sweep.shards import replace

LINES = "answers.jsonl"

Answers = Mapping[str, str]
"""The answers of a configuration by the key of the row."""


def write(
    folder: Path,
    bench: Benchmark,
    answers: Answers,
    model: str,
    about: Mapping[str, Any],
    ids: Sequence[str] | None = None,
) -> list[Path]:
    """Write a configuration's answers in every form that its benchmark has.

    Args:
        folder: where to; made if missing.
        bench: what was asked.
        answers: of all its rows.
        model: what the lines say answered.
        about: the configuration, as they say beside.
        ids: every question that VQAv2's file must name, see `read_ids`.

    Returns:
        The files.

    Raises:
        RunError: one cannot be written.
    """
    make_folder(folder, "--output")
    files = {LINES: _lines(bench, answers, model, about)}
    if name := FACTS[bench.benchmark].submission:
        made = _FORMS[bench.benchmark](bench, answers, ids)
        files |= made if isinstance(made, dict) else {name: made}
    paths = []
    for name, content in files.items():
        path = folder / name
        make_folder(path.parent, "--output")
        replace(path, content)
        paths.append(path)
    return paths


def read_ids(path: Path, bench: Benchmark) -> list[str]:
    """Every question of VQAv2's test set, in the order of its file.

    Args:
        path: the challenge's own JSON of questions, or JSON lines with the column question_id.
        bench: VQAv2; all its questions must be among them.

    Raises:
        CallError: a question that is not, or another benchmark.
        RunError: a file of something else.
    """
    if bench.benchmark != "vqav2":
        raise CallError(
            f"--ids is for vqav2, whose server wants every id: {bench.benchmark} has none"
        )
    check_file(path, "--ids")
    if path.suffix == ".jsonl":
        listed = [values for _, values in read_lines(path)]
    else:
        try:
            whole = json.loads(path.read_bytes())
        except (ValueError, OSError, RecursionError) as error:
            raise RunError(f"--ids {path} is not JSON: {error}") from None
        listed = whole.get("questions", []) if isinstance(whole, dict) else whole
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise RunError(f"--ids {path} holds no list of questions with a question_id")
    try:
        found = [own for each in listed if (own := name_of(each, "question_id")) is not None]
    except RowError as fault:
        raise RunError(f"--ids {path}: {fault}") from None
    if not found or len(found) != len(listed):
        raise RunError(f"--ids {path} holds no list of questions with a question_id")
    if strange := bench.rows.keys() - set(found):
        raise CallError(
            f"--ids {path} lacks {len(strange)} of the questions that are asked, such as"
            f" {shown(min(strange))}: give the questions of this split"
        )
    return list(dict.fromkeys(found))


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _number(text: str) -> int | str:
    """An id as its benchmark writes it: whole numbers as such."""
    return int(text) if re.fullmatch(r"0|[1-9]\d{0,17}", text) else text


def _name(bench: Benchmark, key: str) -> int | str:
    """What a benchmark calls a row; the key where it has no name."""
    column = FACTS[bench.benchmark].key
    value = bench.rows[key].get(column) if column else None
    return _number(key) if value is None else value


def _lines(bench: Benchmark, answers: Answers, model: str, about: Mapping[str, Any]) -> bytes:
    """LLaVA's answer files: a line a question."""
    prompts = {example.key: example.question for example in bench.examples}
    made = []
    for key, row in bench.rows.items():
        told = json.dumps([model, dict(about), key], sort_keys=True, default=str)
        metadata: dict[str, Any] = dict(about)
        if category := optional(row, "category"):
            metadata["category"] = category
        made.append(
            _json(
                {
                    # LLaVA's script for TextVQA knows a question by its picture and its words.
                    "question_id": row["image_id"]
                    if optional(row, "image_id")
                    else _name(bench, key),
                    "prompt": prompts[key],
                    "text": answers[key],
                    # Drawn at random there; here the same run writes the same file.
                    "answer_id": hashlib.sha256(told.encode()).hexdigest()[:22],
                    "model_id": model,
                    "metadata": metadata,
                }
            )
        )
    return b"".join(made)


def _vqav2(bench: Benchmark, answers: Answers, ids: Sequence[str] | None) -> bytes:
    """EvalAI: every id of the test set, "" where it was not asked."""
    wanted = list(bench.rows) if ids is None else ids
    return _json(
        [{"question_id": _number(key), "answer": processed(answers.get(key, ""))} for key in wanted]
    )


def _textvqa(bench: Benchmark, answers: Answers, _: Any) -> bytes:
    return _json(
        [{"question_id": _number(key), "answer": processed(answers[key])} for key in bench.rows]
    )


def _vizwiz(bench: Benchmark, answers: Answers, _: Any) -> bytes:
    """The server names pictures: their files are called as lmms-lab calls the questions."""
    made = []
    for key in bench.rows:
        name = str(_name(bench, key))
        image = name if name.lower().endswith(".jpg") else f"{name}.jpg"
        made.append({"image": image, "answer": processed(answers[key])})
    return _json(made)


def _gqa(bench: Benchmark, answers: Answers, _: Any) -> bytes:
    return _json(
        [
            {"questionId": str(_name(bench, key)), "prediction": answers[key].rstrip(".").lower()}
            for key in bench.rows
        ]
    )


def _mm_vet(bench: Benchmark, answers: Answers, _: Any) -> bytes:
    made = {}
    for key in bench.rows:
        name = str(_name(bench, key))
        made[name if name.startswith("v1_") else f"v1_{name}"] = answers[key]
    return _json(made)


def _mme(bench: Benchmark, answers: Answers, _: Any) -> dict[str, bytes]:
    """MME's script reads a file a subtask, both questions about a picture one after the other."""
    files: dict[str, dict[str, list[str]]] = {}
    for key, row in bench.rows.items():
        picture = str(row["question_id"]).rpartition("/")[2]
        cells = [picture, str(row["question"]), str(row["answer"]), answers[key]]
        line = "\t".join(re.sub(r"[\t\r\n]+", " ", cell) for cell in cells)
        files.setdefault(str(row["category"]), {}).setdefault(picture, []).append(line)
    return {
        f"mme/{subtask}.txt": "".join(
            f"{line}\n" for lines in own.values() for line in lines
        ).encode("utf-8", "backslashreplace")
        for subtask, own in files.items()
    }


def _mmbench(bench: Benchmark, answers: Answers, _: Any) -> bytes:
    """The table that MMBench's server takes: its own columns but pictures, and `prediction`."""
    there = [
        column
        for column in ("answer", "category", "L2-category", "split")
        if any(optional(row, column) for row in bench.rows.values())
    ]
    letters = [c for c in LETTERS if any(optional(row, c) for row in bench.rows.values())]
    heads = ["index", "question", *letters, "prediction", *there]
    rows: list[list[Cell]] = [
        [
            int(row["index"]),
            optional(row, "question"),
            *(optional(row, column) for column in letters),
            answers[key],
            *(optional(row, column) for column in there),
        ]
        for key, row in bench.rows.items()
    ]
    return workbook(heads, rows)


_Form = Callable[[Benchmark, Answers, Sequence[str] | None], "bytes | dict[str, bytes]"]
_FORMS: dict[str, _Form] = {
    "vqav2": _vqav2,
    "gqa": _gqa,
    "vizwiz": _vizwiz,
    "textvqa": _textvqa,
    "mme": _mme,
    "mmbench-en": _mmbench,
    "mm-vet": _mm_vet,
}
