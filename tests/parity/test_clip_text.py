"""CLIP's text tower and patch head against transformers' `CLIPModel`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from resprune_jax.methods import VisualTokens
from resprune_jax.methods.encoder.trim import Trim
from resprune_jax.methods.tokens.cdpruner import Cdpruner
from resprune_jax.models import load_model
from resprune_jax.models.running.clip import ClipTexts
from resprune_jax.models.towers.clip_text.config import ClipPairConfig
from tests.checkpoints.clip import tiny_clip

BOUND = 1e-5


def reference(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()


def text_features(model: CLIPModel, ids: np.ndarray, real: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        pooled = model.text_model(torch.tensor(ids), torch.tensor(real.astype(int))).pooler_output
        return model.text_projection(pooled).numpy()


def worst(ours: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / max(1.0, theirs.std()))


@pytest.mark.parametrize(
    "changes",
    [{}, {"legacy": True}, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}],
    ids=["eos", "largest id", "gelu"],
)
def test_texts_of_any_length(changes: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path, **changes)
    clip = load_model(checkpoint, dtype="float32", clip=folder).clip
    assert clip is not None
    rng = np.random.default_rng(0)
    most, end = clip.config.text.positions, clip.tokenizer.eos_token_id
    lengths = [2, 3, 9, 40, 76, 77, 77, 5]
    ids, real = np.zeros((len(lengths), most), np.int32), np.zeros((len(lengths), most), bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = rng.integers(1, end - 1, length)
        real[row, :length] = True
        if row != 6:  # a part of a longer text has no end
            ids[row, length - 1] = end
    ids[7, 2] = end  # the first of two counts
    made, valid = clip.texts(ClipTexts(ids.reshape(4, 2, -1), real.reshape(4, 2, -1), valid=real))
    assert valid.shape == real.shape
    theirs = text_features(reference(folder), ids, real)
    error = worst(made.reshape(len(ids), -1), theirs)
    print(f"{changes}: {len(ids)} texts, {error:.1e} of a deviation of {theirs.std():.2f}")
    assert error <= BOUND


def test_what_methods_read(
    with_clip: Any, reference_parts: tuple[Any, CLIPModel], photographs: Any
) -> None:
    """Patches and texts, from pictures and questions on, as somebody would write it in torch."""
    llava, clip = reference_parts
    visual = with_clip.encode(list(photographs[:2]), needs=["clip_patches"]).visual
    pixels = torch.tensor(
        np.asarray(with_clip.family.processor(list(photographs[:2]), "processor"))
    )
    with torch.no_grad():
        tower = llava.model.vision_tower
        x = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        theirs = clip.visual_projection(clip.vision_model.post_layernorm(x)).numpy()
    assert visual.features is None and visual.clip_patches.dtype == np.float32
    error = worst(visual.clip_patches, theirs)
    print(f"patches: {error:.1e} of a deviation of {theirs.std():.2f}")
    assert error <= BOUND

    # Faint patches, where the norm's epsilon counts; newlines and padding are 0.
    faint = np.random.default_rng(0).normal(size=(1, 5, 48)).astype(np.float32) * 0.01
    own = VisualTokens(faint, np.arange(5)[None] < 4, faint, kind=np.asarray([[0, 1, 0, 0, 0]]))
    made = np.asarray(with_clip.clip.patches(own))
    with torch.no_grad():
        normed = clip.vision_model.post_layernorm(torch.tensor(faint))
        theirs = clip.visual_projection(normed).numpy()
    assert not made[0, [1, 4]].any() and worst(made[0, [0, 2, 3]], theirs[0, [0, 2, 3]]) <= BOUND

    tail = "\nAnswer the question using a single word or phrase."
    questions = ["How many dogs?" + tail, "Is it red? " + "The dog near the bicycle. " * 30]
    tokenizer = with_clip.clip.tokenizer
    prompts = [with_clip.encoder.encode(question) for question in questions]
    for method in (Trim(), Cdpruner()):
        read = with_clip.clip.read(prompts, method.clip_text, ["<image>"], size=2)
        made, valid = with_clip.clip.texts(read)
        for row, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            if method.clip_text == "prompt":
                text = prompt.text.replace("<image>", " ")
                ids = tokenizer(text, truncation=True, max_length=77)["input_ids"]
            else:
                ids = tokenizer(question.removesuffix(tail), verbose=False)["input_ids"]
            parts = -(-len(ids) // 77)
            padded = np.zeros((parts, 77), int)
            padded.flat[: len(ids)] = ids
            mask = (np.arange(parts * 77) < len(ids)).reshape(parts, 77)
            own = text_features(clip, padded, mask)
            assert valid[row].sum() == parts
            error = worst(made[row, :parts], own)
            print(f"{method.clip_text} {row}: {parts} texts, {error:.1e}")
            assert error <= BOUND
    assert valid.sum() > 3, "the long question has several parts"


@pytest.fixture(scope="module")
def reference_parts(request: Any) -> tuple[Any, CLIPModel]:
    folder = request.getfixturevalue("clip_checkpoint")
    return request.getfixturevalue("reference"), reference(folder)


SECOND = {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3}


@pytest.mark.parametrize(
    "hf",
    [
        {},
        {"text_config": {"eos_token_id": 2, "hidden_act": "gelu"}, "projection_dim": 64},
        # The second copy of old files: what it leaves out is the default, not the first copy's.
        {"text_config": {"eos_token_id": 2, "hidden_act": "gelu"}, "text_config_dict": SECOND},
        {"vision_config": {"hidden_size": 1024}, "vision_config_dict": SECOND},
    ],
)
def test_the_configuration_is_read_as_theirs(hf: dict[str, Any]) -> None:
    ours, theirs = ClipPairConfig.from_hf({"model_type": "clip", **hf}), CLIPConfig(**hf)
    assert ours.projection_dim == theirs.projection_dim
    for own, other in ((ours.text, theirs.text_config), (ours.vision, theirs.vision_config)):
        assert own.hidden_size == other.hidden_size
        assert own.num_layers == other.num_hidden_layers
        assert own.num_heads == other.num_attention_heads
        assert own.hidden_act == other.hidden_act
        assert own.layer_norm_eps == other.layer_norm_eps
    assert ours.text.eos_token_id == theirs.text_config.eos_token_id
    assert ours.text.positions == theirs.text_config.max_position_embeddings
