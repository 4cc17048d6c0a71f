"""Rows as other programs write them, and result files that two runs want."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.answer import results as module
from resprune_jax.experiments.answer.command import AnswerOptions
from resprune_jax.experiments.answer.results import Results
from resprune_jax.experiments.answer.rows import Row, read_rows
from tests.experiments.fakes import FakeLVLM, picture

GOOD = {"image": "a.png", "prompt": "what?"}


def run(folder: Path, lines: list[str] | bytes, **more: Any) -> dict[int, dict[str, Any]]:
    """The results of rows, by row; the run is resumed once, which must change nothing."""
    picture(folder / "a.png")
    content = lines if isinstance(lines, bytes) else "\n".join(lines).encode("utf-8")
    (folder / "rows.jsonl").write_bytes(content)
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    options = AnswerOptions(model="m", rows=folder / "rows.jsonl", output=out, **more)
    found = []
    for _ in range(2):
        answer.run(options, load=lambda _: FakeLVLM())
        found.append([json.loads(line) for line in out.read_bytes().split(b"\n") if line])
    key = lambda result: result["row"]  # noqa: E731
    assert sorted(found[0], key=key) == sorted(found[1], key=key)
    return {result["row"]: result for result in found[1]}


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"]
)
def test_only_a_line_feed_ends_a_row(tmp_path: Path, mark: str) -> None:
    text = f"read:{mark}what?"
    odd = json.dumps(GOOD | {"prompt": text}, ensure_ascii=False)
    if ord(mark) < 32:  # JSON escapes these
        odd = json.dumps(GOOD | {"prompt": text})
    found = run(tmp_path, [odd, json.dumps(GOOD) + "\r", json.dumps(GOOD)])
    assert [found[i]["prompt"] for i in range(3)] == [text, "what?", "what?"]
    assert all("answer" in result for result in found.values())


BAD = {
    "half a pair in the prompt": (r'"prompt": "what \ud83d?"', "prompt"),
    "the other half": (r'"prompt": "\ude00"', "prompt"),
    "the halves the wrong way round": (r'"prompt": "\ude00\ud83d"', "prompt"),
    "half a pair in the id": (r'"id": "a\udbff"', "id"),
    "half a pair in the image": (r'"image": "\ud800.png"', "half of a surrogate"),
    "a name of bytes that is not there": (r'"image": "caf\udce9.png"', "does not exist"),
    "in a list of images": (r'"image": ["a.png", "\udfff\ud83d.png"]', "half of a surrogate"),
    "in the video": (r'"video": "\ud83d"', "half of a surrogate"),
    "fps Infinity": ('"fps": Infinity', "fps"),
    "fps -Infinity": ('"fps": -Infinity', "fps"),
    "fps NaN": ('"fps": NaN', "fps"),
    "fps 1e400": ('"fps": 1e400', "fps"),
    "a huge fps": ('"fps": 1' + "0" * 400, "fps"),
    "fps 0": ('"fps": 0', "fps"),
    "keep NaN": ('"keep": NaN', "keep"),
    "keep Infinity": ('"keep": Infinity', "keep"),
    "a huge keep": ('"keep": 1' + "0" * 400, "keep"),
    "id NaN": ('"id": NaN', "id"),
    "an id of another kind": ('"id": {"a": 1}', "id"),
    "a NUL in the image": (r'"image": "a\u0000.png"', "null byte"),
    "a long name": (f'"image": "{"n" * 3000}"', "too long"),
    "a number of 5000 digits": ('"keep": ' + "9" * 5000, "not JSON"),
    "nested without end": ('"id": ' + "[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_fails_alone(tmp_path: Path, name: str) -> None:
    part, word = BAD[name]
    good = json.dumps(GOOD)
    found = run(tmp_path, [good, '{"image": "a.png", "prompt": "what?", ' + part + "}", good])
    assert [i for i in range(3) if "answer" in found[i]] == [0, 2]
    assert word in found[1]["error"]
    assert found[1]["error"].isprintable() and len(found[1]["error"]) <= 500


def test_a_line_that_is_not_utf8_fails_alone(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    found = run(tmp_path, b"\xef\xbb\xbf" + b"\n".join([good, b'{"prompt": "\xe9"}', good, b"\0"]))
    assert [i for i in found if "answer" in found[i]] == [0, 2]
    assert "UTF-8" in found[1]["error"]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_of_another_encoding_is_refused(tmp_path: Path, codec: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes('{"prompt": "naïve"}\n'.encode(codec))
    with pytest.raises(CallError, match="UTF-8"):
        read_rows(tmp_path / "rows.jsonl", keep=None)


@pytest.mark.parametrize(
    "nulls",
    [{"video": None}, {"fps": None}, {"id": None}, {"video": None, "fps": None, "id": None}],
)
def test_a_null_is_a_key_that_is_not_there(tmp_path: Path, nulls: dict[str, Any]) -> None:
    found = run(tmp_path, [json.dumps(GOOD | nulls), json.dumps(GOOD | {"id": 1.5})])
    assert "answer" in found[0] and not set(nulls) & set(found[0])
    assert found[1]["id"] == 1.5


def test_a_null_prompt_is_the_common_one(tmp_path: Path) -> None:
    lines = [json.dumps({"image": "a.png", "prompt": None}), json.dumps({"image": "a.png"})]
    found = run(tmp_path, lines, prompt="the same?")
    assert [found[i]["prompt"] for i in range(2)] == ["the same?"] * 2
    assert "prompt" in run(tmp_path, lines)[0]["error"]


def test_unknown_keys_are_named_up_to_a_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, [json.dumps(GOOD | {f"odd {i}\n": i for i in range(50)})])
    said = [record.getMessage() for record in caplog.records if "no meaning" in record.getMessage()]
    assert len(said) == 8 and all(line.isprintable() for line in said)


def test_bad_pictures_are_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "old.pcx").write_bytes(b"\n\5\1\x08" + bytes(200))

    def refuse(_: AnswerOptions) -> Any:
        raise AssertionError("the model was loaded")

    names = ("text.png", "old.pcx", "missing.png")
    rows = [json.dumps({"image": name, "prompt": "what?"}) for name in names]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out.jsonl"
    asked = AnswerOptions(model="m", rows=tmp_path / "rows.jsonl", output=out)
    assert answer.run(asked, load=refuse) == 1
    errors = [json.loads(line)["error"] for line in out.read_text().splitlines()]
    for error, word in zip(errors, ["a text file", "a PCX picture", "does not exist"], strict=True):
        assert word in error


@pytest.mark.parametrize(
    ("done", "tail"),
    [
        (3, b'{"row": 3, "im'),
        (0, b'{"ro'),
        (5, b'{"row": 5, "image": "a.png", "prompt": "question 5?", "error": "gone"}\n'),
        (1, b'{"row": 0, "image": "a.png", "prompt": "question 0?", "answer": "again"}\n'),
    ],
)
def test_a_file_that_was_replaced_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int, tail: bytes
) -> None:
    """A run that opened the file before another one put a cleaned file in its place."""
    asked = [Row(i, "a.png", f"question {i}?") for i in range(6)]
    path = tmp_path / "out.jsonl"
    with Results(path, asked, {}) as results:
        for row in asked[:done]:
            results.write(row.result(answer="x"))
    with path.open("ab") as file:
        file.write(tail)
    lock, opened, replaced = module._lock, threading.Event(), threading.Event()

    def slow_lock(file: Any) -> None:
        if threading.current_thread().name == "late" and not opened.is_set():
            opened.set()
            replaced.wait(5)
        lock(file)

    monkeypatch.setattr(module, "_lock", slow_lock)

    def late() -> None:
        with Results(path, asked, {}) as mine:
            for row in asked:
                if row.index not in mine.done:
                    mine.write(row.result(answer="late"))

    thread = threading.Thread(target=late, name="late")
    thread.start()
    opened.wait(5)
    with Results(path, asked, {}):
        pass
    replaced.set()
    thread.join()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [result["row"] for result in found] == list(range(6))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_answer_that_stands_there_twice_is_kept_once(tmp_path: Path) -> None:
    asked = [Row(0, "a.png", "what?")]
    path = tmp_path / "out.jsonl"
    with Results(path, asked, {}) as results:
        results.write(asked[0].result(answer="first"))
        results.write(asked[0].result(answer="second"))
    with Results(path, asked, {}) as results:
        assert results.done[0]["answer"] == "first"
    assert len(path.read_text().splitlines()) == 1


def test_a_name_of_250_characters_can_be_resumed(tmp_path: Path) -> None:
    asked = [Row(0, "a.png", "what?")]
    path = tmp_path / ("n" * 250)
    path.write_bytes(b'{"row": 0, "im')
    with Results(path, asked, {}) as results:
        assert results.done == {}


def test_rows_draw_from_their_own_numbers_in_any_batch(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = "".join(json.dumps(GOOD | {"prompt": f"{i}?"}) + "\n" for i in range(7))
    (tmp_path / "rows.jsonl").write_text(rows)
    seen: list[dict[str, int]] = []
    for size in (1, 3, 7):
        own: dict[str, int] = {}

        class Noting(FakeLVLM):
            def generate(self, images: Any, prompts: Any, **more: Any) -> Any:
                own.update(zip(prompts, more["options"].rng_seed, strict=True))  # noqa: B023
                return super().generate(images, prompts, **more)

        asked = AnswerOptions(
            model="m", rows=tmp_path / "rows.jsonl", temperature=0.7, batch_size=size,
            rng_seed=2**32 - 3,
        )  # fmt: skip
        answer.run(asked, load=lambda _, made=Noting: made())
        seen.append(own)
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0].values())) == 7


def test_an_empty_list_of_images_is_a_question_without_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [{"image": [], "prompt": "x?"}, {"prompt": "x?"}, {"image": [""], "prompt": "x?"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, none, odd = read_rows(path, keep=None)
    assert text.error is None and text.pictures() == [] and text.name == "no image"
    assert none.error is not None and odd.error is not None
