"""What a newcomer does first: settings a row, several questions an image, selecting, odd words."""

import traceback
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from resprune_jax import select
from resprune_jax.arguments import array_of
from resprune_jax.errors import CallError, ResPruneError
from resprune_jax.methods import ResPrune, VisualTokens
from resprune_jax.models import LVLM, load_model

QUESTIONS = [
    "How many people are in the picture, and what colour is the dog?",
    "What is red?",
    "Is there a bus near the old table in the picture?",
]


@pytest.mark.deep
def test_alpha_may_be_one_for_each_prompt(lvlm: LVLM, photographs: Any) -> None:
    alphas = [0.0, 0.75, 2.0]  # three rows, a batch of four
    images, call = photographs[:3], {"keep": 6, "max_new_tokens": 3}
    for settings in ({"alpha": alphas}, {"method": ResPrune(alpha=np.array(alphas))}):
        together = lvlm.generate(images, QUESTIONS, **call, **settings)
        for row, alpha in enumerate(alphas):
            own = {"alpha": alpha} if "alpha" in settings else {"method": ResPrune(alpha=alpha)}
            alone = lvlm.generate(images[row], QUESTIONS[row], **call, **own)
            np.testing.assert_array_equal(
                alone.selections.indices[0], together.selections.indices[row]
            )
            assert alone.tokens[0].tolist() == together.tokens[row].tolist()
    orders = {tuple(lvlm.select(images[0], QUESTIONS[0], keep=6, alpha=a).selections.indices[0])
              for a in alphas}  # fmt: skip
    assert len(orders) > 1, "alpha decides nothing here: the test says nothing"
    for count in (1, 2, 4):
        with pytest.raises(CallError, match=f"alpha has {count} entries for 3 prompts"):
            lvlm.generate(images, QUESTIONS, alpha=[0.5] * count, **call)


@pytest.mark.parametrize("counts", [(2, 1), pytest.param((3,), marks=pytest.mark.deep)])
def test_several_questions_about_each_image(
    lvlm: LVLM, photographs: Any, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = photographs[: len(counts)]
    asked = [QUESTIONS[:count] for count in counts]
    flat = [(row, question) for row, own in enumerate(asked) for question in own]
    towers: list[int] = []
    real = lvlm.run_tower
    monkeypatch.setattr(
        lvlm,
        "run_tower",
        lambda pictures, *needs: (towers.append(len(pictures.layouts)), real(pictures, *needs))[1],
    )
    keep = [6, None, 3, 5][: len(flat)]
    made = lvlm.generate(images, asked, keep=keep, max_new_tokens=3)
    assert towers == [len(counts)]  # each image once
    assert made.rows == [row for row, _ in flat]
    for i, (row, question) in enumerate(flat):
        alone = lvlm.generate(images[row], question, keep=keep[i], max_new_tokens=3)
        assert alone.tokens[0].tolist() == made.tokens[i].tolist()
        assert alone.kept[0] == made.kept[i]
    again = lvlm.generate(lvlm.encode(images), asked, keep=keep, max_new_tokens=3)
    assert again.texts == made.texts


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([["a"], "b"], "mix"), ([["a"]], "1 lists of prompts for 2 images"),
        ([["a"], []], "image 1"),
        ([["a"], [5]], "prompt 1 is no text"), ([["a"], [["b"]]], "no text"), (7, "prompts are"),
        (None, "prompts are"), ({"a": 1}, "prompts are"), (b"a", "prompts are"),
        ([], "no prompt"),
        (["a", "b", "c"], "2 images for 3 prompts"),
    ],
)  # fmt: skip
def test_prompts_that_fit_no_image_are_refused(
    lvlm: LVLM, photographs: Any, prompts: Any, says: str
) -> None:
    for ask in (lvlm.generate, lvlm.select, lvlm.logits):
        with pytest.raises(CallError, match=says):
            ask(photographs[:2], prompts)


@pytest.mark.parametrize(
    "keep", [[4, None, 0.5], *(pytest.param(k, marks=pytest.mark.deep) for k in (5, None))]
)
def test_select_says_what_generate_would_keep(lvlm: LVLM, photographs: Any, keep: Any) -> None:
    images = photographs[:3]
    made = lvlm.generate(images, QUESTIONS, keep=keep, max_new_tokens=1)
    chosen = lvlm.select(images, QUESTIONS, keep=keep)
    assert chosen.kept == made.kept == chosen.mask.sum(axis=1).tolist()
    assert chosen.nouns == made.nouns and chosen.errors == [None] * 3
    assert chosen.visual_tokens == made.visual_tokens and chosen.rows == made.rows
    if keep is None:
        assert chosen.selections is None and chosen.relevance is None
        return
    np.testing.assert_array_equal(chosen.selections.indices, made.selections.indices)
    np.testing.assert_array_equal(chosen.selections.energy, made.selections.energy)
    # Against the definition: the largest cosine with a noun token, negative ones 0.
    table = np.asarray(lvlm.state["language_model"]["embed_tokens"]["embedding"].get_value())
    visual = lvlm.encode(images).embeddings
    call = lvlm.prepare(images, QUESTIONS, _options(keep), new_tokens=0)
    for row in range(3):
        ids = call.plan.noun_ids[row][call.plan.noun_valid[row]]
        if not len(ids):  # "What is red?": uniform, as the paper says
            assert (chosen.relevance[row] == 1).all()
            continue
        text, tokens = table[ids].astype(np.float64), np.asarray(visual[row], np.float64)
        cosine = (tokens @ text.T) / np.linalg.norm(tokens, axis=1)[:, None]
        cosine /= np.linalg.norm(text, axis=1)
        np.testing.assert_allclose(chosen.relevance[row], np.maximum(cosine.max(1), 0), atol=1e-5)


def _options(keep: Any) -> Any:
    from resprune_jax.models import CallOptions

    return CallOptions(keep=keep)


def test_the_first_call_of_a_shape_says_that_it_compiled(lvlm: LVLM, photographs: Any) -> None:
    """Seventeen rows, a bucket that no other test uses, so that the shape is new."""
    call = {"keep": 7, "max_new_tokens": 2}
    first = lvlm.select(photographs[0], [QUESTIONS[0]] * 17, **call)
    second = lvlm.select(photographs[1], [QUESTIONS[0]] * 17, **call)
    assert 0 < first.timings["compile"] <= first.timings["total"]
    assert second.timings["compile"] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"method": None}, {"method": 5}, {"method": ResPrune}, {"keep": b"x"}, {"keep": {4}},
        {"keep": object()}, {"alpha": "x"}, {"alpha": 1e39}, {"alpha": [[0.5]]}, {"tolerance": "x"},
        {"max_new_tokens": 1.5}, {"max_new_tokens": "5"}, {"max_new_tokens": 1e3},
        {"temperature": "x"}, {"top_p": [0.5]}, {"rng_seed": 1.5}, {"rng_seed": None},
        {"chat_template": "yes"}, {"strict_nouns": 1}, {"budget": ["total"]}, {"text": "verbs"},
        {"announce": 5}, {"options": {"keep": 4}}, {"image_aspect": 5},
    ],
)  # fmt: skip
def test_odd_settings_are_one_call_error(lvlm: LVLM, photographs: Any, settings: Any) -> None:
    with pytest.raises(CallError) as raised:
        lvlm.generate(photographs[0], QUESTIONS[0], **{"keep": 4, **settings})
    assert len(str(raised.value).splitlines()) == 1


def test_visual_tokens_of_another_shape_are_refused(lvlm: LVLM) -> None:
    width = lvlm.config.text.hidden_size
    for tokens, valid in (
        (np.zeros((1, 16, width - 1), np.float32), np.ones((1, 16), bool)),
        (np.zeros((16, width), np.float32), np.ones(16, bool)),
        (np.zeros((1, 16, width), np.float32), np.ones((1, 15), bool)),
        (np.zeros((1, 16, width), np.float32), np.zeros((1, 16), bool)),
        ("tokens", np.ones((1, 16), bool)),
    ):
        with pytest.raises(CallError):
            lvlm.generate(VisualTokens(tokens, valid), QUESTIONS[0], keep=4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        {"path_or_hub_id": 5}, {"path_or_hub_id": None}, {"path_or_hub_id": b"pocket"},
        {"path_or_hub_id": "./no/such/folder"}, {"path_or_hub_id": ""},
        {"path_or_hub_id": "pocket", "revision": "main"}, {"path_or_hub_id": "pocket", "token": 5},
        {"path_or_hub_id": "pocket", "mesh": "all"}, {"path_or_hub_id": "pocket", "dtype": "int8"},
    ],
)  # fmt: skip
def test_errors_of_load_model_come_alone(call: dict[str, Any], tmp_path: Any) -> None:
    with pytest.raises(ResPruneError) as raised:
        load_model(**call)
    lines = traceback.format_exception(raised.value)
    assert sum("Error" in line and not line.startswith(" ") for line in lines) == 1, lines
    assert len("".join(lines).splitlines()) <= 16


def test_torch_tensors_are_read() -> None:
    tokens = np.random.default_rng(3).standard_normal((12, 6)).astype(np.float32)
    want = select(tokens, 4, engine="gram", alpha=0.5, relevance=np.abs(tokens[:, 0]))
    weight = torch.tensor(np.abs(tokens[:, 0]), requires_grad=True)
    got = select(torch.from_numpy(tokens), torch.tensor(4), engine="gram",
                 alpha=torch.tensor(0.5), relevance=weight, limit=torch.tensor(4))  # fmt: skip
    np.testing.assert_array_equal(got.indices, want.indices)
    half = array_of("tokens", torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "float")
    assert half.dtype == ml_dtypes.bfloat16 and half.tolist() == [1.5, -2.0]
