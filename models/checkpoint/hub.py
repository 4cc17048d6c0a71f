"""Checkpoint folders from local paths and Hugging Face Hub ids.

Of a Hub repository only what is read is fetched: configuration, tokenizer and processor files, and
the safetensors that the index names. Downloads go to the ordinary Hub cache (`HF_HOME`,
`HF_HUB_CACHE`) and `HF_HUB_OFFLINE=1` serves from it alone.
"""

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.models.checkpoint.download import fetch, nearest
from resprune_jax.models.checkpoint.files import cause, is_file
from resprune_jax.models.checkpoint.safetensors_files import (
    INDEX_FILE,
    SINGLE_FILE,
    read_weight_map,
)
from resprune_jax.models.checkpoint.shipped import SHIPPED, shipped

# Exact names: patterns such as *.json would also match copies in subfolders.
SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    INDEX_FILE,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What is fetched beside the weights, where the repository has it."""

_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")


def resolve_checkpoint(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    weights: bool = True,
    judge: Callable[[Path], object] | None = None,
) -> Path:
    """Return the local folder of a checkpoint, fetching it from the Hub if it must be.

    Args:
        path_or_id: "pocket" for the model that comes with the package (a folder of that name is
            reached as ./pocket); a local folder, which comes first, or a Hub id such as
            "llava-hf/llava-1.5-7b-hf".
        revision: branch, tag or commit of a Hub id; default its main branch.
        token: access token of a gated or private Hub id; default the one that is logged in.
        weights: False fetches the configurations of model and processor of a Hub id, no more.
        judge: called with the folder when all of it but the weights is there; what it raises
            spares the download of gigabytes that cannot be used.

    Returns:
        The folder.

    Raises:
        CallError: no such folder, no such Hub id or revision, a revision of a local folder.
        RunError: the Hub cannot be reached and the cache does not hold the checkpoint, access is
            refused, a download fails, or the repository has no safetensors.
    """
    if isinstance(path_or_id, str) and path_or_id in SHIPPED:
        path_or_id = shipped(path_or_id)
    text = str(path_or_id)
    if not text.strip():
        raise CallError("the model is empty: give a checkpoint folder or a Hugging Face Hub id")
    folder = _local(path_or_id, text, revision)
    if folder is not None:
        if judge is not None:
            judge(folder)
        return folder
    names = SMALL_FILES if weights else [name for name in SMALL_FILES if _of_models(name)]
    folder = fetch(text, revision, token, names)
    if judge is not None:
        judge(folder)
    return _with_weights(text, folder, token) if weights else folder


def _local(path_or_id: str | Path, text: str, revision: str | None) -> Path | None:
    """The local folder that is meant; None for a Hub id."""
    if "\0" in text:  # some versions of Python find that no such file exists, others raise
        raise CallError(f"the model {shown(text)} is no path that can be: it holds a NUL byte")
    try:
        path = Path(text).expanduser()
        found, folder = path.exists(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, an unknown ~user
        what = cause(error) if isinstance(error, OSError) else str(error)
        raise CallError(f"the model {shown(text)} is no path that can be: {what}") from error
    if folder:
        if revision is not None:
            raise CallError(
                f"revision {shown(revision)} was given, but {text} is a local folder: "
                "revisions belong to Hub ids"
            )
        return path
    if found:
        raise CallError(f"{text} is a file: give the checkpoint's folder")
    if isinstance(path_or_id, Path) or _looks_like_path(text):
        raise CallError(f"no such folder: {text}{nearest(path)}")
    return None


def _of_models(name: str) -> bool:
    """Whether a file describes the model or its processor, and not the tokenizer."""
    return name.endswith("config.json") and not name.startswith("tokenizer")


def _looks_like_path(text: str) -> bool:
    """Whether a string can only be meant as a path: a Hub id is one or two plain words."""
    if text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text:
        return True
    return text.count("/") > 1


def _with_weights(repo_id: str, folder: Path, token: str | None) -> Path:
    """The snapshot folder of a Hub id, its weights fetched too."""
    weights = _weight_files(folder)
    # The snapshot's name is its commit: the weights come from the same one, even when the branch
    # moves meanwhile.
    folder = fetch(repo_id, folder.name, token, weights, weights=True)
    absent = [name for name in ["config.json", *weights] if not is_file(folder / name)]
    if not absent:
        return folder
    names = ", ".join(absent)
    if constants.HF_HUB_OFFLINE:
        raise RunError(
            f"{repo_id} is only partly in the cache ({names} missing) and HF_HUB_OFFLINE is set: "
            "unset it once to download the rest"
        )
    if absent == [SINGLE_FILE]:
        raise RunError(
            f"{repo_id} has neither {SINGLE_FILE} nor {INDEX_FILE}, and only safetensors are read: "
            "convert it with transformers where torch is installed (from_pretrained, "
            "save_pretrained) and give the new folder"
        )
    raise RunError(f"{repo_id} at {folder.name} lacks {names}, or the Hub cannot be reached")


def _weight_files(folder: Path) -> list[str]:
    """Names of the weight files: those of the index if there is one."""
    if not is_file(folder / INDEX_FILE):
        return [SINGLE_FILE]
    names = set(read_weight_map(folder).values())
    # The loader reports odd names; here they must not act as patterns.
    return sorted(name for name in names if _SHARD_NAME.fullmatch(name))
