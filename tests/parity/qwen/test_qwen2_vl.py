"""Qwen2-VL from `load_model` to the answer, its tower and its positions, against torch."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from resprune_jax.models import LVLM, Video
from tests.compiles import backend_compiles
from tests.parity.llava.next_pairs import picture
from tests.parity.qwen.pairs import pair, read_port, standard_batch
from tests.parity.qwen.test_qwen_answers import ROWS, lvlm, references
from tests.parity.whole_path import QUESTIONS, check_greedy, check_logits, check_pruned, share


@pytest.fixture(scope="module")
def model() -> LVLM:
    model = lvlm("qwen2")
    assert model.family.name == "Qwen2-VL" and model.config.tie_word_embeddings
    assert model.family.resprune == {"alpha": 0.3, "seed_rule": "max_norm"}
    return model


def test_logits_answers_and_pruned_answers_of_pictures_and_videos(model: LVLM) -> None:
    """A picture; two; a video of three groups of frames; a picture behind a video."""
    rows = references("qwen2")
    check_logits(model, ROWS, QUESTIONS, rows)
    assert check_greedy(model, ROWS, QUESTIONS, rows) >= 64
    made = check_pruned(model, ROWS, QUESTIONS, rows, keep=[0.3, 5, None, 3], new=8)
    assert made.kept[1] == 5 and made.kept[3] == 3


@pytest.mark.deep
def test_nothing_compiles_behind_a_warm_up(model: LVLM) -> None:
    """Pictures and films of other sizes in the same buckets, all tokens and pruned."""
    one, two = [(150, 190)], [[(150, 190), (5, 60, 90)]]
    shapes = model.warm_up(one, keep=[None, 0.3], prompt_lengths=(60,), max_new_tokens=3)
    shapes += model.warm_up(two, keep=0.3, prompt_lengths=(60,), max_new_tokens=3)
    shots = [np.asarray(picture(64 + n, 88))[:64] for n in range(6)]
    film = Video(np.stack(shots), fps=3.0)
    with backend_compiles() as compiles:
        for size in ((140, 200), (160, 180)):
            model.generate(picture(*size), QUESTIONS[0], max_new_tokens=3)
            model.generate(picture(*size), QUESTIONS[1], keep=0.3, max_new_tokens=2)
        made = model.generate(
            [[picture(140, 200), film]], [QUESTIONS[0]], keep=0.3, max_new_tokens=2
        )
    assert compiles == [] and shapes == 3
    assert made.errors == [None] and made.kept[0] < made.visual_tokens[0]


FAULTS: dict[str, Any] = {
    "none": {},
    "epsilon": {"rms_norm_eps": 1e-5},
    "theta": {"rope_theta": 10100.0},
    "windows": {"full_attention_blocks": (1,)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_tower_passes_and_a_planted_fault_does_not(fault: str) -> None:
    models = pair("qwen2")
    vision = replace(models.config.vision, **FAULTS[fault])
    graph, state = read_port(models.directory, replace(models.config, vision=vision))
    batch = standard_batch(models.config)
    run = jax.jit(lambda state: nnx.merge(graph, state).encode_images(batch.patches, batch.tables))
    tokens = run(state)
    own = batch.rows[2]
    with torch.no_grad():
        want = models.torch_model.model.visual(
            torch.from_numpy(np.concatenate([each.patches for each in own])),
            grid_thw=torch.tensor([each.grid for each in own]),
        ).pooler_output.numpy()
    got = np.asarray(tokens.embeddings[2])[np.asarray(tokens.valid[2])]
    error = share(got / want.std(), want / want.std())
    print(f"{fault}: {error:.2f} of the bound")
    assert error <= 1 if fault == "none" else error > 10


def test_time_counts_plainly_whatever_the_clock_says() -> None:
    config = pair("qwen2").config
    batch = standard_batch(config)
    clock = standard_batch(replace(config, vision=replace(config.vision, tokens_per_second=2.0)))
    model = pair("qwen2").torch_model
    for row in range(3):
        inputs = batch.torch_inputs(row)
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
        want, deltas = model.model.get_rope_index(**{k: inputs[k] for k in names if k in inputs})
        real = batch.valid[row]
        np.testing.assert_array_equal(batch.places.positions[row, real], want[:, 0].numpy().T)
        assert batch.places.deltas(batch.valid)[row] == int(deltas[0, 0])
    assert (batch.places.positions[2] != clock.places.positions[2]).any()
