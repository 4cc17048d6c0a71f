"""Parts of the server by themselves: streamed text, the cache of encoded images, memory, files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.experiments.serve import command
from resprune_jax.experiments.serve.batches.answering import first_stop, steady
from resprune_jax.experiments.serve.pictures.cache import ImageCache, Row, join, split
from resprune_jax.experiments.serve.pictures.folder import Folder
from resprune_jax.experiments.serve.pictures.remote import Remote
from resprune_jax.experiments.serve.pictures.urls import Sources
from resprune_jax.experiments.serve.requests.room import Hold, Room
from resprune_jax.experiments.serve.telling.errors import RequestError
from resprune_jax.methods import VisualTokens
from resprune_jax.models.families.base import ImageLayout

TEXT = st.text("ab \ufffdé", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, max_size=6), st.lists(st.text("ab é", min_size=1, max_size=3), max_size=3))
def test_what_was_streamed_stays(parts: list[str], stops: list[str]) -> None:
    whole = "".join(parts).strip()
    end = first_stop(whole, stops)
    final = whole if end is None else whole[:end]
    for count in range(len(parts)):
        told = "".join(parts[:count]).strip()
        # As a decoder has it: half a character at the end stands as a replacement character.
        place = first_stop(told, stops)
        safe = told[:place] if place is not None else steady(told, stops)
        assert final.startswith(safe)


def test_a_stop_that_is_complete_first_cuts() -> None:
    assert first_stop("xab", ["b", "abc"]) == first_stop("xabc", ["b", "abc"]) == 2
    assert first_stop("xabc", ["abc", "bc"]) == 1  # both at once: the longer one
    assert steady("what sto", ["stop", "toe"]) == "what "
    assert steady("caf\ufffd", []) == "caf" and steady("a  ", []) == "a"


def row(tokens: int, value: float, *, kind: bool = False) -> Row:
    embeddings = np.full((1, tokens, 4), value, np.float32)
    extra: dict[str, Any] = {"kind": np.ones((1, tokens), np.int8)} if kind else {}
    visual: Any = VisualTokens(embeddings, np.ones((1, tokens), bool), **extra)  # type: ignore[arg-type]
    return Row(visual, (ImageLayout(tokens),))


def test_rows_are_joined_in_their_bucket_and_split_again() -> None:
    rows = [row(3, 1.0, kind=True), row(5, 2.0, kind=True), row(2, 3.0, kind=True)]
    joined = join(rows)
    assert joined.visual.embeddings.shape == (4, 5, 4)  # the fourth repeats the first
    assert np.asarray(joined.visual.valid).sum(axis=1).tolist() == [3, 5, 2, 3]
    assert joined.layouts == tuple(one.layout for one in rows)
    for old, new in zip(rows, split(joined), strict=True):
        own = old.layout[0].tokens
        np.testing.assert_array_equal(new.visual.embeddings[:, :own], old.visual.embeddings)
        assert new.visual.kind is not None and not new.visual.valid[:, own:].any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30), st.integers(0, 300))
def test_the_cache_keeps_what_was_used_last_within_its_limit(
    steps: list[tuple[int, int]], most: int
) -> None:
    cache, plain = ImageCache(most), dict[int, Row]()
    for key, tokens in steps:
        found = cache.get(key)
        assert found is plain.get(key)
        if found is not None:
            plain[key] = plain.pop(key)
            continue
        made = row(tokens, float(key))
        cache.put(key, made)
        if made.size <= most:
            plain[key] = made
            while sum(one.size for one in plain.values()) > most:
                plain.pop(next(iter(plain)))
        assert cache.bytes == sum(one.size for one in plain.values()) <= most
        assert len(cache) == len(plain)


def test_memory_is_given_back() -> None:
    room = Room(100)
    with Hold(room) as first, Hold(room) as second:
        first.add(60)
        second.add(40)
        with pytest.raises(RequestError) as caught:
            second.add(1)
        assert caught.value.status == 429
        first.drop(10)
        second.add(10)
    assert room.taken == 0


def test_a_folder_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that is put in a folder's place between the look and the opening is not followed."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    for place in (inside / "deep", outside):
        (place / "a.png").write_bytes(place.name.encode())
    folder = Folder(inside)
    assert folder.read("deep/a.png", "it", 10) == b"deep"
    below = folder._below

    def look(url: str) -> Path:
        found = below(url)
        (inside / "deep").rename(inside / "was")
        (inside / "deep").symlink_to(outside)
        return found

    monkeypatch.setattr(folder, "_below", look)
    with pytest.raises(RequestError, match="no image file"):
        folder.read("deep/a.png", "it", 10)


def test_files_that_are_none_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    folder = Folder(tmp_path)
    (tmp_path / "deep").mkdir()
    opened = Path("/proc/self/fd")
    before = len([*opened.iterdir()]) if opened.exists() else 0
    for name in ("pipe", "deep", ".", ""):  # nobody waits for a writer of the pipe
        with pytest.raises(RequestError, match="no image file"):
            folder.read(name, "it", 10)
    if before:  # none stays open
        assert len([*opened.iterdir()]) == before
    with pytest.raises(RequestError) as caught:
        folder.read("large", "it", 10)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "host", ["", "http://a.org", "a.org/b", "*.a.org", "a b", "u@a.org", "a:b"]
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(CallError, match="--allow-host"):
        Remote([host])


def test_hosts_by_name() -> None:
    remote = Remote(["Images.Example.org", "b.org:8080", "c.org:443", "[::1]:8080"])
    assert remote.hosts == {"images.example.org", "b.org:8080", "c.org:443", "[::1]:8080"}
    for url in ("https://c.org/a", "http://c.org:443/a", "http://images.example.org:80/a",
                "https://IMAGES.example.org/a", "http://[::1]:8080/a"):  # fmt: skip
        remote._check(url, "it")
    sources = Sources(100, None, remote)
    for url in ("http://example.org/a", "https://b.org/a", "https://c.org:444/a", "http://c.org/a",
                "https://c.org:80/a", "http://[::1:8080]/a", "http://[::1]/a",
                "https://images.example.org:80/a"):  # fmt: skip
        with pytest.raises(RequestError) as caught:
            sources.fetch(url, "it")
        assert caught.value.code == "remote_image_refused"
    with pytest.raises(RequestError, match="--image-folder"):
        sources.fetch("/etc/passwd", "it")
    assert sources.fetch("data:;base64,YWJj", "it") == b"abc"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"host": "0.0.0.0"}, "lets other machines ask"),
        ({"host": "example.org"}, "lets other machines ask"),
        ({"port": 70000}, "--port"),
        ({"max_batch": 0}, "--max-batch"),
        ({"timeout": float("nan")}, "--timeout"),
        ({"warm_up": (64,)}, "--warm-up"),
        ({"image_folder": Path("missing")}, "--image-folder"),
        ({"api_key_file": Path("missing")}, "--api-key-file"),
    ],
)
def test_options_that_cannot_work(
    changes: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(command.KEY, raising=False)
    monkeypatch.setattr(command, "NEEDED", ())
    with pytest.raises(CallError, match=word):
        command.check(command.ServeOptions(model="pocket", **changes))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "NEEDED", ("json", "not_there_at_all"))
    with pytest.raises(CallError, match=r"not_there_at_all: pip install 'resprune-jax\[serve\]'"):
        command.check(command.ServeOptions(model="pocket"))


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-one\n\n sk-two \n")
    assert command.read_keys(file) == ("sk-one", "sk-two")
    monkeypatch.setenv(command.KEY, "sk-env")
    assert command.read_keys(None) == ("sk-env",)
    monkeypatch.setenv(command.KEY, "")
    assert command.read_keys(None) == ()
    for text in ("", "with blank\n", "ключ\n"):
        file.write_text(text)
        with pytest.raises(CallError, match="key"):
            command.read_keys(file)
