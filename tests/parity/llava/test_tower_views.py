"""What the CLIP tower shows to pruning methods, against hooks in transformers' (torch, float32)."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from resprune_jax.methods import PromptContext, get_method
from resprune_jax.methods.inputs import SHOWN
from resprune_jax.models.families.llava_next.images import stack_tiles
from tests.methods.oracles.encoder.schedule import schedule
from tests.methods.oracles.encoder.tome import tome
from tests.parity.llava.next_pairs import SIZES, pair, tiled
from tests.parity.llava.test_llava_modules import Pair, prompts
from tests.parity.llava.test_llava_modules import pair as llava

__all__ = ["llava"]
NEEDS = SHOWN - {"saliency"}


@pytest.fixture(autouse=True)
def highest_precision() -> Any:
    """Products in full float32 on every backend."""
    with jax.default_matmul_precision("highest"):
        yield


@partial(jax.jit, static_argnums=0)
def look(graph: Any, state: Any, *arrays: Any) -> Any:
    return nnx.merge(graph, state).encode_images(*arrays, saliency=True, needs=NEEDS)


def expected(model: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Of every patch (T, P, ...), from the whole run of the torch tower."""
    tower, caught = model.model.vision_tower, {}
    *_, feeding, behind = next(
        module for name, module in tower.named_modules() if name.endswith("encoder.layers")
    )

    def keep(name: str) -> Any:
        return lambda module, given, made: caught.update({name: made.numpy()})

    hooks = [
        getattr(behind.self_attn, f"{part}_proj").register_forward_hook(keep(part)) for part in "qk"
    ]
    with torch.no_grad():
        made = tower(torch.from_numpy(pixels), output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    logits = np.einsum("tv,tnv->tn", caught["q"][:, 0], caught["k"]) / caught["q"].shape[-1] ** 0.5
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    own = made.hidden_states[-2].numpy()
    with torch.no_grad():
        heads = feeding.self_attn.k_proj(feeding.layer_norm1(made.hidden_states[-3])).numpy()
    heads = heads.reshape(*heads.shape[:2], feeding.self_attn.num_heads, -1).mean(axis=2)
    return {
        "early_saliency": made.attentions[0].mean(1)[:, 0, 1:].numpy(),
        "next_saliency": (powers / powers.sum(axis=1, keepdims=True))[:, 1:],
        "next_keys": caught["k"][:, 1:],
        "encoder_keys": heads[:, 1:],
        "received": made.attentions[-2].mean(dim=(1, 2))[:, 1:].numpy(),
        "entering": made.hidden_states[0][:, 1:].numpy(),
        "class_entering": np.repeat(made.hidden_states[0][:, :1].numpy(), own.shape[1] - 1, axis=1),
        "class_features": np.repeat(own[:, :1], own.shape[1] - 1, axis=1),
    }


def close(name: str, got: Any, wanted: np.ndarray) -> None:
    error, scale = float(np.abs(np.asarray(got) - wanted).max()), max(1.0, float(wanted.std()))
    print(f"{name}: max|d| {error:.1e} of values up to {np.abs(wanted).max():.2g}")
    assert error <= 1e-5 * scale


def test_what_llavas_tower_shows(llava: Pair) -> None:
    _, _, pixels = prompts([20, 20])
    tokens = look(*llava.port(), pixels)
    wanted = expected(llava.torch_model, pixels)
    assert wanted.keys() == NEEDS
    for name, values in wanted.items():
        close(name, getattr(tokens, name), values)
    # The attention of another block would be seen.
    for name in ("early_saliency", "next_saliency", "received"):
        assert np.abs(wanted[name] - np.asarray(tokens.saliency)).max() > 1e-4


def test_tokens_merge_inside_llavas_tower(llava: Pair) -> None:
    """ToMe's oracle on the torch blocks gives the rows that the port's blocks give."""
    keeps = [16, 9, 5, 2]
    _, _, pixels = prompts([20] * 4)
    graph, state = llava.port()
    method, nothing = get_method("tome"), PromptContext(jnp.zeros((4, 1, 1)), jnp.zeros((4, 1)) > 0)

    @jax.jit
    def run(state: Any, pixels: Any) -> Any:
        model = nnx.merge(graph, state)
        visual = model.encode_images(pixels, needs=method.needs)
        visual = replace(visual, blocks=model.vision_blocks)
        return method.select(visual, nothing, 16, limit=jnp.asarray(keeps))

    made = run(state, pixels)
    tower = llava.torch_model.model.vision_tower
    blocks = next(m for name, m in tower.named_modules() if name.endswith("encoder.layers"))
    with torch.no_grad():
        entering = tower(torch.from_numpy(pixels), output_hidden_states=True).hidden_states[0]

    def attention(layer: int, x: np.ndarray, bias: list[float]) -> tuple[np.ndarray, np.ndarray]:
        own = blocks[layer].self_attn
        normed = blocks[layer].layer_norm1(torch.from_numpy(x).float())
        q, k, v = (
            part(normed).reshape(len(x), own.num_heads, -1)
            for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        scores = torch.einsum("shd,thd->hst", q, k) * q.shape[-1] ** -0.5 + torch.tensor(bias)
        mixed = torch.einsum("hst,thd->shd", scores.softmax(-1), v).reshape(len(x), -1)
        return own.out_proj(mixed).numpy(), k.numpy()

    def mlp(layer: int, x: np.ndarray) -> np.ndarray:
        return blocks[layer].mlp(blocks[layer].layer_norm2(torch.from_numpy(x).float())).numpy()

    running = len(blocks) - 1
    for row, keep in enumerate(keeps):
        counts = schedule(tokens=16, keep=keep, layers=running)
        with torch.no_grad():
            wanted = tome(tokens=entering[row].numpy(), counts=counts, attention=attention, mlp=mlp)
        assert made.indices[row, :keep].tolist() == wanted.indices
        assert made.count[row] == keep and wanted.merged is not None
        close(f"{keep} of 16, {counts}", made.rows[row, :keep], wanted.merged)


def test_what_nexts_tower_shows_of_every_tile() -> None:
    models = pair("vicuna")
    images = tiled(models, SIZES)
    pixels, tables = stack_tiles(images, models.config)
    tokens = look(*models.port(), pixels, tables)
    wanted = expected(models.torch_model, pixels.reshape(-1, *pixels.shape[2:]))
    index = np.asarray(tables.index)
    for name, values in wanted.items():
        rows = values.reshape(len(images), -1, *values.shape[2:])
        packed = np.stack([row[np.maximum(at, 0)] for row, at in zip(rows, index, strict=True)])
        packed[index < 0] = 0
        close(name, getattr(tokens, name), packed)
