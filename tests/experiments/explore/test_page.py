"""The page in a browser: what it shows, how it is moved, and that it runs nothing of its texts."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resprune_jax.experiments.explore import Page
from resprune_jax.experiments.explore import page as pages
from tests.experiments.explore.browsing import Sight, chromium
from tests.experiments.explore.pages import ANSWERS, GRID, TOKENS, made_page, made_run
from tests.experiments.explore.test_data import HOSTILE

pytestmark = pytest.mark.browser

Look = Callable[..., Sight]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def look(browser: Any, tmp_path: Path) -> Iterator[Look]:
    """Opens pages; at the end none of them may have done what it must not."""
    opened: list[Sight] = []

    def go(page: Page, fragment: str = "", name: str = "page.html", **context: Any) -> Sight:
        pages.write(page, tmp_path / name)
        opened.append(Sight(browser, tmp_path / name, fragment, **context))
        return opened[-1]

    yield go
    for sight in opened:
        sight.close()


TWO = [made_run(ANSWERS), made_run(ANSWERS[::2], prompt="Is it red?", rng_seed=5)]
APART = [made_run(ANSWERS), made_run(ANSWERS, method="svdprune", nested=False, rng_seed=7)]


def test_the_slider_by_mouse_and_by_keys(look: Look) -> None:
    sight = look(made_page())
    run = made_run(ANSWERS)
    assert sight.count() == 12  # the budget asked that is nearest to 2/9
    for share in (0.0, 1.0, 0.37, 0.62, 0.11):
        sight.drag(share)
        assert sight.count() == round(1 + share * (TOKENS - 1))
        assert sight.kept() == sorted(run.kept(sight.count()))
    now = sight.count()
    for keys, want in (
        (["ArrowRight"], now + 1), (["ArrowLeft"] * 3, now - 2), (["End"], TOKENS),
        (["ArrowDown"], TOKENS - 1), (["Home"], 1), (["ArrowUp"] * 4, 5),
    ):  # fmt: skip
        sight.press(*keys)
        assert sight.count() == want and sight.kept() == sorted(run.kept(want))


def colours(sight: Sight) -> list[tuple[int, int, int]]:
    """The colour of each cell as it is on the screen, a little beside its middle."""
    shot = sight.tab.locator(".grid").first.screenshot()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    rows, columns = GRID
    found = []
    for cell in range(TOKENS):
        row, column = divmod(cell, columns)
        at = (column + 0.31) * picture.width / columns, (row + 0.31) * picture.height / rows
        found.append(picture.getpixel((int(at[0]), int(at[1]))))
    return found


def test_what_is_painted_is_what_is_kept(look: Look) -> None:
    """The picture is blue everywhere: kept cells stay so, dropped ones are grey."""
    sight = look(made_page())
    run = made_run(ANSWERS)
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        sight.drag(share)
        blue = [cell for cell, (_, _, b) in enumerate(colours(sight)) if b > 235]
        assert blue == sorted(run.kept(sight.count()))


def test_relevance_and_order_are_painted(look: Look) -> None:
    sight = look(made_page())
    run = made_run(ANSWERS)
    assert run.relevance is not None
    sight.tab.get_by_text("Relevance", exact=True).first.click()
    light = [0.3 * r + 0.59 * g + 0.11 * b for r, g, b in colours(sight)]
    order = sorted(range(TOKENS), key=lambda token: run.relevance[token])  # type: ignore[index]
    third = TOKENS // 3
    means = [sum(light[t] for t in order[at : at + third]) / third for at in (0, third, 2 * third)]
    assert means[0] + 20 < means[1] < means[2] - 20
    assert sight.kept() == sorted(run.kept(12))
    sight.tab.get_by_text("Order of choice").click()
    first, last = (colours(sight)[run.order[at]] for at in (0, 11))
    assert first[1] > 150 and last[1] < 100  # from yellow to violet
    assert "first" in sight.tab.inner_text("#legend")


def test_the_answer_and_where_it_turns(look: Look) -> None:
    sight = look(made_page(TWO))
    for which, run in enumerate(TWO):
        assert sight.turns(which) == list(run.turns)
        tags = sight.tab.locator(f"#answers tbody td:nth-child({which + 2}) .tag")
        told = [int(tags.nth(i).get_attribute("data-low")) for i in range(tags.count())]
        assert told == [low for low, _ in run.turns]
    # A bar runs from the dot of the one budget to the dot of the other.
    strip = sight.tab.locator(".strip").first
    dots = [strip.locator(".stop").nth(i).bounding_box() for i in range(len(ANSWERS))]
    middles = {k: box["x"] + box["width"] / 2 for (k, _), box in zip(ANSWERS, dots, strict=True)}
    for number, (low, high) in enumerate(TWO[0].turns):
        bar = strip.locator(".turn").nth(number).bounding_box()
        assert abs(bar["x"] - middles[low]) < 1.5
        assert abs(bar["x"] + bar["width"] - middles[high]) < 1.5
    (one, *_) = (look(made_page([TWO[0]]), name="one.html"),)
    for keep, text in ANSWERS:
        one.tab.get_by_role("button", name=re.compile(rf"^(all )?{keep}$")).click()
        assert one.count() == keep and one.said() == text
    one.press("Home")
    assert one.said() == "red at 2, the smallest budget asked"
    one.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert one.said() == "turns between 2 and 6: red, then blue"
    one.press(*["ArrowRight"] * 4)
    assert one.count() == 8 and one.said() == "blue at 6 and at 12"


def test_two_questions_side_by_side(look: Look) -> None:
    sight = look(made_page(TWO))
    for share in (0.1, 0.4, 0.8):
        sight.drag(share)
        left, right = (set(run.kept(sight.count())) for run in TWO)
        assert [sight.kept(which) for which in (0, 1)] == [sorted(left), sorted(right)]
        told = [int(number) for number in re.findall(r"\d+", sight.tab.inner_text("#legend"))]
        assert told == [len(left & right), len(left - right), len(right - left)]
    assert [sight.tab.locator("figcaption").nth(i).inner_text() for i in (0, 1)] == [
        run.prompt for run in TWO
    ]
    sight.tab.select_option("#second", label="nothing")
    assert sight.tab.locator(".panel").count() == 1 and sight.tab.inner_text("h1") == TWO[0].prompt
    sight.tab.select_option("#first", label=TWO[1].prompt)
    assert sight.kept() == sorted(TWO[1].kept(sight.count()))


def test_choices_that_are_not_nested(look: Look) -> None:
    """The slider steps between the budgets of the list, each with its own choice."""
    sight = look(made_page(APART))
    sight.press("Home")
    keeps = [keep for keep, _ in reversed(ANSWERS)]
    for number, keep in enumerate(keeps):
        assert sight.count() == keep
        for which, run in enumerate(APART):
            assert sight.kept(which) == sorted(run.kept(keep))
        sight.press("ArrowRight")
        assert sight.count() == keeps[min(number + 1, len(keeps) - 1)]
    sight.drag(0.26)
    assert sight.count() == keeps[1] and "not nested" in sight.tab.inner_text("#notes")


def test_a_token_by_mouse_and_by_keys(look: Look) -> None:
    sight = look(made_page())
    run, card = made_run(ANSWERS), made_page().cards[0]
    box = sight.tab.locator(".grid").bounding_box()

    def want(token: int) -> list[str]:
        row, column = divmod(token, GRID[1])
        kept = "kept" if token in run.kept(12) else "dropped"
        at = run.order.index(token)
        assert run.relevance is not None
        share = 100 * card.energies[token] / sum(card.energies)
        return [
            f"Token {token}", f"row {row + 1}, column {column + 1}", f"{share:.2f} % of the energy",
            f"{kept}, choice {at + 1}", f"relevance {float(f'{run.relevance[token]:.3g}'):g}",
        ]  # fmt: skip

    for token in (0, 9, TOKENS - 1):
        row, column = divmod(token, GRID[1])
        x = box["x"] + (column + 0.5) * box["width"] / GRID[1]
        sight.tab.mouse.move(x, box["y"] + (row + 0.5) * box["height"] / GRID[0])
        told = sight.tab.inner_text("#token")
        assert all(part in told for part in want(token)), told
    sight.tab.mouse.move(5, 5)
    assert "Point at a token" in sight.tab.inner_text("#token")
    sight.tab.focus(".grid")
    at = 0
    for key, step in (("ArrowRight", 1), ("ArrowDown", 8), ("ArrowDown", 8), ("ArrowLeft", -1),
                      ("ArrowUp", -8), ("End", 7), ("ArrowRight", 0), ("Home", -7)):  # fmt: skip
        sight.tab.keyboard.press(key)
        at += step
        told = sight.tab.inner_text("#token")
        assert all(part in told for part in want(at)), (key, told)


def test_a_link_restores_the_state(look: Look) -> None:
    sight = look(made_page(TWO, cards=2))
    sight.tab.locator("#cards button").nth(1).click()
    sight.drag(0.5)
    sight.tab.get_by_text("Order of choice").click()
    sight.tab.focus(".grid >> nth=1")
    sight.tab.keyboard.press("ArrowDown")
    sight.settle()
    link = sight.tab.get_attribute("#link", "href")
    assert sight.tab.evaluate("location.hash") == link
    other = look(made_page(TWO, cards=2), link, name="other.html")
    for one in (sight, other):
        assert one.tab.inner_text("#name") == "1 cup.png" and one.count() == sight.count()
        assert one.tab.is_checked("input[value=order]")
        assert "Token 8" in one.tab.inner_text("#token")
    # Also in a page that is open, and a fragment of anything is no error.
    other.tab.evaluate("location.hash = '#card=0&first=1&second=-1&keep=7&mode=relevance'")
    other.settle()
    assert other.count() == 7 and other.kept() == sorted(TWO[1].kept(7))
    for wild in ("#%ff", "#keep=NaN&card=99&mode=%3Cimg%3E&first=-3&second=x", "#keep=1e9"):
        other.tab.evaluate("hash => { location.hash = hash; }", wild)
        other.settle()
        assert 1 <= other.count() <= TOKENS


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe_finds_no_fault(look: Look, scheme: str, width: int) -> None:
    context = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    for number, runs in enumerate((TWO, APART, TWO[:1])):
        sight = look(made_page(runs, cards=1 + number), name=f"{number}.html", **context)
        sight.tab.locator("summary").click()
        assert sight.faults() == []
        sight.tab.get_by_text("Relevance", exact=True).first.click()
        sight.tab.focus(".grid")
        assert sight.faults() == []


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone(look: Look, width: int) -> None:
    """Nothing stands out at the side; a finger moves the slider and reads a token."""
    context = {"viewport": {"width": width, "height": 700}, "has_touch": True, "is_mobile": True}
    sight = look(made_page(TWO), **context)
    wide = sight.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == width
    sight.tab.locator("#budget").scroll_into_view_if_needed()
    sight.tab.touchscreen.tap(*sight.place(0.8))
    assert abs(sight.count() - round(1 + 0.8 * (TOKENS - 1))) <= 1
    assert sight.kept() == sorted(TWO[0].kept(sight.count()))
    grid = sight.tab.locator(".grid").first
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    sight.tab.touchscreen.tap(box["x"] + 4, box["y"] + 4)
    assert "row 1, column 1" in sight.tab.inner_text("#token")


def test_by_keyboard_alone(look: Look) -> None:
    """Tab reaches everything, in the order in which it stands, and says where it is."""
    sight = look(made_page(TWO, cards=2))
    seen = []
    for _ in range(13):
        sight.tab.keyboard.press("Tab")
        seen.append(
            sight.tab.evaluate(
                "(({ id, className, tagName }) => id || className || tagName)"
                "(document.activeElement)"
            )
        )
    cards, budgets = ["BUTTON"] * 2, ["BUTTON"] * len(ANSWERS)
    controls = ["first", "second", "grid", "grid", "INPUT", "budget"]
    assert seen == ["link", *cards, *controls, *budgets][:13], seen
    slider = sight.tab.get_by_role("slider", name="Budget: visual tokens kept")
    assert slider.get_attribute("aria-valuetext") == "12 of 48 tokens; answer: blue; blue"


def test_the_table_lists_the_choices_in_order(look: Look) -> None:
    sight = look(made_page())
    sight.tab.locator("summary").click()
    for keys in ([], ["ArrowRight", "ArrowRight"]):
        sight.press(*keys)
        cells = sight.tab.locator("#table tbody td:nth-child(2)")
        told = [int(text) for text in cells.all_inner_texts()]
        assert told == list(made_run(ANSWERS).kept(sight.count()))


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()])
def test_a_hostile_text_is_shown_as_text(look: Look, text: str) -> None:
    run = made_run([(TOKENS, text), (12, text)], prompt=text, method=text)
    other = made_run([(TOKENS, "x"), (12, text)], prompt=text + "2", method=text + "2")
    sight = look(made_page([run, other], name=text, cards=2))
    sight.tab.locator("summary").click()
    shown = sight.tab.evaluate(
        """() => ["#name", "#cards button bdi", "#said bdi", "#answers tbody bdi",
                  "figcaption bdi"].map((at) => document.querySelector(at).textContent)"""
    )
    assert shown[:4] == [f"0 {text}", f"0 {text}", text, text] and text in shown[4]
    # Whatever it holds, the page's elements are the same, and its words around it run as before.
    assert sight.tab.locator("body img").count() == 2  # the two thumbnails
    assert sight.tab.locator("script").count() == 2
    assert sight.tab.inner_text("header strong") == "Kept tokens"
    for at in ("#name", "#cards button bdi", "#said bdi", "figcaption bdi"):
        assert (
            sight.tab.locator(at).first.evaluate("e => getComputedStyle(e).unicodeBidi")
            == "isolate"
        )
    assert sight.tab.title().startswith("Kept tokens: ")
