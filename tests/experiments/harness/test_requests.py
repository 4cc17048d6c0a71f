"""What lmms-eval asks, as questions: messages, pictures, and how answers end and are drawn."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.harness.requests import (
    digest_of,
    drawing_of,
    from_messages,
    from_visuals,
    picture_of,
)

RED = Image.new("RGB", (4, 3), "red")


def said(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    """A user message of parts."""
    names = {"text": "text"}
    content = [{"type": kind, names.get(kind, "url"): value} for kind, value in parts]
    return [{"role": "user", "content": content}]


def test_images_then_text() -> None:
    found = from_messages(said(("image", RED), ("image", "a.png"), ("text", "Why?")), "row")
    assert found.images == (RED, Path("a.png")) and found.text == "Why?"
    assert from_messages([{"role": "user", "content": "Why?"}], "row").images == ()
    assert from_messages(said(("text", "Why"), ("text", " not?")), "row").text == "Why not?"
    assert from_visuals([RED], "Why?", "row").images == (RED,)
    assert from_visuals(None, "Why?", "row").images == ()


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (said(("text", "Why?"), ("image", RED)), "an image stands behind text"),
        (said(("video", "a.mp4"), ("text", "Why?")), "this is a video"),
        (said(("audio", "a.wav"), ("text", "Why?")), "this is a audio"),
        (said(("image", "https://x.org/a.png"), ("text", "Why?")), "is a link"),
        (said(("image", 5), ("text", "Why?")), "no image but 5"),
        ([{"role": "system", "content": "Be brief"}, *said(("text", "Why?"))], "system, user"),
        ([], "gives no messages"),
        (None, "gives no messages"),
    ],
)
def test_what_cannot_be_asked_names_the_row(messages: Any, why: str) -> None:
    with pytest.raises(CallError) as caught:
        from_messages(messages, "task pope, row 7")
    assert why in str(caught.value) and str(caught.value).startswith("task pope, row 7")


def test_bytes_of_a_picture_are_read() -> None:
    file = io.BytesIO()
    RED.save(file, "PNG")
    found = picture_of({"bytes": file.getvalue(), "path": None}, "row 3")
    assert np.array_equal(np.asarray(found), np.asarray(RED))
    with pytest.raises(RunError, match="row 3"):
        picture_of({"bytes": file.getvalue()[:40]}, "row 3")


def test_pictures_are_one_where_they_show_the_same(tmp_path: Path) -> None:
    other = RED.copy()
    other.putpixel((1, 1), (0, 0, 0))
    turned = Image.new("RGB", (3, 4), "red")
    path = tmp_path / "red.png"
    RED.save(path)
    digests = [digest_of(each) for each in (RED, other, turned, RED.convert("L"), path)]
    assert len(set(digests)) == len(digests) and digest_of(RED.copy()) == digests[0]


def test_pictures_of_the_same_pixels_are_told_apart_by_what_they_show() -> None:
    def coloured(red: int) -> Image.Image:
        made = Image.new("P", (2, 3))
        made.putpalette([red, 0, 0] * 256)
        return made

    upright = RED.copy()
    upright.putpixel((0, 0), (0, 0, 255))
    turned = upright.copy()
    turned.getexif()[0x0112] = 3
    wide = Image.new("I", (2, 2), 200)
    png = wide.copy()
    png.format = "PNG"
    for one, other in ((coloured(10), coloured(200)), (upright, turned), (wide, png)):
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert digest_of(one) != digest_of(other)
    assert digest_of(coloured(10)) == digest_of(coloured(10).convert("RGB"))
    assert digest_of(np.asarray(RED)) == digest_of(RED)


def test_greedy_unless_a_temperature_or_do_sample_says_so() -> None:
    plain: list[dict[str, Any]] = [
        {}, {"temperature": 0}, {"do_sample": False, "temperature": 0.2},
        {"do_sample": True, "temperature": 0}, {"temperature": 0.0, "top_p": 0.5, "top_k": 3},
        {"num_beams": 1, "top_p": None, "n": 1},
    ]  # fmt: skip
    for kwargs in plain:
        drawing = drawing_of(kwargs)
        assert not drawing.sampled and drawing.options == (), kwargs
    drawn = drawing_of({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5})
    assert dict(drawn.options) == {
        "sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5
    }  # fmt: skip
    assert dict(drawing_of({"do_sample": True}).options) == {"sample": True}


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"num_beams": 4}, "num_beams=4 is not done here"),
        ({"n": 2}, "n=2 is not done here"),
        ({"length_penalty": 1.0}, "unknown 'length_penalty'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1}, "temperature must be finite and at least 0"),
        ({"until": 5}, "until is a text or a list of them"),
        ({"until": ["a", 5]}, "until is a text or a list of them"),
    ],
)
def test_what_is_not_done_is_refused(kwargs: dict[str, Any], why: str) -> None:
    with pytest.raises(CallError) as caught:
        drawing_of(kwargs)
    assert why in str(caught.value)


@given(st.text("ab\n", max_size=12), st.lists(st.text("ab\n", max_size=3), max_size=3))
def test_an_answer_ends_before_the_first_end(text: str, until: list[str]) -> None:
    cut = drawing_of({"until": until}).cut(text)
    whole = text
    for end in until:
        if end:
            whole = whole.split(end)[0]
    assert cut == whole.strip()
