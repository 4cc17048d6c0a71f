"""lmms-eval's requests as questions: what is asked about which images, and how it is answered."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, say_once, shown
from resprune_jax.models.images.files import open_bytes, open_image
from resprune_jax.models.prompts.options import CallOptions

logger = logging.getLogger("resprune_jax")


@dataclass(frozen=True)
class Drawing:
    """How a request is answered, as its task's `generation_kwargs` say.

    Attributes:
        until: texts before which an answer ends.
        options: fields of `CallOptions`.
    """

    until: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return dict(self.options).get("sample", False)

    def cut(self, text: str) -> str:
        """An answer up to the first of the texts that end it."""
        ends = [place for end in self.until if (place := text.find(end)) >= 0]
        return text[: min(ends, default=len(text))].strip()


_FIELDS = {
    "max_new_tokens": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
}
_SINGLE = ("num_beams", "n", "best_of", "num_return_sequences")
_DRAWN = ("top_p", "top_k", "min_p")
_LEFT = ("image_aspect_ratio",)


def drawing_of(kwargs: Mapping[str, Any] | None) -> Drawing:
    """Read a task's `generation_kwargs`.

    A temperature above 0 draws, unless do_sample is false; without one, do_sample alone decides and
    the checkpoint says how.

    Raises:
        CallError: what is not done here (beams, several answers), or an unknown name.
    """
    left = dict(kwargs or {})
    until = _until(left.pop("until", None))
    sample, temperature = left.pop("do_sample", None), left.pop("temperature", None)
    for name in _SINGLE:
        if (value := left.pop(name, None)) not in (None, 1):
            raise CallError(
                f"generation_kwargs: {name}={shown(value)} is not done here: one answer, without"
                " beams; set it to 1"
            )
    for name in _LEFT:
        if (value := left.pop(name, None)) is not None:
            say_once(
                f"generation_kwargs {name}",
                f"generation_kwargs: {name}={shown(value)} of a task is left to image_aspect= of"
                " model_args",
            )
    options: dict[str, Any] = {}
    for name, value in left.items():
        if name not in _FIELDS:
            others = ", ".join(("until", "do_sample", "temperature", *_FIELDS, *_SINGLE))
            raise CallError(f"generation_kwargs: unknown {shown(name)}: known are {others}")
        if value is not None:
            options[_FIELDS[name]] = value
    drawn = bool(temperature) and sample is not False if temperature is not None else bool(sample)
    if drawn:
        options["sample"] = True
        if temperature is not None:
            options["temperature"] = temperature
    else:
        for name in _DRAWN:
            options.pop(name, None)
    CallOptions(**options)  # says what is wrong with them, before anything runs
    return Drawing(until, tuple(sorted(options.items())))


def _until(value: Any) -> tuple[str, ...]:
    each = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(each, list | tuple) or not all(isinstance(one, str) for one in each):
        raise CallError(f"generation_kwargs: until is a text or a list of them, got {shown(value)}")
    return tuple(one for one in each if one)


@dataclass(frozen=True)
class Content:
    """What a question says: its images, in this order in front of its text."""

    images: tuple[Any, ...]
    text: str


@dataclass(frozen=True)
class Asked:
    """A question of a request.

    Attributes:
        where: what messages call it: the task and the number of its row.
        read: reads images and text; not before its batch, so that few images are in memory.
        drawing: how it is answered.
        repeat: which of several same questions it is.
    """

    where: str
    read: Callable[[], Content]
    drawing: Drawing
    repeat: int = 0


def from_messages(messages: Any, where: str) -> Content:
    """The one user message of a chat: images first, then text.

    Args:
        messages: lmms-eval's, {"role": ..., "content": [{"type": "image", "url": ...}, ...]} each.
        where: what messages call it.

    Raises:
        CallError: other roles, videos or sound, an image behind text, no text.
    """
    if not isinstance(messages, Sequence) or not messages:
        raise CallError(f"{where}: the task gives no messages, got {shown(messages)}")
    roles = [message["role"] for message in messages]
    if roles != ["user"]:
        raise CallError(
            f"{where}: a question is one message of the user here, got those of {', '.join(roles)}"
        )
    content = messages[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    images, texts = [], []
    for part in parts:
        kind = part["type"]
        if kind == "text":
            texts.append(part["text"])
        elif kind != "image":
            raise CallError(f"{where}: images are asked about here, and this is a {kind}")
        elif any(text.strip() for text in texts):
            raise CallError(
                f"{where}: an image stands behind text; images come before the question here"
            )
        else:
            images.append(picture_of(part["url"], where))
    return Content(tuple(images), "".join(texts))


def from_visuals(visuals: Any, text: str, where: str) -> Content:
    """What a task of the simple kind asks: its images, and the context as text.

    Raises:
        CallError: something else than images.
    """
    each = visuals if isinstance(visuals, list | tuple) else [] if visuals is None else [visuals]
    return Content(tuple(picture_of(one, where) for one in each), text)


def picture_of(given: Any, where: str) -> Any:
    """A picture as `LVLM` takes it: a PIL image, an array or a path; bytes are read.

    Raises:
        CallError: a link, or no picture at all.
        RunError: bytes that are none.
    """
    if isinstance(given, Mapping) and isinstance(given.get("bytes"), bytes):
        return open_bytes(given["bytes"], f"{where}: the image")
    if isinstance(given, Mapping) and isinstance(given.get("path"), str):
        given = given["path"]
    if isinstance(given, str):
        if "://" in given:
            raise CallError(f"{where}: {given} is a link, which is not fetched: download it first")
        return Path(given)
    if isinstance(given, Path | np.ndarray) or hasattr(given, "convert"):
        return given
    raise CallError(f"{where}: no image but {shown(given)}")


def digest_of(picture: Any) -> str:
    """A picture's content in hex digits: of what it shows, or of its file.

    What it shows is what the model sees: pixels alone say nothing of a palette's colours, of how
    EXIF turns them, or of a grey's range.

    Raises:
        CallError, RunError: no picture that can be read; of a path whoever opens it says so.
    """
    made = hashlib.sha256()
    if isinstance(picture, Path):
        made.update(b"file ")
        try:
            made.update(picture.read_bytes())
        except OSError:
            made.update(str(picture).encode("utf-8", "surrogateescape"))
    else:
        rgb = open_image(picture)
        made.update(f"pixels {rgb.size}".encode())
        made.update(rgb.tobytes())
    return made.hexdigest()
