"""What a page is told of a small model, by methods of every kind: as `LVLM.generate` gives it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.exact import reconstruction_error
from resprune_jax.experiments.explore.build import Asked, make_card
from resprune_jax.models import LVLM, CallOptions

pytestmark = pytest.mark.deep

OPTIONS = CallOptions(keep=1, max_new_tokens=3)
BUDGETS = (1 / 2, 5, 2)


@pytest.fixture
def asked(photographs: list[Image.Image]) -> Asked:
    return Asked("a.png", (photographs[0],), ("What colour is the dog?", "How many?"), BUDGETS)


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


def test_several_drops_and_broken_pictures(asked: Asked, lvlm: LVLM, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="pdrop cannot be shown on one picture: it drops tokens"):
        make_card(lvlm, asked, {"pdrop": replace(OPTIONS, method="pdrop")})
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises((CallError, RunError)):
        make_card(lvlm, replace(asked, images=(tmp_path / "a.png",)), {"resprune": OPTIONS})
