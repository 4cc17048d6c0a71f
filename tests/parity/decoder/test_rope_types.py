"""RoPE of type linear, llama3 and YaRN: transformers' frequencies, and answers far behind the
original context, on the weights of the other tests."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from resprune_jax.models import LVLM, load_model
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.decoder.rope import inverse_frequencies
from tests.checkpoints.llava import IMAGE_TOKEN_ID, reference_model
from tests.parity.llava.next_pairs import picture
from tests.parity.qwen import test_qwen_answers as qwen
from tests.parity.whole_path import (
    LONG,
    QUESTIONS,
    Reference,
    check_greedy,
    check_logits,
    check_pruned,
    share,
)
from tests.prompt_data import lexicon

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip

PUBLISHED: dict[str, tuple[float, dict[str, Any]]] = {
    "linear": (1e4, {"rope_type": "linear", "factor": 2.5}),
    "llama 3.1": (5e5, LLAMA3),
    "llama 3.2": (5e5, {**LLAMA3, "factor": 32.0}),
    "qwen with yarn": (1e6, YARN),
    "yarn, own attention": (1e4, {**YARN, "attention_factor": 0.75, "beta_fast": 20}),
    "yarn, mscale": (1e4, {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": False}),
    "yarn, short context": (1e4, {**YARN, "original_max_position_embeddings": 64}),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("flat", [True, False])
def test_frequencies_and_lengths_are_transformers(name: str, flat: bool) -> None:
    theta, rope = PUBLISHED[name]
    hf: dict[str, Any] = {"hidden_size": 4096, "num_attention_heads": 32,
                          "max_position_embeddings": 131072}  # fmt: skip
    if flat:  # as files before version 5
        own = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
        hf |= {"rope_theta": theta, "rope_scaling": own}
    else:
        hf |= {"rope_parameters": {"rope_theta": theta, **rope}}
    reference = LlamaConfig(**json.loads(json.dumps(hf)))
    want, lengthened = ROPE_INIT_FUNCTIONS[rope["rope_type"]](reference, "cpu")
    config = DecoderConfig.from_hf(hf)
    assert config.rope_theta == theta and config.rope_scaling is not None
    got = config.rope_scaling.scale(inverse_frequencies(128, theta), theta)
    assert got.dtype == np.float32 and config.rope_scaling.attention == lengthened
    np.testing.assert_allclose(got, want.numpy(), rtol=3e-7)
    assert (got != inverse_frequencies(128, theta)).any()


# Twelve tokens are the original context here, and prompts have up to 500.
TINY: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {**LLAMA3, "original_max_position_embeddings": 12},
    "yarn": {**YARN, "original_max_position_embeddings": 12},
}


def stretched(folder: Path, rope: dict[str, Any]) -> Path:
    """A copy of a checkpoint under another RoPE type: the weights do not depend on it."""
    target = Path(mkdtemp()) / rope["rope_type"]
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["text_config"]["rope_parameters"].update(rope)
    (target / "config.json").write_text(json.dumps(config))
    return target


def loaded(folder: Path) -> LVLM:
    model = load_model(folder, dtype="float32")
    model._extractor = lexicon()
    assert model.config.text.rope_scaling is not None
    return model


ROWS = [[picture(60, 90)], [picture(50, 50)], [picture(44, 80)]]
ASKED = [QUESTIONS[0], " ".join(QUESTIONS[1:3] * 3), QUESTIONS[3]]


@torch.no_grad()
def llava_reference(folder: Path, model: LVLM, row: list[Any], question: str) -> Reference:
    torch_model = reference_model(folder)
    text = model.encoder.encode(question).text
    inputs = dict(
        AutoProcessor.from_pretrained(folder)(images=row, text=[text], return_tensors="pt")
    )
    ids = inputs["input_ids"][0]
    x = torch_model.get_input_embeddings()(ids)
    x[ids == IMAGE_TOKEN_ID] = torch.cat(
        list(torch_model.model.get_image_features(inputs["pixel_values"]).pooler_output)
    )
    image = np.where(ids.numpy() == IMAGE_TOKEN_ID, 0, -1)
    return Reference(torch_model, inputs, x, np.arange(len(ids)), image)


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_a_ragged_batch_behind_the_original_context(kind: str, checkpoint: Path) -> None:
    folder = stretched(checkpoint, TINY[kind])
    model = loaded(folder)
    rows = [
        llava_reference(folder, model, row, asked) for row, asked in zip(ROWS, ASKED, strict=True)
    ]
    assert max(len(row.ids) for row in rows) > 100
    check_logits(model, ROWS, ASKED, rows)
    assert check_greedy(model, ROWS, ASKED, rows) >= 64


@lru_cache(maxsize=1)
def qwen_folder() -> Path:
    return stretched(qwen.pair("untied").directory, TINY["yarn"])


@pytest.mark.deep
def test_yarn_on_three_axes() -> None:
    """Qwen2.5-VL with YaRN, which its makers recommend for long prompts."""
    from tests.checkpoints.qwen_vl import reference_model as qwen_model

    model, torch_model = loaded(qwen_folder()), qwen_model(qwen_folder())
    rows = []
    for row, question in zip(qwen.ROWS[:2], [QUESTIONS[0], LONG[:300]], strict=True):
        own = qwen.reference("untied", row, question)
        rows.append(Reference(torch_model, *parts(own)))
    asked = [QUESTIONS[0], LONG[:300]]
    check_logits(model, qwen.ROWS[:2], asked, rows)
    assert check_greedy(model, qwen.ROWS[:2], asked, rows) >= 32
    check_pruned(model, qwen.ROWS[:2], asked, rows, keep=[0.3, 5], new=4)
    # The bound tells the types apart.
    default = Reference(qwen.pair("untied").torch_model, *parts(rows[0]))
    assert share(default.logits(), rows[0].logits()) > 10


def parts(row: Reference) -> tuple[Any, ...]:
    """All of a prompt but its model."""
    return row.inputs, row.embeddings, row.positions, row.image
