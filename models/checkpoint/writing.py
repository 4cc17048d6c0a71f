"""Parameters to a Hugging Face checkpoint, without torch."""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.formats import CheckpointFormat, ModelConfig
from resprune_jax.models.checkpoint.names import Source, with_prefix
from resprune_jax.models.checkpoint.safetensors_files import (
    DTYPES,
    INDEX_FILE,
    SINGLE_FILE,
    TensorToWrite,
    write_file,
)

_STALE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def write_checkpoint(
    directory: str | Path,
    config: Mapping[str, Any],
    parsed: ModelConfig,
    parameters: nnx.State | nnx.Module,
    *,
    max_shard_bytes: int | None = None,
    dialect: str = "hub",
) -> Path:
    """Write a checkpoint in Hugging Face format: `config.json` and safetensors.

    Hugging Face's LLaVA models also hold the vision blocks behind the feature layer and the norm of
    the class token, which nothing reads; they are written as identities, so that transformers finds
    every tensor that it expects.

    Args:
        directory: made if missing; weight files of an earlier checkpoint in it are replaced.
        config: the `config.json` of the model; its dtype entry is set to the parameters'.
        parsed: the same as the family reads it.
        parameters: the model, or its state from `nnx.split`; arrays may be sharded.
        max_shard_bytes: split into files of at most this many bytes of tensors (a larger tensor has
            a file of its own) and write an index; None for one file.
        dialect: which names the keys get, one of the family's `DIALECTS` (`names.py`);
            "hub" are those of the published repositories.

    Returns:
        The directory.

    Raises:
        CallError: an unknown dialect, a shard size below 1, parameters without values or
            of another dtype than float, or another number of vision blocks than the configuration
            says.
    """
    form = parsed.form
    dialects = form.keys.DIALECTS
    if dialect not in dialects:
        raise CallError(f"dialect is {dialect!r}, expected one of {', '.join(dialects)}")
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise CallError(f"max_shard_bytes is {max_shard_bytes}, expected at least 1, or None")
    state = nnx.split(parameters)[1] if isinstance(parameters, nnx.Module) else parameters
    tensors = [
        tensor
        for path, leaf in nnx.to_flat_state(state)
        for tensor in _tensors(path, leaf.get_value(), form, parsed)
    ]
    tensors += form.keys.fillers(tensors, parsed)
    dtypes = sorted({tensor.dtype.name for tensor in tensors})
    prefixes = dialects[dialect]
    renamed = [
        TensorToWrite(with_prefix(t.key, prefixes), t.dtype, t.shape, t.make) for t in tensors
    ]
    renamed.sort(key=lambda tensor: tensor.key)

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = write_weights(directory, renamed, max_shard_bytes)
    content = {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        **{key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")},
    }
    if len(dtypes) == 1:
        content["dtype"] = dtypes[0]
    _write_json(directory / "config.json", content)
    for path in directory.iterdir():
        if _STALE.fullmatch(path.name) and path.name not in written:
            path.unlink()
    return directory


def _tensors(
    path: tuple[Any, ...], value: Any, form: CheckpointFormat, config: ModelConfig
) -> list[TensorToWrite]:
    """One parameter as a file stores it: a tensor, or one for each layer that was joined."""
    name = ".".join(map(str, path))
    if not isinstance(value, jax.Array | np.ndarray):
        raise CallError(f"parameter {name} has no value ({type(value).__name__}): load or make it")
    if value.dtype not in DTYPES.values():
        raise CallError(f"parameter {name} has dtype {value.dtype}, expected a float to save")
    tensors = []
    for source in form.keys.sources_of(path, value.shape):
        shape = source.stored_shape(config.vision.num_channels)
        make = partial(_stored, value, source, shape)
        tensors.append(TensorToWrite(source.key, np.dtype(value.dtype), shape, make))
    return tensors


def _stored(value: jax.Array | np.ndarray, source: Source, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(source.as_stored(value)).reshape(shape)


def _shards(tensors: list[TensorToWrite], most: int | None) -> list[list[TensorToWrite]]:
    """Cut the list into runs of at most `most` bytes, or of one tensor."""
    shards: list[list[TensorToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if most is not None and shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def write_weights(
    directory: Path, tensors: list[TensorToWrite], max_shard_bytes: int | None
) -> set[str]:
    """Write tensors as one file, or as several with their index.

    Args:
        directory: an existing folder.
        tensors: what to write, in this order; one at a time is in memory.
        max_shard_bytes: as in `write_checkpoint`.

    Returns:
        The names of the files written.
    """
    shards = _shards(tensors, max_shard_bytes)
    total = len(shards)
    names = [SINGLE_FILE]
    if total > 1:
        names = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    for name, shard in zip(names, shards, strict=True):
        # Under another name until it is whole: an interrupted run must not leave half a file behind
        # a right name.
        partial_path = directory / f"{name}.partial"
        write_file(partial_path, shard)
        partial_path.replace(directory / name)
    if len(shards) == 1:
        return set(names)
    size = sum(tensor.nbytes for tensor in tensors)
    places = {t.key: name for name, shard in zip(names, shards, strict=True) for t in shard}
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": places})
    return {*names, INDEX_FILE}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
