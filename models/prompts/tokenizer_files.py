"""The checkpoint's tokenizer, as `transformers` loads it."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.models.checkpoint.advice import without_advice
from resprune_jax.models.checkpoint.files import (
    LARGE_FILE,
    foreign,
    is_file,
    read_bytes,
    read_json,
    read_text,
)

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
_SMALL = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.json")
_LARGE = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: the checkpoint's folder.

    Returns:
        `transformers`' tokenizer; it has been seen to encode and to decode.

    Raises:
        CallError: no tokenizer, or one that needs a package that is not installed.
        RunError: a file that cannot be read, or a tokenizer that is broken.
    """
    present = [name for name in _FILES if is_file(folder / name)]
    if not present:
        raise CallError(f"{folder} has no tokenizer: copy its tokenizer.json there")
    # What is wrong with the files themselves is said of the file.
    for name in _SMALL:
        read_json(folder / name)
    read_text(folder / "chat_template.jinja")
    for name in _LARGE:
        read_bytes(folder / name, LARGE_FILE)
    if "tokenizer.model" in present and "tokenizer.json" not in present:
        _need_sentencepiece(folder)
    with without_advice():
        from transformers import AutoTokenizer

    with foreign(f"the tokenizer in {folder} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    # Some damage shows, and brings a whole process down, only when a text is encoded.
    with foreign(f"the tokenizer in {folder} is broken"):
        tokenizer.decode(tokenizer("A question?")["input_ids"])
        _check_added(folder, tokenizer)
    return tokenizer


def _check_added(folder: Path, tokenizer: Any) -> None:
    """Refuse added tokens that were read under other ids than the file gives them.

    The `tokenizers` library numbers those anew whose ids do not follow on the others, silently.
    """
    content = read_bytes(folder / "tokenizer.json", LARGE_FILE)
    if content is None or not tokenizer.is_fast:
        return
    known = tokenizer.get_added_vocab()
    for token in json.loads(content).get("added_tokens") or ():
        token_id, text = token["id"], token["content"]
        if known.get(text, token_id) != token_id:
            raise RunError(
                f"{folder / 'tokenizer.json'} gives {shown(text)} the id {shown(token_id)}, but it"
                f" is read as {known[text]}: the ids of added tokens must follow on the others"
            )


def _need_sentencepiece(folder: Path) -> None:
    """Refuse a tokenizer.model that nothing here can read."""
    missing = [
        package
        for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf"))
        if not _installed(module)
    ]
    if missing:
        raise CallError(
            f"{folder} has tokenizer.model and no tokenizer.json: `pip install "
            f"{' '.join(missing)}` to have it converted, or copy the tokenizer.json there"
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
