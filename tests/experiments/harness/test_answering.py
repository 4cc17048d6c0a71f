"""Batches, shared pictures, rows that fail alone, and runs that go on."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.harness.answering import Answering
from resprune_jax.experiments.harness.journal import Journal
from resprune_jax.experiments.harness.requests import Asked, Content, drawing_of
from resprune_jax.models.prompts.options import CallOptions


class FakeLVLM:
    """Answers with the picture's colour and the question; notes what it was asked together.

    Attributes:
        calls: for every call, (number of pictures, questions, options).
        fails: question -> error of a whole call that holds it.
    """

    def __init__(self, **fails: Exception) -> None:
        self.calls: list[tuple[int, list[str], Any]] = []
        self.fails = fails
        self.encoder = SimpleNamespace(
            encode=lambda text, media: SimpleNamespace(ids=[0] * (len(text) + len(media)))
        )

    def generate(self, images: Sequence[Any], prompts: Sequence[list[str]], *, options: Any) -> Any:
        asked = [text for own in prompts for text in own]
        self.calls.append((len(images), asked, options))
        for text in asked:
            if text in self.fails:
                raise self.fails[text]
        texts = [
            f"{'none' if own is None else own[0].getpixel((0, 0))[0]} {text}\n\nmore"
            for own, texts in zip(images, prompts, strict=True)
            for text in texts
        ]
        size = len(texts)
        return SimpleNamespace(
            texts=texts, tokens=[[1, 2, 3]] * size, kept=[5] * size, visual_tokens=[16] * size,
            errors=["not finite" if text.startswith("nan") else None for text in asked],
            timings={"encode": 0.1, "select": 0.1, "prefill": 0.1, "decode": 0.1},
        )  # fmt: skip


def ask(shade: int | None, text: str, repeat: int = 0, **kwargs: Any) -> Asked:
    """A question about a picture of one shade."""
    images = () if shade is None else (Image.new("RGB", (2, 2), (shade, 0, 0)),)
    drawing = drawing_of({"until": ["\n\n"], **kwargs})
    return Asked(f"task t, row {text}", lambda: Content(images, text), drawing, repeat)


def answers(lvlm: Any, asked: list[Asked], size: int = 4, journal: Journal | None = None) -> Any:
    """Ask them in batches."""
    return Answering(lvlm, CallOptions(keep=5), batch_size=size, journal=journal)(asked)


def test_every_question_gets_its_own_answer_and_pictures_are_shared() -> None:
    lvlm = FakeLVLM()
    asked = [ask(shade, f"q{n}") for n, shade in enumerate([1, 2, 1, None, 1, 2, 3])]
    found = answers(lvlm, asked)
    assert [each.text for each in found] == [
        "1 q0", "2 q1", "1 q2", "none q3", "1 q4", "2 q5", "3 q6"
    ]  # fmt: skip
    assert [(pictures, len(own)) for pictures, own, _ in lvlm.calls] == [(3, 4), (3, 3)]
    first = found[0]
    assert (first.output_tokens, first.kept, first.visual_tokens) == (3, 5, 16)
    assert first.input_tokens == len("q0") + 5 and found[3].input_tokens == len("q3") + 5


def test_questions_that_are_drawn_otherwise_run_apart_and_by_seeds_of_their_own() -> None:
    lvlm = FakeLVLM()
    asked = [
        ask(1, "a"),
        ask(1, "b", temperature=0.5),
        ask(1, "c"),
        ask(1, "b", 1, temperature=0.5),
    ]
    found = answers(lvlm, asked)
    assert [each.text for each in found] == ["1 a", "1 b", "1 c", "1 b"]
    (_, greedy, first), (_, drawn, second) = lvlm.calls
    assert greedy == ["a", "c"] and drawn == ["b", "b"]
    assert first.rng_seed == 0 and first.temperature is None
    assert len(set(second.rng_seed)) == 2
    alone = FakeLVLM()
    answers(alone, [asked[3]])
    assert alone.calls[0][2].rng_seed == (second.rng_seed[1],)


def test_rows_fail_alone_and_are_named_at_the_end(tmp_path: Path) -> None:
    def broken() -> Content:
        raise RunError("image 'x.png' is cut short")

    journal = Journal(tmp_path, {})
    lvlm = FakeLVLM(bad=CallError("the prompt is too long"))
    asked = [ask(1, name) for name in ("a", "bad", "nan", "b", "c")]
    asked.insert(2, Asked("task t, row 2", broken, asked[0].drawing))
    with pytest.raises(RunError) as caught:
        answers(lvlm, asked, journal=journal)
    said = str(caught.value)
    assert said.startswith("3 of 6 rows failed (the others are kept in resume): ")
    assert "task t, row bad: the prompt is too long" in said
    assert "task t, row 2: image 'x.png' is cut short" in said
    assert "task t, row nan: not finite" in said
    assert len(journal) == 3


def test_a_call_that_no_row_can_work_with_ends_the_run_at_once() -> None:
    wrong = CallError("trim reads clip_text: give clip=")
    lvlm = FakeLVLM(**{f"q{n}": wrong for n in range(20)})
    with pytest.raises(CallError, match="give clip="):
        answers(lvlm, [ask(n, f"q{n}") for n in range(20)])
    assert len(lvlm.calls) == 5  # the first batch, and its rows


def test_a_run_goes_on_where_it_was_and_in_the_same_batches(tmp_path: Path) -> None:
    asked = [ask(n % 3, f"q{n}") for n in range(10)]
    whole = FakeLVLM()
    want = answers(whole, asked)

    class Killed(BaseException):
        pass

    first = FakeLVLM(q9=Killed())  # type: ignore[arg-type]
    with pytest.raises(Killed):
        answers(first, asked, journal=Journal(tmp_path, {"keep": 5}))
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('{"key": "half a li')
    again = FakeLVLM()
    assert answers(again, asked, journal=Journal(tmp_path, {"keep": 5})) == want
    assert [own for _, own, _ in again.calls] == [whole.calls[2][1]]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 11 and lines[0] == {"settings": {"keep": 5}}
    # Other settings never see them.
    other = FakeLVLM()
    answers(other, asked, journal=Journal(tmp_path, {"keep": 6}))
    assert len(other.calls) == 3


def test_a_batch_that_is_partly_answered_runs_whole_and_keeps_what_was_there(
    tmp_path: Path,
) -> None:
    asked = [ask(n, f"q{n}") for n in range(6)]
    answers(FakeLVLM(), asked[:2], journal=Journal(tmp_path, {}))
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text().replace("1 q1", "as before"))
    lvlm = FakeLVLM()
    found = answers(lvlm, asked, journal=Journal(tmp_path, {}))
    texts = ["0 q0", "as before", "2 q2", "3 q3", "4 q4", "5 q5"]
    assert [each.text for each in found] == texts
    assert [len(own) for _, own, _ in lvlm.calls] == [4, 2]
    assert len(path.read_text().splitlines()) == 7


def test_what_was_answered_is_told_apart_by_all_that_decides_it(tmp_path: Path) -> None:
    base = ask(1, "q")
    answers(FakeLVLM(), [base], journal=Journal(tmp_path, {}))
    others = [ask(2, "q"), ask(1, "r"), ask(None, "q"), ask(1, "q", 1),
              ask(1, "q", max_new_tokens=7), ask(1, "q", until=["x"])]  # fmt: skip
    for number, asked in enumerate([base, *others]):
        lvlm = FakeLVLM()
        answers(lvlm, [asked], journal=Journal(tmp_path, {}))
        assert len(lvlm.calls) == (0 if number == 0 else 1), number


def test_a_broken_journal_is_cut_where_it_is_whole(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    answers(FakeLVLM(), [ask(1, "a"), ask(1, "b")], size=1, journal=journal)
    content = journal.path.read_bytes()
    lines = content.splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:2]) + b"\xff\xfe\n" + lines[2])
    assert len(Journal(tmp_path, {})) == 1
    assert journal.path.read_bytes() == b"".join(lines[:2])
    for odd in (b'{"key": "a", "text": "b"}\n', b'{"key": [1]}\n', b"[1]\n", b"[" * 10**5 + b"\n"):
        journal.path.write_bytes(b"".join(lines[:2]) + odd + lines[2])
        assert len(Journal(tmp_path, {})) == 1
        assert journal.path.read_bytes() == b"".join(lines[:2])
