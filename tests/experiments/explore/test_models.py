"""Pages of real models in a browser: what they show is what `LVLM.select` and `generate` give."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli
from resprune_jax.experiments.explore import Page, load
from resprune_jax.experiments.explore import page as pages
from resprune_jax.experiments.explore.build import Asked, make_card
from resprune_jax.experiments.explore.command import RATIOS
from resprune_jax.experiments.pocket import frozen_set, render
from resprune_jax.models import CallOptions, load_model
from tests.checkpoints.random import write_checkpoint
from tests.experiments.explore.browsing import Sight, chromium

pytestmark = pytest.mark.browser

PHOTOGRAPH = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
QUESTIONS = ("What is the woman wearing on her head?", "Is there a flag behind her?")
SHARES = (0.02, 0.1, 0.25, 0.55, 0.93)
"""Of the slider's way, by mouse."""
KEYS = (["ArrowRight"], ["ArrowLeft"] * 3, ["Home"], ["End"], ["ArrowDown"] * 7)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def built(
    model: Any, asked: list[Asked], methods: dict[str, CallOptions], path: Path
) -> tuple[Page, list[Asked]]:
    """Make a page and say how long it took, the compiles of its first picture included."""
    begin, spent = time.perf_counter(), time.process_time()
    cards = [make_card(model, one, methods, most_bytes=500_000) for one in asked]
    made = Page(path.stem, "resprune-jax", tuple(cards))
    size = pages.write(made, path)
    wall, cpu = time.perf_counter() - begin, time.process_time() - spent
    print(f"\n{path.stem}: {size / 1e6:.2f} MB in {wall:.1f} s ({cpu:.1f} s of the processors)")
    assert load(path) == made and size < pages.LARGEST
    return made, asked


def compare(sight: Sight, model: Any, asked: Asked, prompt: str, options: CallOptions) -> None:
    """Ten budgets by mouse and keys against the prefixes of one selection."""
    total = sight.tab.evaluate("Number(document.querySelector('#budget').max)")
    chosen = model.select(asked.images[0], prompt, options=replace(options, keep=total))
    whole = chosen.selections
    seen = []

    def check() -> None:
        keep = sight.count()
        want = np.asarray(whole.prefix(keep).indices[0])
        assert sight.kept() == sorted(want.tolist()), keep
        seen.append(keep)

    for share in SHARES:
        sight.drag(share)
        check()
    for keys in KEYS:
        sight.press(*keys)
        check()
    assert len(seen) == 10 and len(set(seen)) >= 9, seen


def check_answers(
    sight: Sight, model: Any, asked: Asked, prompt: str, options: CallOptions, *, alone: bool
) -> None:
    """The answer at each budget and the marks where it turns, from answers that are asked anew.

    Each by itself, or (a compile for each budget takes long) from the smallest budget up together.
    """
    rows = sight.tab.locator("#answers tbody tr")
    keeps = [int(rows.nth(i).get_attribute("data-keep")) for i in range(rows.count())]
    own: list[int | None] = [None, *keeps[1:]]
    parts = [[keep] for keep in own] if alone else [own[::-1]]
    found: list[str] = []
    for part in parts:
        again = replace(options, keep=part)
        found += model.generate(asked.images[0], [prompt] * len(part), options=again).texts
    texts = dict(zip(keeps, found if alone else found[::-1], strict=True))
    for number, keep in enumerate(keeps):
        rows.nth(number).locator("button").click()
        assert sight.count() == keep and sight.said() == " ".join(texts[keep].split()), keep
    plain = {keep: " ".join(text.lower().split()).rstrip(".") for keep, text in texts.items()}
    want = [
        (low, high) for high, low in itertools.pairwise(keeps)
        if plain[low] != plain[high]
    ]  # fmt: skip
    assert sight.turns() == want
    print(f"{prompt.splitlines()[0]}: turns {want or 'nowhere'}: {texts}")


def test_the_questions_of_the_demo(browser: Any, tmp_path: Path) -> None:
    model = load_model("pocket", dtype="float32")
    asked = [
        Asked(f"scene {n}", (render(scene),), tuple(one.prompt for one in questions), RATIOS)
        for n, (scene, questions) in enumerate(frozen_set(scenes=3), start=1)
    ]
    options = CallOptions(keep=1, max_new_tokens=8)
    path = tmp_path / "demo.html"
    made, _ = built(model, asked, {"resprune": options}, path)
    assert [len(card.runs) for card in made.cards] == [5, 5, 5]
    for number, one in enumerate(asked):
        for question in (number, 4):
            fragment = f"#card={number}&first={question}&second=-1"
            sight = Sight(browser, path, fragment)
            compare(sight, model, one, one.prompts[question], options)
            check_answers(
                sight, model, one, one.prompts[question], options, alone=question == number
            )
            sight.close()
    sight = Sight(browser, path)
    assert sight.faults() == []
    sight.close()


@pytest.mark.parametrize("name", ["pocket", "random"])
def test_a_photograph(name: str, browser: Any, tmp_path: Path) -> None:
    """By the pocket model, and by one of random weights in the shape of LLaVA-1.5."""
    folder = "pocket" if name == "pocket" else write_checkpoint(tmp_path / "random")
    model = load_model(folder, dtype="float32")
    asked = Asked(PHOTOGRAPH.name, (PHOTOGRAPH,), QUESTIONS, RATIOS)
    options = CallOptions(keep=1, max_new_tokens=8)
    methods = {"resprune": options, "random": replace(options, method="random")}
    path = tmp_path / f"{name}.html"
    made, _ = built(model, [asked], methods, path)
    assert made.cards[0].tokens == (144 if name == "pocket" else 576)
    for first, (prompt, method) in enumerate(
        (prompt, method) for prompt in QUESTIONS for method in methods
    ):
        sight = Sight(browser, path, f"#first={first}&second=-1")
        compare(sight, model, asked, prompt, methods[method])
        if first in (0, 3):
            check_answers(sight, model, asked, prompt, methods[method], alone=name == "pocket")
        sight.close()
    for scheme in ("light", "dark"):
        sight = Sight(browser, path, color_scheme=scheme)
        assert sight.faults() == []
        sight.close()


def test_the_command(browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gallery from rows, one of them broken, by a picture of a hostile name."""
    name = '"><img src=x onerror=alert(1)>.png'
    scene = render(frozen_set(scenes=1)[0][0])
    Image.fromarray(scene).save(tmp_path / name)
    rows = [
        {"image": name, "prompt": "What colour is the circle?", "keep": 20},
        {"image": str(PHOTOGRAPH), "prompt": "</script><script>alert(2)</script>"},
        {"image": name, "prompt": "How many circles?"},
        {"image": "missing.png", "prompt": "What is it?"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "page.html"
    words = ["explore", "--model", "pocket", "--rows", str(tmp_path / "rows.jsonl"), "--quiet"]
    assert cli.main([*words, "--keep", "1/3", "--out", str(path)]) == 2
    assert "--keep '1/3' is not a number" in capsys.readouterr().err
    words += ["--keep", "48", "0.05", "--max-new-tokens", "4", "--out", str(path)]
    assert cli.main(words) == 1
    said = capsys.readouterr()
    assert "MB, made in" in said.out and "left out: missing.png: " in said.err
    made = load(path)
    assert [card.name for card in made.cards] == [name, PHOTOGRAPH.name] and made.model == "pocket"
    assert [run.prompt for run in made.cards[0].runs] == [rows[0]["prompt"], rows[2]["prompt"]]
    keeps = [[answer.keep for answer in card.runs[0].answers] for card in made.cards]
    assert keeps == [[144, 48, 20, 7], [144, 48, 7]]
    sight = Sight(browser, path)
    assert sight.tab.inner_text("#name") == name
    sight.tab.locator("#cards button").nth(1).click()
    assert sight.tab.inner_text("h1") == rows[1]["prompt"]
    sight.close()
