"""Every method on every family: what runs keeps what was asked, what cannot is refused by name."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.experiments.methods import BACKBONES
from resprune_jax.methods import (
    NEWLINE,
    PromptContext,
    VisualTokens,
    get_method,
    inputs,
    method_class,
)
from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.families.registry import family_class, module_class, read_model_config
from resprune_jax.models.running.fitting import check_fits
from tests.checkpoints.clip import tiny_clip
from tests.checkpoints.llava import tiny_llava
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.onevision import tiny_onevision
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.checkpoints.siglip import tiny_interleave

FAMILIES = {
    "llava": tiny_llava,
    "next": tiny_next,
    "qwen": tiny_qwen,
    "interleave": tiny_interleave,
    "onevision": tiny_onevision,
}
CLASS_TOKEN = ("llava", "next")
CLIP_TOWER = CLASS_TOKEN
"""Those that are given a CLIP."""
REQUIRED = {"agilepruner": {"average": 3.0, "most": 0.5}}
AT_MOST = {"pooling", "prumerge+", "hired"}
"""What makes as many rows as its rule allows, at most the budget."""
QUESTIONS = ["What colour is the dog?", "Is there a red car near the tree?"]


@cache
def model(family: str) -> LVLM:
    folder = Path(mkdtemp())
    clip = tiny_clip(folder / "clip") if family in CLIP_TOWER else None
    return load_model(FAMILIES[family](folder / family), dtype="float32", clip=clip)


@pytest.mark.parametrize(
    "family", ["llava", *(pytest.param(f, marks=pytest.mark.deep) for f in list(FAMILIES)[1:])]
)
def test_every_method(family: str, photographs: Any) -> None:
    lvlm = model(family)
    images = list(photographs[:2])
    ran = []
    for name in METHODS:
        cls = method_class(name)
        if cls.stage in ("pixels", "decoder"):  # see test_downsample.py, decoder/
            continue
        # As somebody writes it: by name. ResPrune alone has settings of each family.
        call: dict[str, Any] = {"method": name, "method_settings": REQUIRED.get(name, {})}
        method = get_method(name, REQUIRED.get(name))
        needs = method.needs
        if "clip_text" in needs and family not in CLIP_TOWER:
            with pytest.raises(CallError, match=f"{cls.__name__} reads .*clip_text"):
                lvlm.select(images, QUESTIONS, keep=5, **call)
            continue
        shown = needs & inputs.CLASS_TOKEN
        inside = needs & inputs.INSIDE and family == "next"  # a picture of several tiles
        if inside or (shown and family not in CLASS_TOKEN and name != "resprune"):
            with pytest.raises(CallError, match=f"{cls.__name__} reads .*{max(shown)}"):
                lvlm.select(images, QUESTIONS, keep=5, **call)
            continue
        made = lvlm.select(images, QUESTIONS, keep=[5, 0.25], **call)
        ran.append(name)
        assert made.errors == [None, None]
        total = made.visual_tokens[1]
        budgets = [5 + method.beside, round(0.25 * total) + method.beside]
        if name in AT_MOST:
            assert all(0 < own <= most for own, most in zip(made.kept, budgets, strict=True)), name
        else:
            assert made.kept == budgets, name
        assert made.mask.sum(axis=1).tolist() == made.kept
        if not method.makes_rows:  # what enters are the tokens that were chosen
            assert made.selections is not None
            for row, own in enumerate(made.kept):
                picks = sorted(np.asarray(made.selections.indices)[row, :own].tolist())
                assert picks == np.flatnonzero(made.mask[row]).tolist(), name
        # In another batch, the same; what is compiled is the same too.
        other = lvlm.select(images[::-1], QUESTIONS[::-1], keep=[0.25, 9], **call)
        own = np.flatnonzero(other.mask[0]).tolist()
        assert own == np.flatnonzero(made.mask[1]).tolist(), name
    if family != "llava":  # there coordinates are a plain grid
        rows: dict[str, Any] = {"method": "uniform", "method_settings": {"layout": "rows"}}
        made = lvlm.select(images, QUESTIONS, keep=[5, 0.25], **rows)
        assert made.kept == [5, round(0.25 * made.visual_tokens[1])]
    print(f"{family}: {len(ran)} methods ran: {', '.join(ran)}")
    assert {"random", "uniform", "divprune", "resprune"} <= set(ran)
    assert ("fastervlm" in ran) == (family in CLASS_TOKEN)
    assert {"trim", "cdpruner"} & set(ran) == (
        {"trim", "cdpruner"} if family in CLIP_TOWER else set()
    )


@pytest.mark.parametrize(
    "name",
    [
        "pooling",
        *(
            pytest.param(name, marks=pytest.mark.deep)
            for name in ("visionzip", "tome", "prumerge", "prumerge+", "trim", "apet")
        ),
    ],
)
def test_what_was_merged_enters_the_llm(name: str, photographs: Any) -> None:
    """The same rows, given as if the tower had made them, get the same scores."""
    lvlm = model("llava")
    images = list(photographs[:3])
    method = get_method(name)
    questions = [*QUESTIONS, "How many?"]
    whole = lvlm.encode(images, needs=method.needs - {"clip_text"})
    texts: Any = ()
    if method.clip_text:
        assert lvlm.clip is not None
        asked = [lvlm.encoder.encode(question) for question in questions]
        texts = lvlm.clip.texts(lvlm.clip.read(asked, method.clip_text, ["<image>"], size=4))
    prompt = PromptContext(np.zeros((4, 1, 1), np.float32), np.zeros((4, 1), bool), *texts)
    most = 9 + method.beside
    made_of = module_class(lvlm.config)
    shape = nnx.eval_shape(lambda: made_of(lvlm.config, rngs=nnx.Rngs(0), dtype=lvlm.dtype))

    @jax.jit
    def run(state: Any, visual: VisualTokens) -> Any:
        module = nnx.merge(nnx.graphdef(shape), state)
        visual = replace(visual, blocks=module.vision_blocks)
        made = method.select(visual, prompt, most, limit=np.asarray([9, 4, 9, 9]))
        return made, module.projector(made.rows) if method.merges == "features" else made.rows

    made, rows = jax.tree.map(np.asarray, run(lvlm.state, whole.visual))
    own = VisualTokens(rows, np.arange(most) < np.asarray(made.count)[:, None])
    logits, valid = lvlm.logits(images, questions, method=name, keep=[9, 4, None])
    expected, there = lvlm.logits(own, [*questions, questions[0]], method="none")
    for row in (0, 1):
        ours = np.asarray(logits[row])[np.asarray(valid[row])]
        theirs = np.asarray(expected[row])[np.asarray(there[row])]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # A row without a budget keeps its tokens as they are, beside those that merge.
    full, there = lvlm.logits(images, questions, method="none")
    ours, theirs = np.asarray(logits[2])[np.asarray(valid[2])], np.asarray(full[2])[there[2]]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # Each image of a prompt by itself.
    both = [[images[0], images[1]]]
    each = lvlm.select(both, ["Which is red?"], method=name, keep=4, budget="per_image")
    assert each.kept == [8 + 2 * method.beside]
    with pytest.raises(CallError, match="image by image"):
        lvlm.select(both, ["Which is red?"], method=name, keep=4)


BY_ATTENTION = [name for name in METHODS if issubclass(method_class(name), ByAttention)]
RECEIVED: dict[str, Any] = {"attention": "received"}


def test_without_a_class_token_the_refusal_names_the_option() -> None:
    assert len(BY_ATTENTION) == 5
    for backbone, hf in BACKBONES.items():
        config = read_model_config(hf)
        family = family_class(config).without_processor(config)
        single = "OneVision" not in backbone and "Qwen" not in backbone
        for name in (*BY_ATTENTION, "hired", "prumerge", "tome"):
            method = get_method(name, REQUIRED.get(name))
            if backbone in ("LLaVA-1.5", "LLaVA-NeXT"):
                if name != "tome":
                    check_fits(family, method)
            else:
                with pytest.raises(CallError) as refused:
                    check_fits(family, method)
                said = str(refused.value)
                assert said.startswith(f"{type(method).__name__} reads ")
                option = name in BY_ATTENTION and (single or name != "visionzip")
                assert ("attention=received" in said) == option, said
            if name not in BY_ATTENTION:
                continue
            received = get_method(method, RECEIVED)
            if single or name != "visionzip":
                check_fits(family, received)
                continue
            with pytest.raises(CallError, match=r"VisionZip reads encoder_keys, .*single patches"):
                check_fits(family, received)


@pytest.mark.deep
@pytest.mark.parametrize("family", ["interleave", "onevision", "qwen"])
def test_received_attention_where_there_is_no_class_token(family: str, photographs: Any) -> None:
    """The same picks in any batch and padding; the highest where that is the rule."""
    lvlm = model(family)
    images, questions = list(photographs[:3]), [*QUESTIONS, "How many?"]
    chosen = {
        name: get_method(name, {**REQUIRED.get(name, {}), **RECEIVED})
        for name in BY_ATTENTION
        if name != "visionzip" or family == "interleave"
    }
    needs = frozenset().union(*(method.needs for method in chosen.values()))
    encoded, turned = (lvlm.encode(own, needs=needs) for own in (images, images[::-1]))
    received, valid = np.asarray(encoded.received), np.asarray(encoded.valid)
    assert (received[~valid] == 0).all()
    newline = 0 if encoded.kind is None else np.asarray(encoded.kind) == NEWLINE
    assert ((received > 0) == (valid & (newline == 0))).all()
    for name, method in chosen.items():
        made = lvlm.select(encoded, questions, keep=[5, 0.5, 3], method=method)
        assert made.errors == [None] * 3
        assert made.kept == [5, round(0.5 * made.visual_tokens[1]), 3]
        other = lvlm.select(turned, questions[::-1], keep=[3, 0.5, 5], method=method)
        for row in range(3):
            picks = np.flatnonzero(made.mask[row]).tolist()
            assert picks == np.flatnonzero(other.mask[2 - row]).tolist(), name
            if name == "fastervlm":
                order = np.argsort(-np.where(valid[row], received[row], -1), kind="stable")
                assert picks == sorted(order[: made.kept[row]].tolist())
    # As somebody writes it, from a picture alone: in a smaller batch, with its own padding.
    alone = lvlm.select(images[1], questions[1], keep=0.5, method="scope", method_settings=RECEIVED)
    whole = lvlm.select(encoded, questions, keep=0.5, method=chosen["scope"])
    picks = np.flatnonzero(whole.mask[1]).tolist()
    assert np.flatnonzero(alone.mask[0]).tolist() == picks
    with pytest.raises(CallError, match=r"FasterVLM reads received, .*encoded without"):
        lvlm.select(lvlm.encode(images[1]), questions[1], keep=4, method=chosen["fastervlm"])
    print(f"{family}: {', '.join(chosen)} ran by the attention that tokens receive")


@pytest.mark.parametrize(
    ("name", "images", "keep", "said"),
    [
        ("hired", 2, 4, 'Hired works image by image, .*budget="per_image"'),
        ("tome", 2, 4, 'Tome works image by image, .*budget="per_image"'),
        ("tome", 1, 1, "Tome cannot leave 1 of 16 visual tokens in 3 blocks .*keep at least 2"),
    ],
)
def test_budgets_that_cannot_be(
    name: str, images: int, keep: int, said: str, photographs: Any
) -> None:
    with pytest.raises(CallError, match=said):
        model("llava").select([list(photographs[:images])], QUESTIONS[:1], method=name, keep=keep)


def test_the_pocket_model_has_no_block_behind_its_features(photographs: Any) -> None:
    lvlm = load_model("pocket")
    with pytest.raises(CallError, match=r"PruMerge reads next_keys, next_saliency, .*no block"):
        lvlm.select(photographs[0], QUESTIONS[0], method="prumerge", keep=8)
    assert "early_saliency" in lvlm.family.gives


@pytest.mark.deep
def test_the_order_of_choice_is_another_prompt(photographs: Any) -> None:
    """DivPrune, sorted and not: the same tokens, other scores, as that order by hand gives."""
    lvlm, images = model("llava"), list(photographs[:2])
    made = lvlm.select(images, QUESTIONS, keep=5, method="divprune")
    call: dict[str, Any] = {"method": "divprune", "method_settings": {"sort": False}}
    listed = lvlm.select(images, QUESTIONS, keep=5, **call)
    assert made.selections is not None and listed.selections is not None
    order = np.asarray(listed.selections.indices)[:, :5]
    assert order.tolist() == np.asarray(made.selections.indices)[:, :5].tolist()
    assert listed.kept == [5, 5] and (np.diff(order, axis=1) < 0).any()
    scores = [
        lvlm.logits(images, QUESTIONS, keep=5, method="divprune", method_settings={"sort": sort})
        for sort in (True, False)
    ]
    whole = lvlm.encode(images)
    assert whole.embeddings is not None
    made_by_hand = []
    for own in (np.sort(order, axis=1), order):
        tokens = np.take_along_axis(np.asarray(whole.embeddings), own[..., None], axis=1)
        tokens = VisualTokens(tokens, np.ones((2, 5), bool))
        made_by_hand.append(lvlm.logits(tokens, QUESTIONS, method="none"))
    for row in range(2):
        sorted_, unsorted, expected, other = (
            np.asarray(logits[row])[np.asarray(valid[row])]
            for logits, valid in (*scores, *made_by_hand)
        )
        np.testing.assert_allclose(sorted_, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(unsorted, other, rtol=1e-4, atol=1e-4)
        assert np.abs(unsorted - sorted_).max() > 1e-2
    with pytest.raises(CallError, match="DivPrune lists its rows in an order of their own"):
        lvlm.select(images, QUESTIONS, keep=5, positions="original", **call)
    lvlm.select(images, QUESTIONS, keep=5, positions="original", method="divprune")
