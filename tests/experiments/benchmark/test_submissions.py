"""What is handed in, byte for byte where it is short, and read back where it is not."""

import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.benchmark.run.data import Benchmark, open_benchmark
from resprune_jax.experiments.benchmark.run.submissions import read_ids, write
from resprune_jax.experiments.benchmark.run.xlsx import workbook
from tests.experiments.benchmark.made import ROWS, album, parquet


def opened(name: str, folder: Path) -> Benchmark:
    images = album(folder / "pictures.parquet") if name == "gqa" else None
    return open_benchmark(name, str(parquet(folder / f"{name}.parquet", ROWS[name])), images=images)


def handed_in(name: str, folder: Path, *answers: str, **more: list[str]) -> Path:
    bench = opened(name, folder)
    said = dict(zip(bench.rows, answers, strict=True))
    write(folder / "out", bench, said, "pocket", {"configuration": "none"}, **more)
    return folder / "out"


def test_ids_are_written_as_the_servers_have_them(tmp_path: Path) -> None:
    rows = [
        {**row, "question_id": str(row["question_id"]), "image_id": None} for row in ROWS["textvqa"]
    ]
    bench = open_benchmark("textvqa", str(parquet(tmp_path / "rows.parquet", rows)))
    write(tmp_path / "out", bench, dict.fromkeys(bench.rows, "x"), "pocket", {})
    made = json.loads((tmp_path / "out" / "textvqa.json").read_text())
    assert [one["question_id"] for one in made] == [34602, 34603]


FORMS = {
    "vqav2": (
        ["Yes, it is.", ""],
        "vqav2.json",
        [{"question_id": 1000, "answer": "yes it is"}, {"question_id": 1001, "answer": ""}],
    ),
    "gqa": (
        ["No.", "Light Blue..", "bowl"],
        "gqa.json",
        [
            {"questionId": "0201", "prediction": "no"},
            {"questionId": "0202", "prediction": "light blue"},
            {"questionId": "0203", "prediction": "bowl"},
        ],
    ),
    "vizwiz": (
        ["Unanswerable", "Two"],
        "vizwiz.json",
        [
            {"image": "VizWiz_val_00000001.jpg", "answer": "unanswerable"},
            {"image": "VizWiz_val_00000002.jpg", "answer": "2"},
        ],
    ),
    "textvqa": (
        ["The Dakota", "1,000"],
        "textvqa.json",
        [{"question_id": 34602, "answer": "dakota"}, {"question_id": 34603, "answer": "1000"}],
    ),
    "mm-vet": (
        ["x = -1", 'It says "ä".\nTwice.'],
        "mm-vet.json",
        {"v1_0": "x = -1", "v1_1": 'It says "ä".\nTwice.'},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_json_forms(name: str, tmp_path: Path) -> None:
    answers, file, content = FORMS[name]
    out = handed_in(name, tmp_path, *answers)
    assert json.loads((out / file).read_text(encoding="utf-8")) == content
    assert sorted(path.name for path in out.iterdir()) == sorted([file, "answers.jsonl"])


def test_the_lines_of_llava(tmp_path: Path) -> None:
    out = handed_in("pope", tmp_path, *["Yes"] * 11, "No\nnever")
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "" and len(lines) == 12
    rows = [json.loads(line) for line in lines]
    assert list(rows[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert [row["question_id"] for row in rows[:5]] == ["1", "2", "3", "4", "1"]
    assert rows[11]["text"] == "No\nnever" and rows[0]["model_id"] == "pocket"
    assert rows[0]["prompt"].startswith("Is there a dog in the image?\nAnswer")
    assert rows[4]["metadata"] == {"configuration": "none", "category": "popular"}
    assert len({row["answer_id"] for row in rows}) == 12
    assert not [path for path in out.iterdir() if path.name != "answers.jsonl"]
    before = (out / "answers.jsonl").read_bytes()
    handed_in("pope", tmp_path, *["Yes"] * 11, "No\nnever")
    assert (out / "answers.jsonl").read_bytes() == before


def test_questions_of_textvqa_are_called_by_their_picture_in_the_lines(tmp_path: Path) -> None:
    out = handed_in("textvqa", tmp_path, "a", "b")
    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["question_id"] for line in lines] == ["003a8ae2ef43b901", 34603]


def test_a_question_of_two_lines_is_a_line_of_mme(tmp_path: Path) -> None:
    out = handed_in("mme", tmp_path, "Yes", "No", "Yes\tor\nno", "No", *["yes"] * 4)
    files = sorted((out / "mme").iterdir())
    assert [path.name for path in files] == ["OCR.txt", "code_reasoning.txt"]
    lines = files[0].read_text(encoding="utf-8").splitlines()
    assert lines[0] == "0.jpg\tIs this so 0? Please answer yes or no.\tYes\tYes"
    assert lines[2].split("\t")[3] == "Yes or no"
    assert [line.split("\t")[0] for line in lines] == ["0.jpg", "0.jpg", "1.jpg", "1.jpg"]


NS = {"x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}


def sheet(path: Path) -> list[dict[str, str]]:
    """The rows of a workbook, a cell by its column's letters."""
    with zipfile.ZipFile(path) as package:
        assert package.testzip() is None
        for part in package.namelist():
            ElementTree.fromstring(package.read(part))
        root = ElementTree.fromstring(package.read("xl/sheet.xml"))
    rows = []
    for row in root.iterfind(".//x:row", NS):
        cells = {}
        for cell in row.iterfind("x:c", NS):
            letters = cell.attrib["r"].rstrip("0123456789")
            kind = "x:v" if "t" not in cell.attrib else "x:is/x:t"
            cells[letters] = cell.findtext(kind, "", NS)
        rows.append(cells)
    return rows


def test_the_table_of_mmbench(tmp_path: Path) -> None:
    out = handed_in("mmbench-en", tmp_path, "A", "", "(C) <b> & c", "D", "A\x00\x0b.")
    head, *rows = sheet(out / "mmbench-en.xlsx")
    assert list(head.values()) == [
        "index", "question", "A", "B", "C", "prediction", "answer", "category", "L2-category",
        "split",
    ]  # fmt: skip
    assert rows[0] == {
        "A": "7", "B": "Who is it?", "C": "a cook", "D": "a clerk", "E": "a guest", "F": "A",
        "G": "A", "H": "identity", "I": "coarse", "J": "dev",
    }  # fmt: skip
    assert "F" not in rows[1] and rows[2]["F"] == "(C) <b> & c" and rows[4]["F"] == "A."
    assert "E" not in rows[3]  # two options alone
    before = (out / "mmbench-en.xlsx").read_bytes()
    handed_in("mmbench-en", tmp_path, "A", "", "(C) <b> & c", "D", "A\x00\x0b.")
    assert (out / "mmbench-en.xlsx").read_bytes() == before


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.integers() | st.none()), max_size=4))
def test_a_sheet_holds_any_text(rows: list[tuple[str, int | None]]) -> None:
    import io

    made = workbook(["text", "number"], rows)
    found = sheet(io.BytesIO(made))  # type: ignore[arg-type]
    assert found[0] == {"A": "text", "B": "number"}
    for (text, number), cells in zip(rows, found[1:], strict=True):
        allowed = [
            c for c in text
            if c in "\t\n\r" or 0x20 <= ord(c) < 0xD800 or 0xE000 <= ord(c) < 0xFFFE
            or ord(c) > 0xFFFF
        ]  # fmt: skip
        assert cells.get("A", "") == "".join(allowed)
        assert cells.get("B", "") == ("" if number is None else str(number))


def test_columns_have_the_names_of_spreadsheets() -> None:
    import io

    found = sheet(io.BytesIO(workbook([f"{n}" for n in range(800)], [])))  # type: ignore[arg-type]
    places = [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA"), (701, "ZZ"), (702, "AAA")]
    assert all(found[0][name] == str(n) for n, name in places)


def test_every_id_of_the_test_set_is_there(tmp_path: Path) -> None:
    bench = opened("vqav2", tmp_path)
    whole = tmp_path / "questions.json"
    listed = [{"question_id": n, "image_id": 1, "question": "?"} for n in (1003, 1001, 1000, 7)]
    whole.write_text(json.dumps({"info": {}, "questions": listed}))
    ids = read_ids(whole, bench)
    out = handed_in("vqav2", tmp_path, "yes", "2", ids=ids)
    assert json.loads((out / "vqav2.json").read_text()) == [
        {"question_id": 1003, "answer": ""}, {"question_id": 1001, "answer": "2"},
        {"question_id": 1000, "answer": "yes"}, {"question_id": 7, "answer": ""},
    ]  # fmt: skip
    lines = tmp_path / "questions.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in listed))
    assert read_ids(lines, bench) == ids


def test_ids_of_something_else_are_refused(tmp_path: Path) -> None:
    bench = opened("vqav2", tmp_path)
    path = tmp_path / "ids.json"
    for content, said in (
        ("{", "is not JSON"),
        ("[]", "no list of questions"),
        ("[1, 2]", "no list of questions"),
        ('{"questions": [{"id": 1}]}', "no list of questions"),
        ('[{"question_id": 1000}, {"question_id": null}]', "no list of questions"),
        ('[{"question_id": 1000.0}]', '"question_id" is 1000.0: write it as text'),
        ('[{"question_id": "\\ud800"}]', '"question_id" holds half of a surrogate pair'),
    ):
        path.write_text(content)
        with pytest.raises(RunError, match=said):
            read_ids(path, bench)
    path.write_text('[{"question_id": 1000}]')
    with pytest.raises(CallError, match="lacks 1 of the questions that are asked, such as '1001'"):
        read_ids(path, bench)
    with pytest.raises(CallError, match="does not exist"):
        read_ids(tmp_path / "none.json", bench)
    with pytest.raises(CallError, match="pope has none"):
        read_ids(path, opened("pope", tmp_path))
