"""The supported model families: one row each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.checkpoint.safetensors_files import CheckpointError
from resprune_jax.models.checkpoint.writing import write_checkpoint
from resprune_jax.models.families.base import Family
from resprune_jax.models.families.llava.family import LlavaFamily
from resprune_jax.models.families.llava_next.family import NextFamily
from resprune_jax.models.families.qwen_vl.family import QwenFamily

FAMILIES: Mapping[str, type[Family]] = {
    family.config_class.form.model_type: family for family in (LlavaFamily, NextFamily, QwenFamily)
}
"""By the `model_type` of `config.json`."""


def family_of_type(model_type: Any) -> type[Family]:
    """The family that a `config.json` names.

    Raises:
        CallError: another one, named with those that are supported.
    """
    if model_type not in FAMILIES:
        supported = ", ".join(repr(name) for name in FAMILIES)
        raise CallError(f"model type {model_type!r} is not supported; supported: {supported}")
    return FAMILIES[model_type]


def read_config(directory: str | Path) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint folder.

    Args:
        directory: the folder.

    Returns:
        The parsed file.

    Raises:
        CallError: there is no such folder, or its model type or quantisation is not supported.
        CheckpointError: the folder has no `config.json`, or a broken one.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "a file, not a folder" if directory.exists() else "not there"
        raise CallError(f"checkpoint folder {directory} is {what}: give a folder with config.json")
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(directory, ["it has no config.json: is this a checkpoint folder?"])
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(directory, [f"config.json is not readable JSON ({error})"]) from error
    if not isinstance(config, dict):
        raise CheckpointError(directory, ["config.json is not a JSON object"])
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise CallError(
            f"checkpoint {directory} has model_type {kind!r}, which is not supported; supported: "
            + ", ".join(FAMILIES)
        )
    if config.get("quantization_config"):
        raise CallError(
            f"checkpoint {directory} is quantised (config.json has quantization_config), which is "
            "not supported: use the original float weights"
        )
    return config


def read_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint of any supported family.

    Args:
        hf: the parsed `config.json`.

    Raises:
        CallError: another family, or a setting that the port does not support.
    """
    config: ModelConfig = family_of_type(hf.get("model_type", "llava")).config_class.from_hf(hf)
    return config


def family_class(config: ModelConfig) -> type[Family]:
    """The family of a configuration."""
    return next(family for family in FAMILIES.values() if type(config) is family.config_class)


def make_family(config: ModelConfig, folder: Path) -> Family:
    """The host's half of a model, its processor loaded from the checkpoint's folder."""
    return family_class(config)(config, folder)


def module_class(config: ModelConfig) -> type[Any]:
    """The module of a configuration's family."""
    return family_class(config).module_class


def save_checkpoint(
    directory: str | Path,
    config: Mapping[str, Any],
    parameters: nnx.State | nnx.Module,
    *,
    max_shard_bytes: int | None = None,
    dialect: str = "hub",
) -> Path:
    """`checkpoint.writing.write_checkpoint` for the family that `config` names.

    Args:
        directory: made if missing; weight files of an earlier checkpoint in it are replaced.
        config: the `config.json` of the model; without a `model_type`, LLaVA-1.5's.
        parameters: the model, or its state from `nnx.split`.
        max_shard_bytes: split into files of at most this many bytes of tensors; None for one file.
        dialect: which names the keys get; "hub" are those of the published repositories.

    Returns:
        The directory.

    Raises:
        CallError: an unknown family, or what `write_checkpoint` refuses.
    """
    return write_checkpoint(
        directory, config, read_model_config(config), parameters,
        max_shard_bytes=max_shard_bytes, dialect=dialect,
    )  # fmt: skip
