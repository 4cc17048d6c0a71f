"""The data of a page: there and back, where answers turn, and nothing that a text can break."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.explore import Answer, Page, load
from resprune_jax.experiments.explore import data as explore
from resprune_jax.experiments.explore import page as pages
from tests.experiments.explore.pages import ANSWERS, TOKENS, made_page, made_run

HOSTILE = [
    '</script><script>alert(1)</script>',
    '"><img src=x onerror="alert(1)">',
    "<!--<script>", "]]>", "&lt;&amp;", "\\u003c\\", "'\"`${1}`", "%%data%%", "%%script%%",
    "\u202e gpj.tfel", "\u2067 \u05d0\u05d1 \u2069\u2069", "a\u2028b\u2029c",
    "tab\t nul\x00 line\n",
    "\ud800 half", "", " ", "𝔘𝔫𝔦🙂",
]  # fmt: skip


def test_a_page_comes_back_as_it_was_written(tmp_path: Path) -> None:
    runs = [made_run(ANSWERS), made_run(ANSWERS, method="svdprune", nested=False, rng_seed=3)]
    page = made_page(runs, cards=2)
    path = tmp_path / "page.html"
    assert pages.write(page, path) == path.stat().st_size
    assert load(path) == page
    found = json.loads(json.dumps(page.to_json()))
    assert Page.from_json(found) == page
    assert found["cards"][1]["runs"][0]["turns"] == [[12, 24], [2, 6]]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_leaves_the_data(text: str, tmp_path: Path) -> None:
    run = made_run([(TOKENS, text), (5, text + "x")], prompt=text, method=text)
    page = made_page([run], name=text)
    path = tmp_path / "page.html"
    pages.write(page, path)
    assert load(path) == page
    written = path.read_text("utf-8")
    assert written.count("<script") == 2 and written.count("</script>") == 2
    assert written.count("<img") == 0 and "onerror" not in re.sub(
        r'<script type="application/json".*?</script>', "", written, flags=re.DOTALL
    ).replace(html.escape(text), "")


@given(st.text(alphabet=st.characters(codec=None), max_size=40))
@settings(max_examples=150)
def test_json_in_a_script_element_holds_no_mark_of_html(text: str) -> None:
    found = explore.script_json({text: [text]})
    assert not set("<>&\u2028\u2029") & set(found) and found.isascii()
    assert json.loads(found) == {text: [text]}


def slow_turns(answers: list[tuple[int, str]]) -> list[tuple[int, int]]:
    """Every pair with nothing between, compared by hand."""
    found = []
    for low, one in answers:
        for high, two in answers:
            between = [keep for keep, _ in answers if low < keep < high]
            words = [re.sub(r"\s+", " ", text).strip().lower() for text in (one, two)]
            words = [re.sub(r"\.+$", "", word) for word in words]
            if low < high and not between and words[0] != words[1]:
                found.append((low, high))
    return sorted(found, key=lambda pair: -pair[1])


@given(
    st.dictionaries(
        st.integers(1, 60), st.sampled_from(["red", "Red.", " red ", "blue", "blue  sky",
                                             "Blue sky.", "", "."]), min_size=1, max_size=9,
    )
)  # fmt: skip
def test_answers_turn_where_neighbours_differ(given_answers: dict[int, str]) -> None:
    answers = list(given_answers.items())
    assert list(explore.turns(answers)) == slow_turns(answers)
    down = sorted(answers, reverse=True)
    assert made_run(down).turns == tuple(slow_turns(answers))


def test_what_a_run_keeps() -> None:
    run = made_run(ANSWERS)
    for keep in range(1, TOKENS + 1):
        assert run.kept(keep) == run.order[:keep]
    other = made_run(ANSWERS, nested=False)
    for answer in other.answers:
        assert other.kept(answer.keep) == answer.order
    # Also of a nested method a budget can have its own choice, where rounding decided.
    own = tuple(reversed(run.order[:6]))
    mixed = [Answer(6, "blue", own, 1.0) if one.keep == 6 else one for one in run.answers]
    parted = replace(run, answers=tuple(mixed))
    assert parted.kept(6) == own and parted.kept(7) == run.order[:7]
    for bad in (0, -1, TOKENS + 1):
        with pytest.raises(CallError, match=f"budgets 1 to {TOKENS}, got {bad}"):
            run.kept(bad)
    with pytest.raises(CallError, match="got 7"):
        other.kept(7)


@pytest.mark.parametrize("content", ["", "<html></html>", "{}", "\x00\xff"])
def test_other_files_are_no_pages(content: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CallError, match=r"page\.html is no page of resprune explore"):
        load(path)
    with pytest.raises(CallError, match="cannot be read: No such file"):
        load(tmp_path / "missing.html")


@pytest.mark.parametrize(
    ("old", "new"),
    [('"version":1', '"version":9'), ('"order":[', '"ordre":['), ('"cards":', '"karten":'),
     ('"tokens":48', "")],
)  # fmt: skip
def test_damaged_data_are_told(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    pages.write(made_page(), path)
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(RunError, match=r"data|version"):
        load(path)


def test_a_page_is_small_and_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = pages.render(made_page(cards=40))
    assert len(text.encode()) < pages.LARGEST
    body = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", body)
    assert re.findall(r"https?://[^\s\"')]+", body) == ["http://www.w3.org/2000/svg"]
    policy = re.search('content="(default-src [^"]*)"', text)
    assert policy and policy[1].startswith("default-src 'none'; img-src data:; ")
    monkeypatch.setattr(pages, "LARGEST", 20_000)
    with pytest.raises(CallError, match=r"the page would have 0\.\d MB, more than 0: ask fewer"):
        pages.render(made_page())


def test_a_target_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        pages.write(made_page(), tmp_path / "no" / "page.html")


def test_numbers_keep_the_digits_of_float32() -> None:
    rng = np.random.default_rng(0)
    for value in np.exp(rng.uniform(-30, 30, 200)).astype(np.float32):
        assert abs(explore.rounded(float(value)) - float(value)) <= 5e-7 * abs(float(value))
