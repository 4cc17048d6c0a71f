"""What the tests of checkpoints share: loading, comparing, and copies with changed tensors."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from resprune_jax.models.checkpoint.reading import load_parameters
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.registry import read_config

Tensors = dict[str, np.ndarray]
NORM = "language_model.model.norm.weight"
QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"
TABLE = "language_model.model.embed_tokens.weight"


@functools.cache
def shapes(config: LlavaConfig, dtype: np.dtype) -> Llava:
    return nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=dtype))


def abstract(directory: Path, dtype: Any = jnp.float32) -> Llava:
    return shapes(LlavaConfig.from_hf(read_config(directory)), jnp.dtype(dtype))


def load(directory: Path, dtype: Any = jnp.float32) -> nnx.State:
    return load_parameters(directory, abstract(directory, dtype), dtype=dtype)


def flat(state: nnx.State) -> dict[tuple[Any, ...], np.ndarray]:
    return {tuple(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def edit(checkpoint: Path, folder: Path, change: Callable[[Tensors], None]) -> Path:
    """Copy a checkpoint's configuration and weights, its tensors changed by a function."""
    folder.mkdir()
    shutil.copy(checkpoint / "config.json", folder)
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
