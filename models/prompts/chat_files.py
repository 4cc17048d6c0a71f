"""What a checkpoint's small files say about chat: its template and how an answer ends."""

from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.models.checkpoint.files import foreign, read_json, read_text
from resprune_jax.models.checkpoint.names import listed

LONGEST_TEMPLATE = 1 << 18
"""Characters of a chat template, at most: long published ones have ten thousand."""

_LARGEST_ID = 2**31
_MOST_IDS = 1000

# Rows of an embedding table up to which a Llama decoder may be Llama-2's, whose vocabulary has
# 32,000 pieces: some are added, and tables are padded. Yi has 64,000, Llama 3 128,256.
_LLAMA_2_ROWS = 33_000

# Tokens that a tokenizer holds for another chat format than Vicuna's.
_OTHER_FORMATS = ("<|im_start|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>")


def given_template(template: str | Path) -> str:
    """A chat template that a caller gives in place of the checkpoint's.

    Args:
        template: the Jinja text, or the path of a file that holds it.

    Returns:
        The text.

    Raises:
        CallError: no such file, or a text that is no template.
        RunError: a file that cannot be read.
    """
    if isinstance(template, Path):
        text = read_text(template.expanduser(), LONGEST_TEMPLATE)
        if text is None:
            raise CallError(f"there is no chat template {template}: give a Jinja file")
        return text
    if not isinstance(template, str):
        raise CallError(
            f"chat_template is a Jinja text or the Path of a file, got {shown(template)}"
        )
    if "{{" not in template and "{%" not in template:
        raise CallError(
            f"chat_template {shown(template)} is no Jinja template: a file is given as Path(...)"
        )
    return template


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
        or read_text(folder / "chat_template.jinja")
        or tokenizer.chat_template
    )
    if isinstance(template, list):
        template = {
            str(entry.get("name")): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
    if isinstance(template, dict):
        if "default" not in template:
            raise CallError(
                f"{folder} has the chat templates {listed([str(name) for name in template])}, none "
                "of them named default: rename the one to use, or give one (chat_template=)"
            )
        template = template["default"]
    if template is None:
        return None
    if not isinstance(template, str):
        raise RunError(f"the chat template in {folder} is no text: the checkpoint is broken")
    if len(template) > LONGEST_TEMPLATE:
        raise RunError(
            f"the chat template in {folder} has {len(template)} characters, more than "
            f"{LONGEST_TEMPLATE}: it is broken"
        )
    return template


def is_vicuna(model: dict[str, Any], vocab_size: int, tokenizer: Any) -> bool:
    """Whether a checkpoint without a chat template may be taken for one of Vicuna's.

    Of the decoders of LLaVA-1.5 and LLaVA-NeXT, Vicuna is the one with Llama 2's vocabulary.

    Args:
        model: its parsed `config.json`.
        vocab_size: rows of its embedding table.
        tokenizer: its tokenizer.
    """
    text = model.get("text_config")
    kind = text.get("model_type", "llama") if isinstance(text, dict) else "llama"
    with foreign("the tokenizer is broken"):
        known = tokenizer.get_vocab()
    return (
        model.get("model_type", "llava") in ("llava", "llava_next")
        and kind == "llama"
        and vocab_size <= _LLAMA_2_ROWS
        and not any(token in known for token in _OTHER_FORMATS)
    )


def read_eos_ids(folder: Path, tokenizer: Any, model: dict[str, Any]) -> list[int]:
    """The ids that end an answer.

    They are those of `generation_config.json`. Where it names none, as where it is missing, they
    are those of `config.json` and the tokenizer's.

    Args:
        folder: the checkpoint's folder.
        tokenizer: its tokenizer.
        model: its parsed `config.json`.

    Returns:
        The ids, each once, without any where no place names one.

    Raises:
        RunError: a file that cannot be read, or an id that is none.
    """
    name = "generation_config.json"
    ids = _ids(read_json(folder / name).get("eos_token_id"), folder / name)
    if not ids:
        text = model.get("text_config")
        for part in (model, text if isinstance(text, dict) else {}):
            ids = ids or _ids(part.get("eos_token_id"), folder / "config.json")
        ids = ids + _ids(tokenizer.eos_token_id, folder / "tokenizer_config.json")
    return list(dict.fromkeys(ids))


def _ids(found: Any, path: Path) -> list[int]:
    """The entry `eos_token_id` of a file as a list."""
    ids = found if isinstance(found, list) else [] if found is None else [found]
    good = all(type(i) is int and 0 <= i < _LARGEST_ID for i in ids)
    if not good or len(ids) > _MOST_IDS:
        raise RunError(
            f"eos_token_id is {shown(found)} in {path}, expected an id or a list of ids, each at "
            f"least 0 and below {_LARGEST_ID}"
        )
    return ids
