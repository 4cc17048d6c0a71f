"""What the headers of the weights say of a model, before anything is built from `config.json`."""

import re
from pathlib import Path

import numpy as np

from resprune_jax.errors import say_once
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.checkpoint.safetensors_files import (
    DTYPES,
    CheckpointError,
    TensorInfo,
    WeightFiles,
)

HEAD, TABLE = "lm_head.weight", "language_model.embed_tokens.weight"

_NUMBER = re.compile(r"\.(?:layers|blocks)\.(\d{1,9})\.")


def check_layers(files: WeightFiles, config: ModelConfig) -> None:
    """Refuse a configuration that counts more layers than the weights hold.

    Args:
        files: the checkpoint's weight files.
        config: its configuration.

    Raises:
        CheckpointError: too many layers, named with how many there are.
    """
    canonical = config.form.keys.canonical_key
    last = {"language_model": -1, config.form.vision: -1}
    for name in {tensor.key for tensor in files.tensors} | files.lost:
        key = canonical(name)
        part, number = key.split(".", 1)[0], _NUMBER.search(key)
        if part in last and number is not None:
            last[part] = max(last[part], int(number[1]))
    vision = getattr(config, "num_vision_blocks", config.vision.num_layers)
    problems = [
        f"config.json has a {what} of {wanted} layers, but the weights hold {last[part] + 1}: they "
        "belong to different models, or tensors are missing"
        for what, part, wanted in (
            ("language model", "language_model", config.text.num_layers),
            ("vision tower", config.form.vision, vision),
        )
        if -1 < last[part] < wanted - 1
    ]
    if problems:
        raise CheckpointError(files.directory, problems)


def has_own_head(files: WeightFiles, config: ModelConfig) -> bool:
    """Whether a checkpoint that ties its head to the embeddings has stored another head.

    That is how a head looks that was trained and merged while `config.json` was left as it was;
    what was trained is meant, so the stored one counts. It is said once.

    Args:
        files: the checkpoint's weight files.
        config: its configuration, which ties them.

    Raises:
        CheckpointError: the stored head has another shape, or cannot be read.
    """
    canonical = config.form.keys.canonical_key
    found = {canonical(tensor.key): tensor for tensor in files.tensors}
    head, table = found.get(HEAD), found.get(TABLE)
    if head is None or table is None or head.shape != table.shape or len(head.shape) != 2:
        return False
    if any(tensor.dtype not in DTYPES for tensor in (head, table)) or same(files, head, table):
        return False
    say_once(
        f"own head {files.directory}",
        f"{files.directory} ties its head to the embeddings (tie_word_embeddings), but has stored "
        "a head of its own that differs: the stored one is used",
    )
    return True


def same(files: WeightFiles, head: TensorInfo, table: TensorInfo) -> bool:
    """Whether two stored tensors of one shape (V, d) hold the same values."""
    rows = 2048
    for start in range(0, table.shape[0], rows):
        index = (slice(start, min(start + rows, table.shape[0])), slice(0, table.shape[1]))
        left, right = (files.read(tensor, index).astype(np.float32) for tensor in (head, table))
        if not np.array_equal(left, right):
            return False
    return True


def weights_in(folder: Path) -> WeightFiles | None:
    """The weight files of a folder; None where it holds none that can be read."""
    try:
        return WeightFiles(folder)
    except CheckpointError:
        return None
