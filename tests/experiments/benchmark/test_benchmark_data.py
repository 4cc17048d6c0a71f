"""The nine benchmarks' files as data sets: what is asked, in which order, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.benchmark.prompts import PROMPTS
from resprune_jax.experiments.benchmark.run.data import open_benchmark
from tests.experiments.benchmark.made import ROWS, album, parquet, picture

KEYS = {
    "vqav2": ["1000", "1001"],
    "gqa": ["0201", "0203", "0202"],
    "vizwiz": ["VizWiz_val_00000001", "VizWiz_val_00000002"],
    "sqa-img": ["0", "1"],
    "textvqa": ["34602", "34603"],
    "pope": [f"{split}/{n}" for n in (1, 3) for split in ("random", "popular", "adversarial")],
    "mme": [
        f"{category}/{n}.jpg#{k}"
        for n in range(2)
        for category in ("OCR", "code_reasoning")
        for k in (1, 2)
    ],
    "mmbench-en": ["7", "1000007", "2000007", "8", "1000008"],
    "mm-vet": ["v1_0", "v1_1"],
}
"""In the order of pictures. POPE's are those of the first picture."""


@pytest.mark.parametrize("name", ROWS)
def test_a_file_of_each_benchmark_opens(name: str, tmp_path: Path) -> None:
    data = parquet(tmp_path / "rows.parquet", ROWS[name])
    images = album(tmp_path / "pictures.parquet") if name == "gqa" else None
    bench = open_benchmark(name, str(data), images=images)
    keys = [example.key for example in bench.examples]
    if name == "pope":
        assert sorted(keys[:6]) == sorted(KEYS[name]) and len(keys) == 12
    else:
        assert keys == KEYS[name]
    order = [example.images for example in bench.examples]
    assert len(set(order)) == sum(a != b for a, b in zip(order, [None, *order[:-1]], strict=True))
    assert set(bench.rows) == set(keys) and next(iter(bench.rows)) == keys[0]
    asked = {example.key: example.question for example in bench.examples}
    prompts = [PROMPTS[name](row) for row in ROWS[name]]
    assert [asked[key] for key in bench.rows] == prompts
    assert len({example.cluster for example in bench.examples}) == len(set(order))
    assert all(isinstance(bench.pictures(each)[0], Image.Image) for each in bench.examples)


def test_scores_are_the_scorers(tmp_path: Path) -> None:
    bench = open_benchmark("mmbench-en", str(parquet(tmp_path / "a.parquet", ROWS["mmbench-en"])))
    first = bench.examples[0]
    assert (bench.score(first, "(A)"), bench.score(first, "a clerk")) == (1, 0)
    assert first.category == "identity" and first.answers == ("A",)
    vet = open_benchmark("mm-vet", str(parquet(tmp_path / "b.parquet", ROWS["mm-vet"])))
    assert vet.score(vet.examples[0], "-1 or -5") is None
    test = [{k: v for k, v in row.items() if k != "answers"} for row in ROWS["vqav2"]]
    split = open_benchmark("vqav2", str(parquet(tmp_path / "c.parquet", test)))
    assert split.score(split.examples[0], "yes") is None and split.examples[0].answers == ()


def test_lines_and_folders_of_shards_are_read_too(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {"question_id": n, "question": f"Is there a {what}?", "answer": "yes", "image": "a.png"}
        for n, what in enumerate(("cup", "dog"))
    ]
    lines = tmp_path / "pope.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = open_benchmark("pope", str(lines))
    assert [example.key for example in bench.examples] == ["0", "1"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "a.png").rename(elsewhere / "a.png")
    with pytest.raises(CallError, match="1 more row without a picture"):
        open_benchmark("pope", str(lines))
    again = open_benchmark("pope", str(lines), images=elsewhere)
    assert again.fingerprint == bench.fingerprint
    folder = tmp_path / "data"
    folder.mkdir()
    for n, split in enumerate(("test", "val")):
        parquet(folder / f"{split}-00000-of-00001.parquet", ROWS["vizwiz"][n:])
    assert len(open_benchmark("vizwiz", f"{folder}:test").examples) == 2
    assert len(open_benchmark("vizwiz", f"{folder}:val").examples) == 1
    with pytest.raises(CallError, match="choose one"):
        open_benchmark("vizwiz", str(folder))


def test_pictures_of_gqa_lie_in_a_folder_as_well(tmp_path: Path) -> None:
    data = parquet(tmp_path / "rows.parquet", ROWS["gqa"])
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("n1", "n2"):
        Image.new("RGB", (4, 4)).save(folder / f"{name}.jpg")
    bench = open_benchmark("gqa", str(data), images=folder)
    assert [example.cluster for example in bench.examples] == ["n1.jpg", "n1.jpg", "n2.jpg"]
    assert [example.category for example in bench.examples] == ["binary", "open", "open"]
    (folder / "n2.jpg").unlink()
    with pytest.raises(CallError, match=r"n2\.jpg does not exist"):
        open_benchmark("gqa", str(data), images=folder)
    few = parquet(tmp_path / "few.parquet", [{"id": "n1", "image": picture(1)}])
    with pytest.raises(CallError, match="no picture 'n2'"):
        open_benchmark("gqa", str(data), images=few)


def test_a_picture_that_a_row_does_not_name_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "n1.jpg")
    for change in ({"image": None}, {"image": None, "imageId": "n1"}):
        rows = [{**ROWS["pope"][0], **change}]
        with pytest.raises(CallError, match=r'row 0 .*no picture in the column "image"'):
            open_benchmark("pope", str(lines(tmp_path, rows)), images=folder)
    for name, said in (
        ("n" * 400, "File name too long"), ("a\0b", "is no path"), (None, 'no "imageId"'),
        (["n1"], '"imageId" is'), ("../n2", "does not exist"),
    ):  # fmt: skip
        rows = [{**ROWS["gqa"][0], "imageId": name}]
        with pytest.raises(CallError) as caught:
            open_benchmark("gqa", str(lines(tmp_path, rows)), images=folder)
        assert said in str(caught.value) and "row 0" in str(caught.value)


def test_two_pictures_of_one_id_are_refused(tmp_path: Path) -> None:
    data = parquet(tmp_path / "rows.parquet", ROWS["gqa"])
    own = [{"id": name, "image": picture(n)} for n, name in enumerate(("n1", "n2", "n1"))]
    with pytest.raises(CallError, match="has two pictures 'n1'"):
        open_benchmark("gqa", str(data), images=parquet(tmp_path / "two.parquet", own))
    own[2]["image"] = own[0]["image"]
    images = parquet(tmp_path / "same.parquet", own)
    assert len(open_benchmark("gqa", str(data), images=images).examples) == 3


def test_few_annotators_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{**ROWS["vizwiz"][0], "answers": ["yes"] * 3}, *ROWS["vizwiz"][1:]]
    open_benchmark("vizwiz", str(parquet(tmp_path / "rows.parquet", rows)))
    assert "1 of 2 rows have fewer than 4 answers" in caplog.text
    open_benchmark("vizwiz", str(parquet(tmp_path / "all.parquet", ROWS["vizwiz"])))
    assert "all.parquet" not in caplog.text


def test_rows_of_science_questions_without_a_picture_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "image": None} for row in ROWS["sqa-img"][:1]] + ROWS["sqa-img"]
    bench = open_benchmark("sqa-img", str(parquet(tmp_path / "rows.parquet", rows)))
    assert [example.key for example in bench.examples] == ["1", "2"]
    assert "1 of 3 rows have no picture" in caplog.text
    with pytest.raises(CallError, match="no row with a picture"):
        open_benchmark("sqa-img", str(parquet(tmp_path / "bare.parquet", rows[:1])))


def test_what_is_asked_and_accepted_is_in_the_fingerprint(tmp_path: Path) -> None:
    def of(rows: list[dict[str, Any]], **more: Any) -> str:
        path = parquet(tmp_path / "rows.parquet", rows)
        return open_benchmark("textvqa", str(path), **more).fingerprint

    rows = ROWS["textvqa"]
    same = of(rows)
    assert of([{**row, "image_width": 3} for row in rows]) == same
    changes = [
        {"answers": ["x"] * 10}, {"question": "Why?"}, {"question_id": 1}, {"ocr_tokens": ["x"]},
        {"image": picture(99)},
    ]  # fmt: skip
    assert len({same, *(of([{**rows[0], **each}, rows[1]]) for each in changes)}) == 6
    assert of(rows, ocr_line=False) != same
    assert of(rows, limit=1) == of(rows[:1]) != same


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("pope", {"answer": "maybe"}, "row 0: \"answer\" is 'maybe': it is yes or no"),
    ("pope", {"question": ""}, 'row 0: no text in the column "question"'),
    ("pope", {"image": None}, 'row 0: no picture in the column "image"'),
    ("mme", {"category": "ocr"}, "one of MME's 14 subtasks"),
    ("mme", {"question_id": "OCR/9.jpg"}, "2 pictures do not have two questions"),
    ("mmbench-en", {"answer": "D"}, "\"answer\" is 'D': it is the letter of an option"),
    ("mmbench-en", {"index": None}, '"index" is None: it is a whole number'),
    ("mmbench-en", {"index": 8}, "its id '8' is that of"),
    ("sqa-img", {"answer": 2}, '"answer" is 2: it is the number of a choice, from 0'),
    ("vqav2", {"question_id": 1001}, "its id '1001' is that of"),
    ("textvqa", {"ocr_tokens": None}, '"ocr_tokens" is None'),
]


@pytest.mark.parametrize(("name", "change", "said"), BAD)
def test_a_row_that_cannot_be_used_is_named(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    rows = [{**ROWS[name][0], **change}, *ROWS[name][1:]]
    path = parquet(tmp_path / "rows.parquet", rows)
    with pytest.raises(CallError) as caught:
        open_benchmark(name, str(path))
    text = str(caught.value)
    assert said in text and str(path) in text and "\n" not in text


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines, which hold more than Parquet, with their pictures beside them."""
    made = []
    for row in rows:
        image = row.get("image")
        if image is not None:
            (folder / image["path"]).write_bytes(image["bytes"])
        made.append(json.dumps({**row, "image": image and image["path"]}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(made))
    return path


ODD: list[tuple[str, dict[str, Any], str]] = [
    ("textvqa", {"image_id": ["x"]}, "\"image_id\" is ['x']: write it as text"),
    ("mmbench-en", {"split": ["dev"]}, "\"split\" is ['dev']: write it as text"),
    ("pope", {"category": "random\ud800"}, '"category" holds half of a surrogate pair'),
    ("pope", {"question": "Is there a \udc00?"}, '"question" holds half of a surrogate pair'),
    ("textvqa", {"ocr_tokens": ["a", "\ud800"]}, '"ocr_tokens" holds half of a surrogate pair'),
    ("vizwiz", {"answers": ["\ud800"] * 10}, '"answers" holds half of a surrogate pair'),
]
"""What JSON lines can hold and a table cannot."""


@pytest.mark.parametrize(("name", "change", "said"), ODD)
def test_what_no_table_holds_is_refused_before_anything_is_asked(
    name: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = lines(tmp_path, [{**ROWS[name][0], **change}, *ROWS[name][1:]])
    with pytest.raises(CallError) as caught:
        open_benchmark(name, str(path))
    assert f"{path}, row 0 (line 1): " in str(caught.value) and said in str(caught.value)


def test_a_pair_that_a_limit_parts_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", ROWS["mme"])
    assert len(open_benchmark("mme", str(path), limit=4).examples) == 4
    with pytest.raises(CallError, match="--examples 3 parts a pair"):
        open_benchmark("mme", str(path), limit=3)


def test_another_file_than_the_benchmarks_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", ROWS["pope"])
    with pytest.raises(CallError, match=r"no column 'ocr_tokens', which textvqa needs.*columns"):
        open_benchmark("textvqa", str(path))
    with pytest.raises(CallError, match="unknown benchmark 'popes': choose one of vqav2"):
        open_benchmark("popes", str(path))
    with pytest.raises(CallError, match=r"missing\.parquet does not exist"):
        open_benchmark("pope", str(tmp_path / "missing.parquet"))
    with pytest.raises(CallError, match=r"no picture.*--images"):
        open_benchmark("gqa", str(parquet(tmp_path / "gqa.parquet", ROWS["gqa"])))
    with pytest.raises(CallError, match=r"--images .* does not exist"):
        open_benchmark("gqa", str(path), images=tmp_path / "none")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(RunError, match="broken"):
        open_benchmark("pope", str(path))


def test_the_pocket_scenes_are_no_benchmark() -> None:
    with pytest.raises(CallError, match=r"does not exist|unknown data set"):
        open_benchmark("pope", "pocket:test")


def test_a_benchmark_is_a_data_set() -> None:
    from resprune_jax.experiments.benchmark.run.data import Benchmark
    from resprune_jax.experiments.data.examples import Dataset

    own = {field.name for field in dataclasses.fields(Benchmark)}
    assert {field.name for field in dataclasses.fields(Dataset)} < own
