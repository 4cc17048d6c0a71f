"""The LLaVA-1.5 port against transformers (torch, float32, CPU) on small random checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from resprune_jax.models.decoder import attention
from resprune_jax.models.decoder.rope import inverse_frequencies
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.running.programs import assemble
from tests.checkpoints.joined import LAYERS, joined
from tests.checkpoints.llava import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    NUM_VISUAL_TOKENS,
    canonical_key,
    reference_model,
    tiny_llava,
)


@pytest.fixture(autouse=True)
def highest_precision() -> Iterator[None]:
    """Products in full float32 on every backend."""
    with jax.default_matmul_precision("highest"):
        yield


@dataclass(frozen=True)
class Pair:
    """A torch model and the same weights for the port."""

    torch_model: Any
    config: LlavaConfig

    def port(self, config: LlavaConfig | None = None) -> tuple[Any, nnx.State]:
        """(graph, state) of the port, under another configuration if one is given."""
        config = self.config if config is None else config
        abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))
        graph, shapes = nnx.split(abstract)
        source = {canonical_key(k): v.numpy() for k, v in self.torch_model.state_dict().items()}
        flat = nnx.to_flat_state(shapes)
        filled = [(path, leaf.replace(weight(source, path, leaf.shape))) for path, leaf in flat]
        return graph, nnx.from_flat_state(filled)


def weight(source: dict[str, np.ndarray], path: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """The torch tensor of one parameter path, in the port's layout."""
    *front, last = map(str, path)
    if front and front[-1] in LAYERS:
        return jnp.asarray(joined(source, path, shape))
    torch_name = {"kernel": "weight", "embedding": "weight", "scale": "weight"}.get(last, last)
    value = source[".".join([*front, torch_name])]
    if last == "kernel":
        value = value.reshape(value.shape[0], -1).T
    assert value.shape == shape, path
    return jnp.asarray(value)


PAIRS: dict[str, Pair] = {}


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The variant a test asks for, made once a run."""
    variant = getattr(request, "param", "llama")
    if variant not in PAIRS:
        directory: Path = tiny_llava(tmp_path_factory.mktemp(variant), variant=variant)
        reference = reference_model(directory)
        PAIRS[variant] = Pair(reference, LlavaConfig.from_hf(reference.config.to_dict()))
    return PAIRS[variant]


def prompts(lengths: list[int], rng_seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded (ids, valid) with one image a row behind a few words, and the pixels."""
    rng = np.random.default_rng(rng_seed)
    ids = np.full((len(lengths), max(lengths)), 3, np.int32)
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    for row, length in enumerate(lengths):
        text = rng.integers(5, 380, length - NUM_VISUAL_TOKENS)
        at = 1 + row
        ids[row, :length] = np.insert(text, at, [IMAGE_TOKEN_ID] * NUM_VISUAL_TOKENS)
    pixels = rng.normal(size=(len(lengths), 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    return ids, valid, pixels


@torch.no_grad()
def reference_logits(model: Any, ids: np.ndarray, valid: np.ndarray, pixels: np.ndarray) -> Any:
    """(B, S, V) of the torch model."""
    out = model(
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.from_numpy(valid).long(),
        pixel_values=torch.from_numpy(pixels),
    )
    return out.logits.numpy()


@partial(jax.jit, static_argnums=0)
def encode(graph: Any, state: Any, pixels: jax.Array) -> Any:
    """VisualTokens with all optional parts."""
    model, needs = nnx.merge(graph, state), frozenset({"features"})
    return model.encode_images(pixels, saliency=True, needs=needs)


def inputs(graph: Any, state: Any, ids: jax.Array, pixels: jax.Array) -> jax.Array:
    """Input embeddings with the visual tokens in place."""
    model = nnx.merge(graph, state)
    visual = model.encode_images(pixels)
    placeholder = ids == IMAGE_TOKEN_ID
    index = jnp.where(placeholder, jnp.cumsum(placeholder, axis=1) - 1, -1)
    x, *_ = assemble(
        model, ids, index, jnp.ones(ids.shape, bool), visual.embeddings, visual.valid, None,
        length=ids.shape[1], positions="reindex",
    )  # fmt: skip
    return x


def logits_of(
    graph: Any, state: Any, ids: jax.Array, valid: jax.Array, pixels: jax.Array
) -> jax.Array:
    """(B, S, V) of the port, from pixels to logits in one program."""
    model = nnx.merge(graph, state)
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    x = inputs(graph, state, ids, pixels)
    return model.project_logits(model.forward(x, positions, valid))


port_logits = jax.jit(logits_of, static_argnums=0)


def excess(name: str, got: Any, expected: np.ndarray) -> float:
    """max|d| over the bound 1e-5 * max(1, std(reference)): at most 1 passes."""
    error = float(np.abs(np.asarray(got) - expected).max())
    bound = 1e-5 * max(1.0, float(expected.std()))
    print(f"{name}: max|d| {error:.2e}, std {expected.std():.2f}, {error / bound:.2f} of the bound")
    return error / bound


@pytest.mark.parametrize("pair", ["llama", "mistral"], indirect=True)
def test_vision_tower_projector_and_cls_row(pair: Pair) -> None:
    _, _, pixels = prompts([20, 20])
    with torch.no_grad():
        tower = pair.torch_model.model.vision_tower(
            torch.from_numpy(pixels), output_hidden_states=True, output_attentions=True
        )
        image = pair.torch_model.model.get_image_features(pixel_values=torch.from_numpy(pixels))
    projected = torch.stack(list(image.pooler_output)).numpy()
    features = tower.hidden_states[-2][:, 1:].numpy()
    row = tower.attentions[-2].mean(1)[:, 0, 1:].numpy()
    wrong_row = tower.attentions[-1].mean(1)[:, 0, 1:].numpy()

    tokens = encode(*pair.port(), pixels)
    assert tokens.embeddings.shape == projected.shape == (2, NUM_VISUAL_TOKENS, 64)
    assert excess("features", tokens.features, features) <= 1
    scale = projected.std()  # far below 1 here
    assert excess("projector", tokens.embeddings / scale, projected / scale) <= 1
    error = float(np.abs(tokens.saliency - row).max())
    apart = float(np.abs(wrong_row - row).max())
    print(f"CLS row: max|d| {error:.1e}; the next block's row is {apart:.1e} away")
    assert error <= 1e-6 < apart


@pytest.mark.parametrize("pair", ["llama", "mistral", "tied"], indirect=True)
def test_logits_of_a_single_prompt(pair: Pair) -> None:
    batch = prompts([40], rng_seed=1)
    expected = reference_logits(pair.torch_model, *batch)
    ids, valid, pixels = batch
    got = port_logits(*pair.port(), ids, valid, pixels)
    assert excess("single prompt", got, expected) <= 1
    assert np.array_equal(got.argmax(-1), expected.argmax(-1))
    assert 0.5 < expected.std() < 2


@pytest.mark.deep
@pytest.mark.parametrize("engine", ["xla", "blockwise"])
@pytest.mark.parametrize("pair", ["llama", "mistral"], indirect=True)
def test_logits_of_a_long_prompt(pair: Pair, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, valid, pixels = prompts([560], rng_seed=2)
    expected = reference_logits(pair.torch_model, ids, valid, pixels)
    graph, state = pair.port()
    if engine == "blockwise":
        monkeypatch.setattr(attention, "BLOCKWISE_ABOVE", 0)
        monkeypatch.setattr(attention, "BLOCK", 128)
    # A program of its own: the thresholds are read while it is traced.
    got = jax.jit(lambda *arrays: logits_of(graph, *arrays))(state, ids, valid, pixels)
    assert excess(f"{ids.shape[1]} tokens, {engine}", got, expected) <= 1
    assert np.array_equal(got.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("pair", ["llama", "mistral"], indirect=True)
def test_logits_of_a_ragged_batch(pair: Pair) -> None:
    ids, valid, pixels = prompts([47, 22, 33], rng_seed=3)
    expected = reference_logits(pair.torch_model, ids, valid, pixels)[valid]
    got = np.asarray(port_logits(*pair.port(), ids, valid, pixels))
    assert np.isfinite(got).all()
    assert excess("ragged batch, valid rows", got[valid], expected) <= 1


@pytest.mark.parametrize("pair", ["mistral"], indirect=True)
def test_cached_decode_of_a_ragged_batch(pair: Pair) -> None:
    lengths, steps = [47, 22, 33], 8
    ids, valid, pixels = prompts(lengths, rng_seed=4)
    new = np.random.default_rng(5).integers(5, 380, (3, steps)).astype(np.int32)
    graph, state = pair.port()
    x = jax.jit(inputs, static_argnums=0)(graph, state, ids, pixels)
    size = ids.shape[1]
    positions = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), ids.shape)

    @jax.jit
    def prefill(state: Any, x: jax.Array) -> Any:
        return nnx.merge(graph, state).prefill(x, positions, valid, size + steps)[1]

    @partial(jax.jit, donate_argnums=1)
    def step(state: Any, cache: Any, token: jax.Array, place: jax.Array, slot: jax.Array) -> Any:
        model = nnx.merge(graph, state)
        hidden, cache = model.decode_step(model.embed(token[:, None]), place[:, None], slot, cache)
        return model.project_logits(hidden[:, 0]), cache

    cache, rows = prefill(state, x), []
    for at in range(steps):
        place = jnp.array(lengths, jnp.int32) + at
        logits, cache = step(state, cache, new[:, at], place, jnp.int32(size + at))
        rows.append(np.asarray(logits))
    got = np.stack(rows, axis=1)  # [B, steps, V]

    for row, length in enumerate(lengths):
        alone = np.concatenate([ids[row, :length], new[row]])[None]
        expected = reference_logits(
            pair.torch_model, alone, np.ones_like(alone, bool), pixels[row : row + 1]
        )[0, length:]
        assert excess(f"row of {length} tokens, decoded", got[row], expected) <= 1


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_dim", [16, 128])
def test_rotary_frequencies_are_torch_s(theta: float, head_dim: int) -> None:
    expected = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    got = inverse_frequencies(head_dim, theta)
    different = int((got != expected.numpy()).sum())
    print(f"theta {theta:.0e}, {head_dim}: {different} of {head_dim // 2} differ")
    np.testing.assert_allclose(got, expected.numpy(), rtol=1.2e-7)
    assert different <= head_dim // 64


def faulty(config: LlavaConfig, fault: str) -> LlavaConfig:
    """The configuration with one mistake in it."""
    vision, text = config.vision, config.text
    match fault:
        case "vision epsilon":
            return replace(config, vision=replace(vision, layer_norm_eps=1e-6))
        case "text epsilon":
            return replace(config, text=replace(text, rms_norm_eps=1e-6))
        case "rope theta":
            return replace(config, text=replace(text, rope_theta=10100.0))
        case "tanh gelu in the projector":
            return replace(config, projector_act="gelu_pytorch_tanh")
        case "plain gelu in the vision tower":
            return replace(config, vision=replace(vision, hidden_act="gelu"))
        case "last vision block":
            return replace(config, num_vision_blocks=config.num_vision_blocks + 1)
    raise ValueError(fault)


@pytest.mark.deep
@pytest.mark.parametrize(
    "fault",
    [
        "vision epsilon",
        "text epsilon",
        "rope theta",
        "tanh gelu in the projector",
        "plain gelu in the vision tower",
        "last vision block",
    ],
)
def test_a_planted_fault_fails_the_gate(pair: Pair, fault: str) -> None:
    ids, valid, pixels = prompts([40], rng_seed=1)
    expected = reference_logits(pair.torch_model, ids, valid, pixels)
    got = port_logits(*pair.port(faulty(pair.config, fault)), ids, valid, pixels)
    assert excess(fault, got, expected) > 10
