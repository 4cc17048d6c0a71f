"""The Qwen2.5-VL port against transformers (torch, float32, CPU) on small random checkpoints."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.vision_utils import get_vision_window_index

from resprune_jax.experiments.common import cache_argument
from resprune_jax.models.decoder import layers
from resprune_jax.models.decoder.mrope import pruned_positions
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig
from tests.checkpoints.qwen_vl import DIALECTS, rename_dialect
from tests.parity.qwen.pairs import (
    LARGE,
    LENGTH,
    PATCHES,
    RAGGED,
    ROWS,
    STRIP,
    VIDEO,
    WHOLE,
    Batch,
    Pair,
    embed_prompts,
    excess,
    make_batch,
    pair,
    read_port,
    standard_batch,
    vision_input,
)


@partial(jax.jit, static_argnums=0)
def encode(graph: Any, state: Any, patches: Any, tables: Any) -> Any:
    """VisualTokens with features, from packed patches."""
    return nnx.merge(graph, state).encode_images(patches, tables, needs=frozenset({"features"}))


@partial(jax.jit, static_argnums=0)
def answer(graph: Any, state: Any, visual: Any, ids: Any, index: Any, valid: Any, at: Any) -> Any:
    """(B, S, V) of prompts with their visual tokens in place."""
    model = nnx.merge(graph, state)
    x = embed_prompts(model, ids, index, valid, visual)
    return model.project_logits(model.forward(x, at, valid))


def port_logits(graph: Any, state: Any, batch: Batch) -> jax.Array:
    """(B, S, V) of the port, from packed patches."""
    visual = encode(graph, state, batch.patches, batch.tables)
    return answer(graph, state, visual, batch.ids, batch.index, batch.valid, batch.places.positions)


@torch.no_grad()
def torch_logits(model: Any, inputs: dict[str, Any]) -> np.ndarray:
    """(S, V) of the torch model for one prompt."""
    model.model.rope_deltas = None
    return model(**inputs).logits[0].numpy()


@pytest.fixture(scope="module")
def untied() -> Pair:
    return pair("untied")


def test_tower_and_merger_of_a_packed_batch() -> None:
    # Five pictures and videos of different sizes in one sequence, with padding behind.
    models = pair("untied")
    batch = standard_batch(models.config)
    tokens = encode(*models.port(), batch.patches, batch.tables)
    compared = 0
    for row, own in enumerate(batch.rows):
        grids = torch.tensor([each.grid for each in own])
        pixels = torch.from_numpy(np.concatenate([each.patches for each in own]))
        with torch.no_grad():
            out = models.torch_model.model.visual(pixels, grid_thw=grids)
        order, _ = get_vision_window_index(grids, 2, 112, 14)
        hidden = out.last_hidden_state.reshape(len(order), -1)[torch.argsort(order)].numpy()
        cells = out.pooler_output.numpy()
        real = np.asarray(tokens.valid[row])
        assert real.sum() == len(cells)
        scale = cells.std()  # far below 1 here
        assert excess(f"features of row {row}", tokens.features[row][real], hidden) <= 1
        assert excess("merger", tokens.embeddings[row][real] / scale, cells / scale) <= 1
        compared += cells.size
    print(f"{compared} values of visual tokens")


def test_a_picture_does_not_see_the_others(untied: Pair) -> None:
    # Alone, and in a batch in which everything else is another picture: bit for bit the same.
    port = untied.port()
    batch, other = standard_batch(untied.config), standard_batch(untied.config, rng_seed=50)
    size = len(batch.rows[0][0].patches)
    mixed = np.concatenate([batch.patches[:size], 30 * other.patches[size:]])
    alone = np.asarray(encode(*port, batch.patches, batch.tables).embeddings[0])
    again = np.asarray(encode(*port, mixed, batch.tables).embeddings[0])
    np.testing.assert_array_equal(alone, again)


@pytest.mark.parametrize("variant", ["untied", "tied"])
def test_logits_of_a_mixed_batch(variant: str) -> None:
    """Ragged rows: a picture, two pictures, a video and a picture."""
    models = pair(variant)
    batch = standard_batch(models.config, rng_seed=7)
    got = np.asarray(port_logits(*models.port(), batch))
    assert np.isfinite(got).all()
    for row in range(ROWS):
        expected = torch_logits(models.torch_model, batch.torch_inputs(row))
        ours = got[row, batch.valid[row]]
        assert excess(f"{variant}, row {row}", ours, expected) <= 1
        assert np.array_equal(ours.argmax(-1), expected.argmax(-1))
        assert 0.5 < expected.std() < 4


def test_logits_of_long_prompts(untied: Pair) -> None:
    rows = [[vision_input(LARGE, 1), vision_input(STRIP, 2)], [vision_input(VIDEO, 3, 0.7)]]
    texts = [460, 500, 410]
    batch = make_batch(untied.config, [*rows, [vision_input(RAGGED, 4)]], texts, length=544)
    assert (batch.valid.sum(axis=1) > 420).all() and batch.valid.sum(axis=1).max() > 500
    got = np.asarray(port_logits(*untied.port(), batch))
    for row in range(ROWS):
        expected = torch_logits(untied.torch_model, batch.torch_inputs(row))
        ours = got[row, batch.valid[row]]
        assert excess(f"{len(expected)} tokens", ours, expected) <= 1


def test_cached_decode_continues_where_torch_does(untied: Pair) -> None:
    steps = 6
    batch = standard_batch(untied.config, rng_seed=11)
    graph, state = untied.port()
    visual = encode(graph, state, batch.patches, batch.tables)
    new = np.random.default_rng(5).integers(7, 380, (ROWS, steps)).astype(np.int32)

    @jax.jit
    def prefill(state: Any) -> Any:
        model = nnx.merge(graph, state)
        x = embed_prompts(model, batch.ids, batch.index, batch.valid, visual)
        return model.prefill(x, batch.places.positions, batch.valid, LENGTH + steps)[1]

    @partial(jax.jit, donate_argnums=1)
    def step(state: Any, cache: Any, token: Any, place: Any, slot: Any) -> Any:
        model = nnx.merge(graph, state)
        hidden, cache = model.decode_step(model.embed(token[:, None]), place[:, None], slot, cache)
        return model.project_logits(hidden[:, 0]), cache

    cache, rows = prefill(state), []
    for at in range(steps):
        place = np.asarray(batch.places.following) + at
        logits, cache = step(state, cache, new[:, at], place, jnp.int32(LENGTH + at))
        rows.append(np.asarray(logits))
    got = np.stack(rows, axis=1)  # [B, steps, V]
    for row in range(ROWS):
        inputs = batch.torch_inputs(row)
        model = untied.torch_model
        model.model.rope_deltas = None
        with torch.no_grad():
            held = model(**inputs, use_cache=True)
            # As generate does: one mask for all, positions from the deltas that prefill left.
            mask = torch.ones((1, inputs["input_ids"].shape[1] + steps), dtype=torch.long)
            more = torch.from_numpy(new[row : row + 1]).long()
            past = inputs["input_ids"].shape[1]
            places = (past + torch.arange(steps) + model.model.rope_deltas).expand(3, 1, -1)
            out = model(
                input_ids=more, attention_mask=mask, position_ids=places,
                **{cache_argument(model): held.past_key_values},
            )  # fmt: skip
        assert excess(f"row {row}, decoded", got[row], out.logits[0].numpy()) <= 1


@pytest.mark.parametrize("rule", ["original", "compact"])
def test_pruned_logits(untied: Pair, rule: Any) -> None:
    """The same kept embeddings and positions on both sides, in the full prompt's order."""
    batch = standard_batch(untied.config, rng_seed=13)
    graph, state = untied.port()
    visual = encode(graph, state, batch.patches, batch.tables)
    rng = np.random.default_rng(3)
    keep = batch.valid & ((batch.index < 0) | (rng.random(batch.ids.shape) < 0.4))
    places, following = map(np.asarray, pruned_positions(batch.places, keep, rule))
    counts = keep.sum(axis=1)
    ids, index = np.zeros_like(batch.ids), np.full_like(batch.index, -1)
    at = np.zeros((*batch.ids.shape, 3), np.int32)
    for row, count in enumerate(counts):
        ids[row, :count], index[row, :count] = (
            batch.ids[row, keep[row]],
            batch.index[row, keep[row]],
        )
        at[row, :count] = places[row, keep[row]]
    valid = np.arange(LENGTH) < counts[:, None]
    got = np.asarray(answer(graph, state, visual, ids, index, valid, at))
    for row, count in enumerate(counts):
        model, real = untied.torch_model, ids[row, :count]
        x = model.get_input_embeddings()(torch.from_numpy(real).long()).detach().clone()
        kept = index[row, :count] >= 0
        tokens = np.asarray(visual.embeddings[row])[index[row, :count][kept]]
        x[torch.from_numpy(kept)] = torch.from_numpy(tokens)
        order = torch.from_numpy(at[row, :count].T.copy()).long()[:, None]
        with torch.no_grad():
            expected = model(inputs_embeds=x[None], position_ids=order).logits[0].numpy()
        assert excess(f"{rule}, row {row}, {count} tokens", got[row, :count], expected) <= 1
        assert following[row] > at[row, :count].max()
    print(
        f"{rule}: {int(batch.valid.sum() - counts.sum())} of {int((batch.index >= 0).sum())} left"
    )


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("variant", ["untied", "tied"])
def test_both_dialects_hold_the_same_parameters(variant: str, dialect: str, tmp_path: Any) -> None:
    models = pair(variant)
    folder = rename_dialect(models.directory, tmp_path / dialect, dialect)
    _, state = read_port(folder, models.config)
    _, expected = models.port()
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True))
    assert all(np.array_equal(left, right) for left, right in pairs)
    print(f"{variant}, {dialect}: {len(pairs)} parameters")


VISION_FAULTS = ("vision epsilon", "block 1 in windows", "tanh gelu", "vision theta")
TEXT_FAULTS = ("text epsilon", "rope theta", "sections", "one axis", "tokens a second")


def faulty(config: Qwen25VLConfig, fault: str) -> Qwen25VLConfig:
    """The configuration with one mistake in it; some mistakes are made elsewhere."""
    vision, text = config.vision, config.text
    match fault:
        case "vision epsilon":
            return replace(config, vision=replace(vision, rms_norm_eps=1e-5))
        case "block 1 in windows":
            return replace(config, vision=replace(vision, full_attention_blocks=(3,)))
        case "vision theta":
            return replace(config, vision=replace(vision, rope_theta=10100.0))
        case "text epsilon":
            return replace(config, text=replace(text, rms_norm_eps=1e-5))
        case "rope theta":
            return replace(config, text=replace(text, rope_theta=1.01e6))
        case "sections":
            return replace(config, mrope_section=(3, 3, 2))
        case "tokens a second":
            return replace(config, vision=replace(vision, tokens_per_second=4.0))
    return config


@pytest.mark.parametrize("fault", VISION_FAULTS)
def test_a_planted_fault_fails_the_vision_gate(
    untied: Pair, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[vision_input(RAGGED, 1)], [vision_input(WHOLE, 2)], [vision_input(LARGE, 3)]]
    batch = make_batch(untied.config, rows, [21])
    own = batch.rows[2][0]
    with torch.no_grad():
        out = untied.torch_model.model.visual(
            torch.from_numpy(own.patches), grid_thw=torch.tensor([own.grid])
        )
    expected = out.pooler_output.numpy()
    if fault == "tanh gelu":
        monkeypatch.setitem(layers.ACTIVATIONS, "gelu", layers.ACTIVATIONS["gelu_pytorch_tanh"])
    graph, state = untied.port(faulty(untied.config, fault))
    program = jax.jit(lambda s: nnx.merge(graph, s).encode_images(batch.patches, batch.tables))
    tokens = program(state)
    got = np.asarray(tokens.embeddings[2])[np.asarray(tokens.valid[2])]
    assert excess(fault, got / expected.std(), expected / expected.std()) > 10


@pytest.mark.deep
@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_a_planted_fault_fails_the_text_gate(untied: Pair, fault: str) -> None:
    config = faulty(untied.config, fault)
    batch = standard_batch(config, rng_seed=7)
    right = standard_batch(untied.config, rng_seed=7)
    visual = encode(*untied.port(), batch.patches, batch.tables)
    at = batch.places.positions
    if fault == "one axis":
        at = np.broadcast_to(np.arange(LENGTH, dtype=np.int32)[:, None], at.shape)
    in_tables = fault in ("one axis", "tokens a second")  # the program stays as it is
    port = untied.port(None if in_tables else config)
    got = answer(*port, visual, batch.ids, batch.index, batch.valid, at)
    expected = torch_logits(untied.torch_model, right.torch_inputs(2))
    assert excess(fault, np.asarray(got)[2, batch.valid[2]], expected) > 10
    assert batch.patches.shape[0] == PATCHES
