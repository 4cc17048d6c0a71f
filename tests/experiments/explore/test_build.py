"""What a page is told of a model: orders, energies and answers as `LVLM.generate` gives them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resprune_jax import select
from resprune_jax.errors import CallError, RunError
from resprune_jax.exact import reconstruction_error
from resprune_jax.experiments.explore import build
from resprune_jax.experiments.explore.build import Asked, Row, make_card, make_run, residual_energy
from resprune_jax.methods import get_method
from resprune_jax.models import LVLM, CallOptions


def tokens_of(kind: str, n: int, d: int, rng_seed: int = 0) -> np.ndarray:
    """Tokens of full rank, of low rank, with copies, or with zeros among them."""
    rng = np.random.default_rng(rng_seed)
    tokens = rng.standard_normal((n, d))
    if kind == "low rank":
        tokens = tokens[:, : d // 3] @ rng.standard_normal((d // 3, d))
    if kind == "copies":
        tokens[n // 2 :] = tokens[: n - n // 2] * rng.uniform(0.1, 9, (n - n // 2, 1))
    if kind == "zeros":
        tokens[rng.permutation(n)[: n // 2]] = 0
    return tokens


@pytest.mark.parametrize("kind", ["full", "low rank", "copies", "zeros"])
@pytest.mark.parametrize(("n", "d"), [(20, 30), (30, 12), (9, 9)])
def test_energy_left_out_is_the_error_of_least_squares(kind: str, n: int, d: int) -> None:
    tokens = tokens_of(kind, n, d)
    order = np.random.default_rng(1).permutation(n)
    found = residual_energy(tokens, order)
    total = np.square(tokens).sum()
    for keep in range(n + 1):
        want = reconstruction_error(tokens, order[:keep])
        assert abs(found[keep] - want) < 1e-8 * total, (kind, keep)
    assert (np.diff(found) <= 0).all()


@pytest.mark.deep
def test_energy_is_what_a_selection_measures() -> None:
    tokens = tokens_of("full", 40, 64)
    made = select(tokens, 40)
    found = residual_energy(tokens, np.asarray(made.indices))
    assert abs(found - np.asarray(made.energy)).max() < 1e-5 * found[0]


def row(keep: int, chosen: Sequence[int], text: str = "x", energy: Any = None) -> Row:
    return Row(keep, text, np.asarray(chosen), energy, ("cup",), "a lexicon")


@given(st.permutations(range(8)), st.sets(st.integers(1, 7)), st.data())
@settings(max_examples=60)
def test_a_budget_has_its_own_choice_only_where_it_differs(
    order: list[int], keeps: set[int], data: st.DataObject
) -> None:
    tokens = tokens_of("full", 8, 10)
    rows, want = [row(8, order)], {8: tuple(order)}
    for keep in sorted(keeps, reverse=True):
        chosen = order[:keep]
        if data.draw(st.booleans()):
            chosen = data.draw(st.permutations(range(8)))[:keep]
        rows.append(row(keep, chosen))
        want[keep] = tuple(chosen)
    run = make_run("?", "resprune", rows, tokens, None, True)
    for keep in range(1, 9):
        assert run.kept(keep) == want.get(keep, tuple(order[:keep]))
    for answer in run.answers:
        assert (answer.order is None) == (want[answer.keep] == tuple(order[: answer.keep]))
        if answer.order is not None:
            left = reconstruction_error(tokens, answer.order)
            assert answer.energy is not None and abs(answer.energy - left) < 1e-5
    free = make_run("?", "svdprune", rows, tokens, None, False)
    assert free.order == free.energy == ()
    assert [free.kept(answer.keep) for answer in free.answers] == [want[r.keep] for r in rows]


def test_budgets_as_counts() -> None:
    assert build.counts_of([1 / 3, 2 / 9, 0.001, 48, 500, None], 144) == [144, 48, 32, 1]
    assert build.counts_of([], 9) == [9]


@pytest.mark.parametrize(
    ("name", "settings_", "why"),
    [
        ("downsample", {}, "makes the picture smaller"),
        ("tome", {}, "merges tokens"),
        ("visionzip", {}, "merges tokens"),
        ("sparsevlm", {}, "merges tokens"),
        ("divprune", {"sort": False}, "merges tokens"),
        ("fastv", {"keep_average": 4}, "is told by its settings"),
    ],
)
def test_what_no_picture_shows_is_refused_by_name(
    name: str, settings_: dict[str, Any], why: str
) -> None:
    with pytest.raises(CallError, match=rf"--method {name} cannot be shown on a picture: it {why}"):
        build.check_shown(get_method(name, settings_), name)


OPTIONS = CallOptions(keep=1, max_new_tokens=3)
BUDGETS = (1 / 2, 5, 2)


@pytest.fixture
def asked(photographs: list[Image.Image]) -> Asked:
    return Asked("a.png", (photographs[0],), ("What colour is the dog?", "How many?"), BUDGETS)


@pytest.mark.deep
@pytest.mark.parametrize("name", ["resprune", "divprune", "random", "vispruner", "fastv", "hired"])
def test_a_page_shows_what_generate_keeps(
    name: str, asked: Asked, lvlm: LVLM, photographs: list[Image.Image]
) -> None:
    """Of nested methods and others, in front of the LLM and inside it."""
    options = replace(OPTIONS, method=name)
    card = make_card(lvlm, asked, {name: options}, batch_size=8)
    assert card.tokens == 16 and len(card.energies) == 16 and len(card.views) == 1
    assert [run.prompt for run in card.runs] == list(asked.prompts)
    visual = np.asarray(lvlm.encode(photographs[0]).embeddings[0], np.float64)
    assert np.allclose(card.energies, np.square(visual).sum(axis=1), rtol=1e-5)
    for run in card.runs:
        assert [answer.keep for answer in run.answers] == [16, 8, 5, 2]
        for answer in run.answers:
            keep = None if answer.keep == 16 else answer.keep
            made = lvlm.generate(photographs[0], run.prompt, options=replace(options, keep=keep))
            assert made.texts == [answer.text] and made.kept == [answer.keep]
            if made.selections is not None:
                own = np.asarray(made.selections.indices[0])[: answer.keep].tolist()
                assert list(run.kept(answer.keep)) == own
            left = reconstruction_error(visual, run.kept(answer.keep))
            shown = answer.energy if answer.order else run.energy[answer.keep]
            assert shown is not None and abs(shown - left) < 1e-4 * np.square(visual).sum()
        chosen = lvlm.select(photographs[0], run.prompt, options=replace(options, keep=8))
        if chosen.relevance is None:
            assert run.relevance is None
        else:
            assert run.relevance is not None
            assert np.allclose(run.relevance, chosen.relevance[0], atol=1e-6)
        assert (run.note != "") == (name == "fastv")


@pytest.mark.deep
def test_methods_of_a_card_stand_side_by_side(asked: Asked, lvlm: LVLM) -> None:
    methods = {
        "resprune": replace(OPTIONS, method="resprune"),
        "resprune:alpha=0": replace(OPTIONS, method="resprune", method_settings={"alpha": 0.0}),
    }
    card = make_card(lvlm, asked, methods, batch_size=3)
    named = [(run.prompt, run.method) for run in card.runs]
    assert named == [(prompt, name) for prompt in asked.prompts for name in methods]
    assert card.runs[1].relevance is None and card.runs[1].nouns == ()
    assert card.runs[0].answers[0].text == card.runs[1].answers[0].text


@pytest.mark.deep
def test_several_drops_and_broken_pictures(asked: Asked, lvlm: LVLM, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="pdrop cannot be shown on one picture: it drops tokens"):
        make_card(lvlm, asked, {"pdrop": replace(OPTIONS, method="pdrop")})
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises((CallError, RunError)):
        make_card(lvlm, replace(asked, images=(tmp_path / "a.png",)), {"resprune": OPTIONS})
