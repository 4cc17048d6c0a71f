"""Result files of earlier versions, and defaults written out: resumed where they mean the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.prompts.generation_file import GenerationSettings
from tests.experiments.answer.test_answer_rows import ROWS, read, run, write_rows
from tests.experiments.fakes import FakeLVLM, picture


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Rows about one image, in a folder of their own."""
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png")
    rows = [{"image": "a.png", "prompt": f"question {i}?"} for i in range(ROWS)]
    return write_rows(folder / "rows.jsonl", rows)


NEWER = ("sample", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Options that came with the obedience to `generation_config.json`."""
EARLY = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 128}
"""Defaults before that."""


def older(out: Path, **changes: Any) -> None:
    """Make the first rows of a file those of an earlier version."""
    found = read(out)[:3]
    for row in found:
        settings = {name: value for name, value in row["settings"].items() if name not in NEWER}
        row["settings"] = settings | EARLY | changes
    out.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        ({}, {"max_new_tokens": 128}),
        ({}, {"temperature": 0, "top_p": 1, "repetition_penalty": 1.0}),
        ({"max_new_tokens": 7}, {"max_new_tokens": 7}),
        ({"temperature": 0.5, "top_p": 1.0}, {"temperature": 0.5}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
    ],
    ids=str,
)
def test_a_file_of_an_earlier_version_is_resumed_where_it_means_the_same(
    questions: Path, tmp_path: Path, changes: dict[str, Any], more: dict[str, Any]
) -> None:
    out = tmp_path / "out.jsonl"
    run(questions, out)
    count = len(read(out))
    older(out, **changes)
    status, fake = run(questions, out, **more)
    assert status == 0 and sum(map(len, fake.batches)) == count - 3
    assert sorted(row["row"] for row in read(out)) == list(range(count))


@pytest.mark.parametrize(
    ("changes", "more", "word"),
    [
        ({"max_new_tokens": 64}, {}, "max_new_tokens 64"),
        ({"temperature": 0.5}, {}, "temperature 0.5"),
        ({}, {"sample": True}, "sample"),
        ({}, {"repetition_penalty": 1.05}, "repetition_penalty"),
        ({}, {"max_new_tokens": 127}, "max_new_tokens 128"),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}, "top_p 0.9"),
    ],
    ids=str,
)
def test_a_file_of_an_earlier_version_with_other_settings_is_refused(
    questions: Path, tmp_path: Path, changes: dict[str, Any], more: dict[str, Any], word: str
) -> None:
    out = tmp_path / "out.jsonl"
    run(questions, out)
    older(out, **changes)
    before = out.read_bytes()
    with pytest.raises(CallError, match=word):
        run(questions, out, **more)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "own",
    [{"repetition_penalty": 1.05}, {"max_new_tokens": 20}, {"max_length": 500},
     {"suppress_tokens": (7,)}, {"min_new_tokens": 2}],
    ids=str,
)  # fmt: skip
def test_earlier_rows_did_not_obey_what_the_checkpoint_says(
    questions: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    """Only where the file changes nothing are they those of today's defaults."""
    out, fake = tmp_path / "out.jsonl", FakeLVLM()
    run(questions, out)
    older(out)
    fake.settings = GenerationSettings(**own)
    before = out.read_bytes()
    with pytest.raises(CallError, match=rf"generation_config.json says {next(iter(own))}="):
        run(questions, out, fake=fake)
    assert out.read_bytes() == before and not fake.batches


@pytest.mark.parametrize(
    ("first", "then", "own", "fine"),
    [
        ({}, {"max_new_tokens": 128}, {}, True),
        ({"max_new_tokens": 128}, {}, {}, True),
        ({}, {"max_new_tokens": 128}, {"max_new_tokens": 20}, False),
        ({"max_new_tokens": 128}, {}, {"max_length": 400}, False),
        ({"repetition_penalty": 1}, {}, {"suppress_tokens": (7,)}, True),
        ({"repetition_penalty": 1}, {}, {"repetition_penalty": 1.1}, False),
        ({"no_repeat_ngram_size": 0}, {"repetition_penalty": 1.0}, {}, True),
    ],
    ids=str,
)
def test_a_default_that_is_written_out_means_the_same(
    questions: Path, tmp_path: Path, first: Any, then: Any, own: dict[str, Any], fine: bool
) -> None:
    out, fake = tmp_path / "out.jsonl", FakeLVLM()
    run(questions, out, **first)
    out.write_text("".join(out.read_text().splitlines(keepends=True)[:3]))
    fake.settings = GenerationSettings(**own)
    if fine:
        assert run(questions, out, fake=fake, **then)[0] == 0
        return
    with pytest.raises(CallError, match="not for both"):
        run(questions, out, fake=fake, **then)
