"""Checkpoint folders from local paths and Hugging Face Hub ids.

Of a Hub repository only what is read is fetched: configuration, tokenizer and processor files, and
the safetensors that the index names. Downloads go to the ordinary Hub cache (`HF_HOME`,
`HF_HUB_CACHE`) and `HF_HUB_OFFLINE=1` serves from it alone.
"""

import difflib
import json
import re
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint.safetensors_files import INDEX_FILE, SINGLE_FILE

# Exact names: patterns such as *.json would also match copies in subfolders.
SMALL_FILES = (
    "config.json",
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
) -> Path:
    """Return the local folder of a checkpoint, fetching it from the Hub if it must be.

    Args:
        path_or_id: a local folder, which comes first, or a Hub id such as
            "llava-hf/llava-1.5-7b-hf".
        revision: branch, tag or commit of a Hub id; default its main branch.
        token: access token of a gated or private Hub id; default the one that is logged in.
        weights: False fetches the configurations of model and processor of a Hub id, no more.

    Returns:
        The folder.

    Raises:
        CallError: no such folder, no such Hub id or revision, a revision of a local folder.
        RunError: the Hub cannot be reached and the cache does not hold the checkpoint, access is
            refused, a download fails, or the repository has no safetensors.
    """
    text = str(path_or_id)
    if not text.strip():
        raise CallError("the model is empty: give a checkpoint folder or a Hugging Face Hub id")
    path = _expanded(text)
    if _is_dir(path):
        if revision is not None:
            raise CallError(
                f"revision {revision!r} was given, but {text} is a local folder: "
                "revisions belong to Hub ids"
            )
        return path
    if path.exists():
        raise CallError(f"{text} is a file: give the checkpoint's folder")
    if isinstance(path_or_id, Path) or _looks_like_path(text):
        raise CallError(f"no such folder: {text}{_nearest(path)}")
    if not weights:
        names = [name for name in SMALL_FILES if name.endswith("config.json")]
        return _fetch(text, revision, token, [n for n in names if not n.startswith("tokenizer")])
    return _from_hub(text, revision, token)


def _expanded(text: str) -> Path:
    """The path that a text names, its ~ replaced.

    Raises:
        CallError: the home of a user that there is not.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise CallError(f"no such folder: {text} ({error})") from error


def _is_dir(path: Path) -> bool:
    """Whether a folder lies there.

    Raises:
        CallError: a path that no file can have, or one that may not be entered.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise CallError(f"{path} cannot be used: {error.strerror}") from error


def _looks_like_path(text: str) -> bool:
    """Whether a string can only be meant as a path: a Hub id is one or two plain words."""
    if text.startswith((".", "/", "~")) or text.endswith("/") or "\\" in text:
        return True
    return text.count("/") > 1


def _nearest(path: Path) -> str:
    """A hint at a folder beside `path` with a similar name."""
    try:
        folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f" (is it {path.parent / near[0]}?)" if near else ""


def _from_hub(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The snapshot folder of a Hub id, with all that is needed in it."""
    folder = _fetch(repo_id, revision, token, list(SMALL_FILES))
    weights = _weight_files(folder)
    # The snapshot's name is its commit: the weights come from the same one, even when the branch
    # moves meanwhile.
    folder = _fetch(repo_id, folder.name, token, weights)
    absent = [name for name in ["config.json", *weights] if not (folder / name).is_file()]
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
    index = folder / INDEX_FILE
    if not index.is_file():
        return [SINGLE_FILE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        # The loader reports odd names; here they must not act as patterns.
        return sorted(name for name in names if _SHARD_NAME.fullmatch(name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{INDEX_FILE} in {folder} is broken ({error}): delete the folder and download again"
        ) from error


def _fetch(repo_id: str, revision: str | None, token: str | None, names: list[str]) -> Path:
    """Bring the named files of a repository into the cache; returns the snapshot's folder."""
    at = "" if revision is None else f" at revision {revision!r}"
    try:
        return Path(
            snapshot_download(repo_id, revision=revision, token=token, allow_patterns=names)
        )
    except HFValidationError as error:
        raise CallError(
            f"{repo_id!r} is neither a folder nor a Hugging Face Hub id (name or owner/name)"
        ) from error
    except GatedRepoError as error:
        raise RunError(
            f"access to {repo_id} is restricted: ask for it at {constants.ENDPOINT}/{repo_id}, "
            "then pass token= or log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CallError(
            f"there is no folder {repo_id}{_nearest(Path(repo_id))}, and the Hub has no such "
            "repository or does not show it to you: check the name; a private one needs token= or "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CallError(f"{repo_id} has no revision {revision!r}: give a branch, tag or commit"
                        ) from error  # fmt: skip
    except LocalEntryNotFoundError as error:
        # Newer versions refuse a snapshot that lacks any file they know of, needed or not.
        snapshot = getattr(error, "snapshot_path", None)
        if snapshot is not None:
            return Path(snapshot)
        why = (
            "HF_HUB_OFFLINE is set: unset it once to download it"
            if constants.HF_HUB_OFFLINE
            else "the Hub cannot be reached: check the connection and try again"
        )
        near = _nearest(Path(repo_id))
        raise RunError(
            f"{repo_id}{at} is not in the cache ({constants.HF_HUB_CACHE}){near}, and {why}"
        ) from error  # fmt: skip
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise RunError(f"the Hub refused {repo_id}{at} with status {status}: {_first_line(error)}"
                       ) from error  # fmt: skip
    except (OSError, RuntimeError) as error:
        raise RunError(f"{repo_id}{at} could not be downloaded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
