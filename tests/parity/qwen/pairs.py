"""A small Qwen2.5-VL in torch and in the port, and the prompts that the parity tests share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from safetensors import safe_open

from resprune_jax.methods import VisualTokens
from resprune_jax.models.decoder.mrope import Grid, RopeIndex, rope_index, token_kinds
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig
from resprune_jax.models.families.qwen_vl.images import VisionInput, pack
from resprune_jax.models.families.qwen_vl.module import Qwen25VL
from resprune_jax.models.families.qwen_vl.names import canonical_key, sources_of
from resprune_jax.models.families.registry import module_class, read_model_config
from resprune_jax.models.towers.qwen_vision.tables import VisionTables
from tests.checkpoints.qwen_vl import (
    IMAGE_TOKEN_ID,
    PAD_ID,
    VIDEO_TOKEN_ID,
    VISION_END_ID,
    VISION_START_ID,
    reference_model,
    tiny_qwen,
)

# The static shape of most tests: patches, rows, visual tokens a row, prompt tokens.
PATCHES, ROWS, TOKENS, LENGTH = 512, 3, 96, 160

# Windows cut on the right, below and on both sides; whole windows only; a strip; three frames.
RAGGED, WHOLE, STRIP, LARGE = (1, 6, 10), (1, 8, 8), (1, 2, 22), (1, 14, 18)
VIDEO = (3, 6, 4)


@dataclass(frozen=True)
class Pair:
    """A torch model and the same weights for the port."""

    torch_model: Any
    config: Qwen25VLConfig
    directory: Path

    def port(self, config: Qwen25VLConfig | None = None) -> tuple[Any, nnx.State]:
        """(graph, state) of the port, under another configuration if one is given."""
        return read_port(self.directory, self.config if config is None else config)


@lru_cache(maxsize=3)
def pair(variant: str) -> Pair:
    """One of `qwen_vl.VARIANTS`, made once a run."""
    directory = tiny_qwen(Path(mkdtemp()), variant=variant)
    reference = reference_model(directory)
    config: Any = read_model_config(reference.config.to_dict())
    return Pair(reference, config, directory)


def read_port(directory: Path, config: Qwen25VLConfig) -> tuple[Any, nnx.State]:
    """The port with a folder's weights, read by the rules of `checkpoint_keys_qwen`."""
    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0)))
    graph, shapes = nnx.split(abstract)
    with safe_open(directory / "model.safetensors", "np") as file:
        tensors = {canonical_key(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    filled = []
    for path, leaf in nnx.to_flat_state(shapes):
        parts = []
        for source in sources_of(path, leaf.shape):
            value = tensors.pop(source.key)
            assert source.fits(value.shape), (source, value.shape)
            assert source.stored_shape(3) == value.shape
            if source.layout in ("transpose", "patches"):
                value = value.reshape(len(value), -1).T
            parts.append(value.reshape(source.shape))
        value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        filled.append((path, leaf.replace(jnp.asarray(value))))
    assert not tensors, f"not used: {sorted(tensors)}"
    return graph, nnx.from_flat_state(filled)


@dataclass(frozen=True)
class Batch:
    """Prompts with their packed pictures, right padded, for both sides."""

    ids: np.ndarray  # [B, S]
    valid: np.ndarray  # [B, S]
    index: np.ndarray  # [B, S] which visual token of the row stands here, -1 for text
    rows: list[list[VisionInput]]
    patches: np.ndarray
    tables: VisionTables
    places: RopeIndex

    def torch_inputs(self, row: int) -> dict[str, torch.Tensor]:
        """One row as the torch model takes it, without padding."""
        ids = torch.from_numpy(self.ids[row, self.valid[row]]).long()[None]
        inputs: dict[str, torch.Tensor] = {
            "input_ids": ids,
            "mm_token_type_ids": torch.from_numpy(kinds(ids.numpy())).int(),
        }
        for name, grid_name, video in (
            ("pixel_values", "image_grid_thw", False),
            ("pixel_values_videos", "video_grid_thw", True),
        ):
            own = [each for each in self.rows[row] if (each.seconds is not None) == video]
            if own:
                pixels = np.concatenate([each.patches for each in own])
                inputs[name] = torch.from_numpy(pixels)
                inputs[grid_name] = torch.tensor([each.grid for each in own])
                if video:
                    inputs["second_per_grid_ts"] = torch.tensor([each.seconds for each in own])
        return inputs


def kinds(ids: np.ndarray) -> np.ndarray:
    """`token_kinds` of the fixtures' ids."""
    return token_kinds(ids, IMAGE_TOKEN_ID, VIDEO_TOKEN_ID)


def vision_input(
    grid: tuple[int, int, int], rng_seed: int, seconds: float | None = None
) -> VisionInput:
    """Patches of noise; the frames of a picture are alike, as the processor makes them."""
    frames, rows, columns = grid
    rng = np.random.default_rng(rng_seed)
    noise = rng.normal(size=(frames * rows * columns, 3, 2, 196)).astype(np.float32)
    if seconds is None:
        noise[:, :, 1] = noise[:, :, 0]
    return VisionInput(noise.reshape(len(noise), -1), grid, seconds)


def make_batch(
    config: Qwen25VLConfig,
    rows: Sequence[Sequence[VisionInput]],
    texts: Sequence[int],
    *,
    rng_seed: int = 0,
    length: int = LENGTH,
    patches: int = PATCHES,
) -> Batch:
    """Prompts of so many words with their pictures in between, in the static shapes above."""
    rng = np.random.default_rng(rng_seed)
    ids = np.full((ROWS, length), PAD_ID, np.int32)
    valid = np.zeros(ids.shape, bool)
    index = np.full(ids.shape, -1, np.int32)
    grids: list[list[Grid]] = []
    inputs: list[VisionInput] = []
    numbers: list[list[int]] = []
    for row in range(ROWS):
        own = rows[row % len(rows)]
        words = rng.integers(7, 380, texts[row % len(texts)])
        pieces, count = [words[:4]], 0
        for each in own:
            holder = IMAGE_TOKEN_ID if each.seconds is None else VIDEO_TOKEN_ID
            tokens = each.cells(config.vision).num_tokens
            pieces += [[VISION_START_ID], [holder] * tokens, [VISION_END_ID]]
            count += tokens
        prompt = np.concatenate([*pieces, words[4:]]).astype(np.int32)
        ids[row, : len(prompt)], valid[row, : len(prompt)] = prompt, True
        visual = kinds(prompt) > 0
        index[row, : len(prompt)][visual] = np.arange(count)
        grids.append([each.cells(config.vision) for each in own])
        numbers.append(list(range(len(inputs), len(inputs) + len(own))))
        inputs += own
    packed, tables = pack(
        inputs, config.vision, rows=numbers, patches=patches, tokens=TOKENS, batch=ROWS
    )
    places = rope_index(kinds(ids), valid, grids, config.vision.tokens_per_second, runs=2)
    return Batch(ids, valid, index, [list(r) for r in rows], packed, tables, places)


def standard_batch(config: Qwen25VLConfig, rng_seed: int = 0) -> Batch:
    """One picture; two pictures; a video of three groups of frames and a picture."""
    rows = [
        [vision_input(RAGGED, rng_seed)],
        [vision_input(WHOLE, rng_seed + 1), vision_input(STRIP, rng_seed + 2)],
        [vision_input(VIDEO, rng_seed + 3, 1.5), vision_input(LARGE, rng_seed + 4)],
    ]
    return make_batch(config, rows, [21, 40, 13], rng_seed=rng_seed)


def embed_prompts(
    model: Qwen25VL, ids: Any, index: Any, valid: Any, visual: VisualTokens
) -> jax.Array:
    """Input embeddings with the visual tokens in place."""
    chosen = jnp.take_along_axis(visual.embeddings, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], chosen, model.embed(ids))


def excess(name: str, got: Any, expected: np.ndarray) -> float:
    """max|d| over the bound 1e-5 * max(1, std(reference)): at most 1 passes."""
    error = float(np.abs(np.asarray(got) - expected).max())
    bound = 1e-5 * max(1.0, float(expected.std()))
    print(f"{name}: max|d| {error:.2e}, std {expected.std():.2f}, {error / bound:.2f} of the bound")
    return error / bound
