"""llava-interleave (SigLIP under LLaVA, Qwen2) from `load_model` to the answer, against torch."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.registry import read_config, save_checkpoint
from tests.checkpoints.llava import reference_model
from tests.checkpoints.siglip import GRID, IMAGE_TOKEN_ID, tiny_interleave
from tests.parity.llava.next_pairs import picture
from tests.parity.whole_path import (
    QUESTIONS,
    Reference,
    check_greedy,
    check_logits,
    check_pruned,
    share,
)
from tests.prompt_data import lexicon

# One picture, three, two.
ROWS: list[list[Image.Image]] = [
    [picture(60, 90)],
    [picture(44, 44), picture(90, 40), picture(30, 200)],
    [picture(50, 51), picture(120, 60)],
]


@lru_cache(maxsize=1)
def folder() -> Path:
    return tiny_interleave(Path(mkdtemp()))


@lru_cache(maxsize=1)
def torch_model() -> Any:
    return reference_model(folder())


@lru_cache(maxsize=1)
def lvlm() -> LVLM:
    model = load_model(folder(), dtype="float32")
    model._extractor = lexicon()
    return model


@torch.no_grad()
def reference(row: list[Image.Image], question: str) -> Reference:
    model = torch_model()
    text = lvlm().encoder.encode(question, ("image",) * len(row)).text
    processor = AutoProcessor.from_pretrained(folder())
    inputs = dict(processor(images=row, text=[text], return_tensors="pt"))
    ids = inputs["input_ids"][0]
    x = model.get_input_embeddings()(ids)
    x[ids == IMAGE_TOKEN_ID] = torch.cat(
        model.model.get_image_features(inputs["pixel_values"]).pooler_output
    )
    image = np.full(len(ids), -1)
    image[ids.numpy() == IMAGE_TOKEN_ID] = np.repeat(np.arange(len(row)), GRID**2)
    return Reference(model, inputs, x, np.arange(len(ids)), image)


def test_logits_answers_and_pruned_answers_of_a_ragged_batch() -> None:
    model = lvlm()
    assert model.family.defaults == {"seed_rule": "max_norm"}
    rows = [reference(row, asked) for row, asked in zip(ROWS, QUESTIONS, strict=False)]
    check_logits(model, ROWS, QUESTIONS[:3], rows)
    assert check_greedy(model, ROWS, QUESTIONS[:3], rows) >= 64
    check_pruned(model, ROWS, QUESTIONS[:3], rows, keep=[0.3, 11, None], new=8)


@pytest.mark.deep
@pytest.mark.parametrize(
    "fault",
    [{}, {"layer_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"blocks": 1}, {"projector": "tanh"}],
    ids=str,
)
def test_a_planted_fault_in_the_tower_fails_the_gate(fault: dict[str, Any]) -> None:
    config = lvlm().config
    blocks, fault = fault.get("blocks", 2), {k: v for k, v in fault.items() if k != "blocks"}
    act = "gelu_pytorch_tanh" if fault.pop("projector", None) else "gelu"
    wrong = replace(
        config, vision=replace(config.vision, **fault), num_vision_blocks=blocks, projector_act=act
    )
    spoilt = nnx.graphdef(nnx.eval_shape(lambda: Llava(wrong, rngs=nnx.Rngs(0))))
    state = lvlm().state
    if blocks == 1:
        behind = ("vision_tower", "encoder", "layers", 1)
        flat = nnx.to_flat_state(state)
        state = nnx.from_flat_state([(path, leaf) for path, leaf in flat if path[:4] != behind])
    pixels = lvlm().family.processor([row[0] for row in ROWS])  # type: ignore[attr-defined]
    run = jax.jit(lambda state: nnx.merge(spoilt, state).encode_images(pixels).embeddings)
    with torch.no_grad():
        want = torch_model().model.get_image_features(torch.from_numpy(pixels)).pooler_output
    want = torch.stack(want).numpy()
    error = share(np.asarray(run(state)) / want.std(), want / want.std())
    print(f"{fault or blocks}: {error:.1f} of the bound")
    assert error <= 1 if (not fault and blocks == 2 and act == "gelu") else error > 10


def test_what_there_is_no_class_token_for_is_refused() -> None:
    with pytest.raises(CallError, match=r"saliency.* max_norm"):
        lvlm().generate(ROWS[0][0], QUESTIONS[0], keep=3, seed_rule="cls_attention")


def test_the_overlay_shows_the_whole_picture() -> None:
    (region,) = lvlm().family.regions(ROWS[0][0], "processor")
    assert region.square and region.picture is ROWS[0][0] and region.grid == (3, 3)
    (padded,) = lvlm().family.regions(ROWS[0][0], "pad")
    assert not padded.square and padded.picture.size[0] == padded.picture.size[1]


def test_a_saved_checkpoint_loads_in_torch_with_and_without_its_head(tmp_path: Path) -> None:
    for use_head in (False, True):
        made = folder() if not use_head else tiny_interleave(tmp_path / "head", use_head=True)
        state = load_model(made, dtype="float32").state  # a head in the file is not missed
        again = save_checkpoint(tmp_path / str(use_head), read_config(made), state)
        _, info = LlavaForConditionalGeneration.from_pretrained(again, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
