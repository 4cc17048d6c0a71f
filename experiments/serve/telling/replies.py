"""The JSON of answers, as OpenAI's server writes it, and what is said beside it."""

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

FIELD = "resprune"
"""The extension of a reply: visual tokens before and after, times, what the choice was made by."""


@dataclass(frozen=True)
class Made:
    """An answer.

    Attributes:
        text: of it.
        finish: "stop" or "length".
        tokens: generated.
        words: tokens of the prompt that are no visual tokens.
        visual: visual tokens of its pictures.
        kept: how many of them the answer was made from.
        about: what else is said of it, see `FIELD`.
    """

    text: str
    finish: str
    tokens: int
    words: int
    visual: int
    kept: int
    about: dict[str, Any] = field(default_factory=dict)

    def usage(self) -> dict[str, Any]:
        """Counts; the prompt's are of what the language model read."""
        prompt = self.words + self.kept
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "visual_tokens": self.visual,
            "visual_tokens_kept": self.kept,
        }


class Reply:
    """The replies to one request: they share an id and a time."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def whole(self, made: Made) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": made.text, "refusal": None}
        choice = {
            "index": 0, "message": message, "logprobs": None, "finish_reason": made.finish,
        }  # fmt: skip
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": made.usage(),
            FIELD: made.about,
        }

    def first(self) -> bytes:
        """The event in front of a stream's text."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """An event with more of the text."""
        return self._chunk({"content": text})

    def last(self, made: Made, *, usage: bool) -> bytes:
        """The events behind the text."""
        end = self._chunk({}, finish=made.finish, **{FIELD: made.about})
        if usage:
            own = {**self._head("chat.completion.chunk"), "choices": [], "usage": made.usage()}
            end += event(own)
        return end + b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model,
                "system_fingerprint": None}  # fmt: skip

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})


def method_name(method: str) -> str:
    """What clients are told of a method: of FILE.py:NAME the name alone."""
    return method.rpartition(":")[2]


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def encode(value: Any) -> bytes:
    """JSON in UTF-8; halves of surrogate pairs stay escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
