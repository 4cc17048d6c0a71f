"""Fetching named files of a Hub repository, and what to say when that does not work."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from resprune_jax.errors import CallError, RunError, printable, say_once, shown
from resprune_jax.models.checkpoint.files import LARGE_FILE, is_file, one_line
from resprune_jax.models.checkpoint.watch import EndedError, watched


def nearest(path: Path) -> str:
    """A hint at a folder beside `path` with a similar name."""
    try:
        folders = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f" (is it {path.parent / near[0]}?)" if near else ""


def fetch(
    repo_id: str,
    revision: str | None,
    token: str | None,
    names: Sequence[str],
    *,
    weights: bool = False,
) -> Path:
    """Bring the named files of a repository into the cache.

    Args:
        repo_id: the repository.
        revision: branch, tag or commit; None for the main branch.
        token: access token; None for the one that is logged in.
        names: exact names of the files wanted; those that it does not have are left out.
        weights: whether these are the weights, which may have any size.

    Returns:
        The snapshot's folder. Where the Hub fails, that of the cache, if it has one.

    Raises:
        CallError: no such repository or revision, or an address of the Hub that is none.
        RunError: access is refused, or the Hub cannot be reached or does not answer as a Hub does,
            and the cache does not hold the repository.
    """
    if not constants.HF_HUB_OFFLINE:
        _check_endpoint()
    what = repo_id if revision is None else f"{repo_id} at revision {shown(revision)}"

    def download(**options: Any) -> str:
        found: str = snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=list(names), **options
        )
        return found

    cache = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "blobs"
    try:
        return Path(
            watched(download, cache, files=len(names), largest=None if weights else LARGE_FILE)
        )
    except HFValidationError as error:
        raise CallError(
            f"{shown(repo_id)} is neither a folder nor a Hugging Face Hub id (name or owner/name)"
        ) from error
    except GatedRepoError as error:
        raise RunError(
            f"access to {repo_id} is restricted: ask for it at {constants.ENDPOINT}/{repo_id}, "
            "then pass token= or log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CallError(
            f"there is no folder {repo_id}{nearest(Path(repo_id))}, and the Hub has no such "
            "repository or does not show it to you: check the name; a private one needs token= or "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CallError(
            f"{repo_id} has no revision {shown(revision)}: give a branch, tag or commit"
        ) from error
    except LocalEntryNotFoundError as error:
        # Newer versions refuse a snapshot that lacks any file they know of, needed or not.
        snapshot = getattr(error, "snapshot_path", None)
        if snapshot is not None:
            return Path(snapshot)
        why = _why_not_reached(error.__cause__)
        near = nearest(Path(repo_id))
        raise RunError(
            f"{what} is not in the cache ({constants.HF_HUB_CACHE}), and {why}{near}"
        ) from error
    except HfHubHTTPError as error:
        why = f"{_why_not_reached(error)} ({one_line(error)})"
        return _from_cache(download, what, why, error)
    except EndedError as error:
        return _from_cache(download, what, f"the Hub at {_endpoint()} was given up: {error}", error)
    except PermissionError as error:
        raise RunError(
            f"{what} cannot be written to the cache {constants.HF_HUB_CACHE}: permission denied; "
            "set HF_HOME to a folder of your own"
        ) from error
    except Exception as error:  # an answer that is no Hub's can break any line of the client
        why = (
            f"the Hub at {_endpoint()} does not answer as a Hub does "
            f"({type(error).__name__}: {one_line(error)}): check HF_ENDPOINT and any proxy"
        )
        return _from_cache(download, what, why, error)


def _from_cache(download: Callable[..., str], what: str, why: str, error: Exception) -> Path:
    """What the cache has of a repository, when the Hub fails; else the failure as an error."""
    try:
        folder = Path(download(local_files_only=True))
    except LocalEntryNotFoundError as partial:
        found = getattr(partial, "snapshot_path", None)
        folder = Path() if found is None else Path(found)
    except Exception:  # the mended question is whether the cache has it, and it has not
        folder = Path()
    if folder == Path() or not is_file(folder / "config.json"):
        raise RunError(f"{what} could not be fetched: {why}") from error
    say_once(f"cache {what}", f"{what} is taken from the cache: {why}")
    return folder


def _check_endpoint() -> None:
    """Refuse an address of the Hub that is none."""
    try:
        parts = urlsplit(constants.ENDPOINT)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
        good = good and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise CallError(
            f"HF_ENDPOINT is {shown(constants.ENDPOINT)}, which is no address of a Hub: write it "
            "as https://huggingface.co"
        )


def _endpoint() -> str:
    return printable(constants.ENDPOINT, 80)


def _why_not_reached(problem: BaseException | None) -> str:
    """Why the Hub gave nothing, and what to do."""
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset it once to download it"
    if status == 429:
        return (
            "the Hub has had too many requests from here (status 429): try again later, or log in "
            "with `hf auth login`"
        )
    if status is not None and status >= 500:
        return f"the Hub is in trouble (status {status}): try again later"
    if status is not None:
        return f"the Hub refuses to give it (status {status}): check the token and HF_ENDPOINT"
    return "the Hub cannot be reached: check the connection and try again"
