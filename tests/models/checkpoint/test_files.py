"""The one reader of small files, and the fields of `config.json`: limits, and plain words."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint import fields
from resprune_jax.models.checkpoint.files import (
    DEEPEST,
    LONGEST_NUMBER,
    foreign,
    read_json,
    read_text,
)

leaves = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(max_size=5)
trees = st.recursive(leaves, lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x))


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(0, 2 * DEEPEST))
def test_what_is_read_is_what_was_written_within_the_depth(
    tmp_path_factory: pytest.TempPathFactory, tree: Any, more: int
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.json"
    for _ in range(more):
        tree = [tree]
    content = {"a": tree}
    path.write_text(json.dumps(content))
    if depth(content) <= DEEPEST:
        assert read_json(path) == content
    else:
        with pytest.raises(RunError, match=f"nested more than {DEEPEST} deep"):
            read_json(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested more than"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested more than"),
        (b'{"a": ' + b"7" * (LONGEST_NUMBER + 1) + b"}", "a whole number of more than 40 digits"),
        (b'{"a": [-1' + b"0" * 300 + b"]}", "a whole number of more than 40 digits"),
        (b'{"a": ' + b"9" * 9000 + b"}", "not readable JSON"),
        (b"\xff\xfe", "not a text in UTF-8"),
        (b"\xef\xbb\xbf{}", "not readable JSON"),
        (b"[1]", r"holds no JSON object but \[1\]"),
        (b'"' + b"x" * 10_000 + b'"', "holds no JSON object"),
        (b" " * (5 << 20), "more than 4194304 bytes"),
    ],
)
def test_what_no_reader_should_take(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) <= 450


def test_missing_and_empty_files_and_what_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {} and read_text(tmp_path / "none.json") is None
    (tmp_path / "empty.json").write_text(" \n")
    assert read_json(tmp_path / "empty.json") == {}
    (tmp_path / "folder.json").mkdir()
    assert read_json(tmp_path / "folder.json") == {}


def test_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may read everything, so the refusal is the system's words alone."""
    path = tmp_path / "config.json"
    path.write_text("{}")

    def refuse(self: Path, *args: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"config\.json cannot be read: permission denied"):
        read_json(path)


def test_failures_of_other_libraries_are_ours_and_an_interrupt_is_not() -> None:
    for problem in (ValueError("no"), BaseException("panicked"), MemoryError(), KeyError("a")):
        with pytest.raises(RunError, match="the file is broken: "), foreign("the file is broken"):
            raise problem
    with pytest.raises(CallError, match=r"^as it was$"), foreign("x"):
        raise CallError("as it was")
    for end in (KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(end)), foreign("x"):
            raise end


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (fields.size, [1, 2, 1 << 24], [0, -1, (1 << 24) + 1, 10**39, 1.0, True, "3", None, [3]]),
        (fields.layers, [1, 80, 256], [257, 10**6, 0]),
        (fields.token_id, [0, 151655, (1 << 31) - 1], [-1, 1 << 31, 10**12, "0"]),
        (fields.number, [1e-12, 1, 0.5, 1e6], [0, -1, float("inf"), float("nan"), 1e-300, 10**39]),
        (fields.side, [14, [14, 14]], [[], [[1], [2]], [14, 28], "14", [[14]], 1 << 20]),
    ],
)
def test_every_number_has_a_range(check: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check("a field", value) == (value[0] if isinstance(value, list) else value)
    for value in bad:
        with pytest.raises(CallError, match="a field") as caught:
            check("a field", value)
        assert len(str(caught.value)) < 250


def test_a_supported_value_has_the_supported_type() -> None:
    assert fields.one_of("a", 2, (1, 2)) == 2 and fields.one_of("a", None, (None, 3)) is None
    for value in (2.0, True, "2", [2], {}, "x" * 100_000):
        with pytest.raises(CallError, match=r"a .* is not supported; supported: 1, 2"):
            fields.one_of("a", value, (1, 2))
