"""Qwen2.5-VL from `load_model` to the answer, against transformers."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from resprune_jax.models import LVLM, Video, load_model
from resprune_jax.models.prompts.expansion import expand
from tests.checkpoints.qwen_vl import (
    DIALECTS,
    IMAGE_TOKEN_ID,
    VIDEO_TOKEN_ID,
    VISION_END_ID,
    reference_processor,
    rename_dialect,
)
from tests.parity.llava.next_pairs import picture
from tests.parity.qwen.pairs import kinds, pair
from tests.parity.whole_path import (
    LONG,
    QUESTIONS,
    Reference,
    check_greedy,
    check_logits,
    check_pruned,
    closed_up,
)
from tests.prompt_data import lexicon

# Windows of 4 x 4 cells cut on both sides, on one, on none; a strip.
RAGGED, WIDE, WHOLE, STRIP = (150, 190), (90, 200), (112, 112), (30, 300)


def film(frames: int) -> Video:
    """Frames that differ; an odd number of them fills its last group by repeating."""
    shots = [np.asarray(picture(60 + n, 90))[:60] for n in range(frames)]
    return Video(np.stack(shots), fps=4.0)


# A picture; two; a video of three groups of frames; a picture behind a video.
ROWS: list[list[Any]] = [
    [picture(*RAGGED)],
    [picture(*WHOLE), picture(*STRIP)],
    [film(5)],
    [film(4), picture(*WIDE)],
]


@lru_cache(maxsize=3)
def lvlm(variant: str) -> LVLM:
    model = load_model(pair(variant).directory, dtype="float32")
    model._extractor = lexicon()
    return model


@lru_cache(maxsize=3)
def processor(variant: str) -> Any:
    return reference_processor(pair(variant).directory)


def torch_inputs(variant: str, row: list[Any], question: str) -> dict[str, torch.Tensor]:
    """By transformers' own processor; where there are videos, which it cannot read here, by hand
    from patches that equal its own (tests/models/families/test_qwen_processing.py)."""
    model = lvlm(variant)
    media = tuple("video" if isinstance(own, Video) else "image" for own in row)
    prompt = model.encoder.encode(question, media)
    if "video" not in media:
        return dict(processor(variant)(images=row, text=[prompt.text], return_tensors="pt"))
    reader = model.family.processor  # type: ignore[attr-defined]
    read = [
        reader.video(own.frames, fps=own.fps) if isinstance(own, Video) else reader.image(own)
        for own in row
    ]
    counts = [each.cells(model.config.vision).num_tokens for each in read]
    ids, _ = expand(prompt.ids, [IMAGE_TOKEN_ID, VIDEO_TOKEN_ID], counts)
    inputs = {
        "input_ids": torch.from_numpy(ids).long()[None],
        "mm_token_type_ids": torch.from_numpy(kinds(ids)).int()[None],
    }
    for video, pixels, grid in (
        (False, "pixel_values", "image_grid_thw"),
        (True, "pixel_values_videos", "video_grid_thw"),
    ):
        own = [each for each in read if (each.seconds is not None) == video]
        if own:
            inputs[pixels] = torch.from_numpy(np.concatenate([each.patches for each in own]))
            inputs[grid] = torch.tensor([each.grid for each in own])
            if video and variant != "qwen2":
                inputs["second_per_grid_ts"] = torch.tensor([each.seconds for each in own])
    return inputs


@torch.no_grad()
def reference(variant: str, row: list[Any], question: str) -> Reference:
    model = pair(variant).torch_model
    inputs = torch_inputs(variant, row, question)
    ids = inputs["input_ids"][0]
    x = model.get_input_embeddings()(ids)
    if "pixel_values" in inputs:
        own = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        x[ids == IMAGE_TOKEN_ID] = torch.cat(list(own.pooler_output))
    if "pixel_values_videos" in inputs:
        own = model.model.get_video_features(
            inputs["pixel_values_videos"], inputs["video_grid_thw"]
        )
        x[ids == VIDEO_TOKEN_ID] = torch.cat(list(own.pooler_output))
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    places, _ = model.model.get_rope_index(
        input_ids=inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"],
        **{name: inputs[name] for name in names if name in inputs},
    )  # fmt: skip
    tokens = ids.numpy()
    visual = np.isin(tokens, [IMAGE_TOKEN_ID, VIDEO_TOKEN_ID])
    image = np.where(visual, np.cumsum(tokens == VISION_END_ID), -1)
    return Reference(model, inputs, x, places[:, 0].numpy().T, image)


@lru_cache(maxsize=3)
def references(variant: str) -> list[Reference]:
    pairs = zip(ROWS, QUESTIONS, strict=True)
    return [reference(variant, row, question) for row, question in pairs]


@pytest.mark.parametrize("variant", ["untied", pytest.param("tied", marks=pytest.mark.deep)])
def test_full_logits_and_answers_of_pictures_and_videos(variant: str) -> None:
    rows = references(variant)
    grids = [grid for row in lvlm(variant).encode(ROWS).layouts for grid in row]
    print([(own.media, own.grid.frames, own.grid.rows, own.grid.columns) for own in grids])
    assert max(own.grid.frames for own in grids if own.media == "video") == 3
    check_logits(lvlm(variant), ROWS, QUESTIONS, rows)
    tokens = check_greedy(lvlm(variant), ROWS, QUESTIONS, rows)
    print(f"{variant}: {tokens} greedy tokens equal")
    assert tokens >= 64


@pytest.mark.deep
def test_one_prompt_alone_and_a_long_one() -> None:
    model = lvlm("untied")
    tokens = check_greedy(model, ROWS[0], QUESTIONS[:1], references("untied")[:1])
    assert tokens >= 16
    long = [reference("untied", ROWS[0], LONG)]
    assert len(long[0].ids) > 500
    check_logits(model, ROWS[0], [LONG], long)


@pytest.mark.deep
@pytest.mark.parametrize(
    ("variant", "positions", "budget"),
    [
        ("untied", None, "total"),
        ("untied", "reindex", "total"),
        ("untied", "reindex", "per_image"),
        ("tied", "original", "per_image"),
    ],
)
def test_pruned(variant: str, positions: Any, budget: Any) -> None:
    """torch is fed the same kept embeddings at the rule's positions."""
    rows, keep = references(variant), [0.3, 5, None, 3]
    made = check_pruned(
        lvlm(variant), ROWS, QUESTIONS, rows, keep=keep, new=8, positions=positions, budget=budget
    )
    counts = [np.unique(row.image[row.image >= 0], return_counts=True)[1] for row in rows]
    wanted = [round(0.3 * counts[0].sum()), 5, counts[2].sum(), 3]
    if budget == "per_image":
        wanted = [wanted[0], 10, wanted[2], 6]
    assert made.kept == wanted


def test_the_oracle_of_closing_up_is_the_full_rule_when_all_stay() -> None:
    for row in references("untied")[:2]:  # a video's duration counts in neither rule
        got = closed_up(row.positions, row.image, row.positions, row.image)
        np.testing.assert_array_equal(got, row.positions)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_key_dialect_loads(dialect: str, tmp_path: Path) -> None:
    folder = rename_dialect(pair("untied").directory, tmp_path / dialect, dialect)
    other = load_model(folder, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, other.state, lvlm("untied").state)
    got, want = (
        model.generate(ROWS[0], QUESTIONS[:1], max_new_tokens=4).tokens
        for model in (other, lvlm("untied"))
    )
    np.testing.assert_array_equal(got, want)
