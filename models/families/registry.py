"""The supported model families: one row each."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint import config_file
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.checkpoint.survey import check_layers, has_own_head, weights_in
from resprune_jax.models.checkpoint.writing import write_checkpoint
from resprune_jax.models.families.base import Family
from resprune_jax.models.families.llava.family import LlavaFamily
from resprune_jax.models.families.llava_next.family import NextFamily
from resprune_jax.models.families.onevision.family import OneVisionFamily
from resprune_jax.models.families.qwen_vl.family import Qwen2Family, QwenFamily

FAMILIES: Mapping[str, type[Family]] = {
    family.config_class.form.model_type: family
    for family in (LlavaFamily, NextFamily, QwenFamily, OneVisionFamily, Qwen2Family)
}
"""By the `model_type` of `config.json`."""


def family_of_type(model_type: Any) -> type[Family]:
    """The family that a `config.json` names.

    Raises:
        CallError: another one, named with those that are supported.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        supported = ", ".join(repr(name) for name in FAMILIES)
        raise CallError(f"model type {shown(model_type)} is not supported; supported: {supported}")
    return FAMILIES[model_type]


def read_config(directory: str | Path) -> dict[str, Any]:
    """`checkpoint.config_file.read_config` for the families that there are."""
    return config_file.read_config(directory, tuple(FAMILIES))


def read_model_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The configuration of a checkpoint of any supported family.

    Args:
        hf: the parsed `config.json`.

    Raises:
        CallError: another family, or a setting that the port does not support.
    """
    config: ModelConfig = family_of_type(hf.get("model_type", "llava")).config_class.from_hf(hf)
    return config


def checkpoint_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """The configuration of a checkpoint folder, compared with its weights where they are there.

    Args:
        folder: the checkpoint's folder; the headers of its weights are read, nothing more.

    Returns:
        (the parsed `config.json`, the configuration). A head that is stored beside tied embeddings
        and differs from them is the model's own.

    Raises:
        CallError: what `read_config` and `read_model_config` refuse.
        CheckpointError: files that are broken, or that do not fit the configuration.
    """
    raw = read_config(folder)
    config = read_model_config(raw)
    files = weights_in(folder)
    if files is not None:
        check_layers(files, config)
        tied = getattr(config, "tie_word_embeddings", False)
        if tied and has_own_head(files, config):
            config = dataclasses.replace(config, tie_word_embeddings=False)  # type: ignore[type-var]
    return raw, config


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
