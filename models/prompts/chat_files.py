"""What a checkpoint's small files say about chat: its template and how an answer ends."""

import json
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError


def read_template(folder: Path, tokenizer: Any) -> str | None:
    """The checkpoint's chat template, looked up in the order of `transformers`' processors.

    That is: `chat_template` in `processor_config.json`, `chat_template.json`,
    `chat_template.jinja`, the tokenizer's own. Of several named ones, "default" is taken.

    Args:
        folder: the checkpoint's folder.
        tokenizer: its tokenizer.

    Returns:
        The Jinja template, or None.

    Raises:
        CallError: several templates, none of them named "default".
        RunError: a file that cannot be read.
    """
    template = (
        read_json(folder / "processor_config.json").get("chat_template")
        or read_json(folder / "chat_template.json").get("chat_template")
        or _read_text(folder / "chat_template.jinja")
        or tokenizer.chat_template
    )
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise CallError(
                f"{folder} has the chat templates {', '.join(template)}, none of them named "
                "default: rename the one to use"
            )
        template = template["default"]
    if template is not None and not isinstance(template, str):
        raise RunError(f"the chat template in {folder} is no text: the checkpoint is broken")
    return template


def read_eos_ids(folder: Path, tokenizer: Any, model: dict[str, Any]) -> list[int]:
    """The ids that end an answer, from the first place that names any.

    That is: `generation_config.json`, the tokenizer, the configuration.

    Args:
        folder: the checkpoint's folder.
        tokenizer: its tokenizer.
        model: its parsed `config.json`.

    Returns:
        The ids, without any where no place names one.

    Raises:
        RunError: a file that cannot be read, or an id that is none.
    """
    found = read_json(folder / "generation_config.json").get("eos_token_id")
    for other in (tokenizer.eos_token_id, model.get("eos_token_id")):
        found = other if found is None else found
    if found is None:
        found = (model.get("text_config") or {}).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise RunError(f"eos_token_id is {found!r} in {folder}, expected ids of at least 0")
    return ids


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file.

    Raises:
        RunError: a file that cannot be read, or holds something else.
    """
    try:
        content = json.loads(_read_text(path) or "{}")
    except ValueError as problem:
        raise RunError(f"{path} is not JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object: the checkpoint is broken")
    return content


def _read_text(path: Path) -> str:
    """The text of a file; empty if there is no such file."""
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:
        raise RunError(f"{path} cannot be read: {problem}") from problem


def one_line(problem: Exception) -> str:
    """What an error of another library says, on one line."""
    return " ".join(str(problem).split()) or type(problem).__name__
