"""The committed notebooks are clean, and what they say is compared: found where it differs."""

import base64
import copy
import io
import re

import pytest
from PIL import Image

from tests.examples.notebooks import NOTEBOOKS, Notebook, clean, differences, read, said, text_of

MOST_BYTES = 1_000_000
"""Of all of them together."""


def test_they_are_there_and_small() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "kept_tokens", "sweep_and_tables", "your_own_method",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_are_committed_clean(path, monkeypatch) -> None:
    monkeypatch.setattr("tests.examples.notebooks.smaller", lambda png: png)  # another Pillow's
    notebook = read(path)
    assert text_of(clean(notebook)) == path.read_text("utf-8")
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        spoken = "\n".join(text for kind, text in said(cell))
        assert not re.search(r"/(root|home|tmp|work|Users|opt|usr)/|Warning|Traceback", spoken)
        if cell["cell_type"] == "code":
            assert max(map(len, cell["source"].splitlines())) <= 100
    ran = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in ran if ".save(" not in cell["source"])


def picture(width: int) -> str:
    file = io.BytesIO()
    Image.effect_noise((width, 40), 80).convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def notebook(*outputs: dict, tags: tuple[str, ...] = ()) -> Notebook:
    cell = {"cell_type": "code", "source": "x\ny", "metadata": {"tags": list(tags)}}
    return clean({"cells": [{**cell, "outputs": list(outputs)}]})


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data: str) -> dict:
    made = {kind.replace("_", "/"): value for kind, value in data.items()}
    return {"output_type": "display_data", "data": made, "metadata": {}}


SAME = [
    (stream("a\nb\n"), stream("a\n"), stream("b\n")),
    (stream("right\n"), stream("10 %\r90 %\rright\r\n")),
    (stream("red\n"), stream("\x1b[31mred\x1b[0m\n")),
    (shown(image_png=picture(60)), shown(image_png=picture(60), image_jpeg=picture(9))),
]
OTHER = [
    (stream("73 of 80\n"), stream("72 of 80\n")),
    (stream("a\n"), stream("a\n", "stderr")),
    (stream("a\n"), stream("a\n"), stream("a warning\n", "stderr")),
    (stream("in 3 s\n"), stream("in 4 s\n")),
    (shown(text_markdown="| 1 |"), shown(text_markdown="| 2 |")),
    (shown(image_png=picture(60)), shown(image_png=picture(50))),
    (shown(image_png=picture(60)),),
]


@pytest.mark.parametrize("outputs", SAME)
def test_what_a_reader_sees_alike_is_the_same(outputs) -> None:
    assert differences(notebook(outputs[0]), notebook(*outputs[1:])) == []


@pytest.mark.parametrize("outputs", OTHER)
def test_another_output_is_found(outputs) -> None:
    (found,) = differences(notebook(outputs[0]), notebook(*outputs[1:]))
    assert found.startswith("cell 1 (x): committed ")


def test_only_times_may_differ_and_only_where_that_is_declared() -> None:
    one, other = stream("80 examples in 34.5 s"), stream("80 examples in 6 s")
    assert differences(notebook(one, tags=("times",)), notebook(other, tags=("times",))) == []
    fewer = stream("79 examples in 6 s")
    assert differences(notebook(one, tags=("times",)), notebook(fewer, tags=("times",)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_planted_digit_is_found(path) -> None:
    committed, ran = read(path), read(path)
    cell = next(c for c in ran["cells"] if any("3" in t for k, t in said(c) if k == "stdout"))
    before = copy.deepcopy(cell)
    for output in cell["outputs"]:
        if "text" in output:
            output["text"] = output["text"].replace("3", "4")
    assert cell != before and len(differences(committed, ran)) == 1
