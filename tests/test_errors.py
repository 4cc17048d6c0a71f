"""Messages are one printable line, whatever they quote."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resprune_jax import errors
from resprune_jax.errors import LONGEST, CallError, RunError, printable

ANY = st.text(st.characters(codec=None), max_size=200)


@given(st.one_of(ANY, st.builds(lambda text, n: text * n, ANY, st.integers(0, 300))))
def test_any_text_becomes_one_printable_line(text: str) -> None:
    said = str(CallError(text))
    assert said.isprintable() and len(said) <= LONGEST
    said.encode()
    assert printable(said) == said  # once is enough


@given(st.text(st.sampled_from("ab é这🙂 '\\.,:"), max_size=LONGEST))
def test_a_good_line_stays_as_it_is(text: str) -> None:
    assert printable(text) == text.strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two\nlines", "two lines"),
        ("a \r\n\t b", "a b"),
        ("a\u2028b\u0085c\x0bd", "a b c d"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("half \ud83d", "half \\ud83d"),
        ("\u202eflipped", "\\u202eflipped"),
        ("zero\0", "zero\\x00"),
    ],
)
def test_what_is_escaped(text: str, said: str) -> None:
    assert str(RunError(text)) == said
    assert str(pickle.loads(pickle.dumps(RunError(text)))) == said


def test_of_a_long_message_beginning_and_end_are_said() -> None:
    said = str(CallError(f"the model {'x' * 10**6} is not there: give another"))
    assert said.startswith("the model xxx") and said.endswith("xxx is not there: give another")


def test_what_is_said_once_is_no_endless_list(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())
    monkeypatch.setattr(errors, "MOST_SAID", 3)
    with caplog.at_level("WARNING"):
        for number in (1, 1, 2, 3, 2, 4, 5, 6):
            errors.say_once(f"budget {number}", f"number {number}")
    said = [record.message for record in caplog.records]
    assert said[:3] == ["number 1", "number 2", "number 3"]
    assert len(said) == 4 and "no further" in said[3] and len(errors._SAID) == 4
