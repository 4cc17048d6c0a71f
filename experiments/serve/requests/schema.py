"""The body of a chat request, read and judged; nothing of it is looked up or decoded here.

Every field of OpenAI's own is known by name: it is obeyed, or changes nothing, or is refused where
its value asks for what is not done here. A field that nobody knows is refused, as OpenAI's server
does, since a mistyped `keep` must not be an answer from all visual tokens.
"""

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resprune_jax.errors import shown
from resprune_jax.experiments.serve.telling.errors import wrong
from resprune_jax.models.prompts.chat import Role

EXTENSIONS = (
    *("keep", "method", "method_settings", "alpha", "aggregate", "nonnegative", "seed_rule"),
    *("tolerance", "budget", "newline", "positions", "text", "ocr_line", "image_aspect"),
    *("sample", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size"),
)
"""Fields of `CallOptions` that a request may set; `tagger` and other names of files are not."""

OWN = (
    *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "top_p", "seed", "stop"),
)
"""Fields of OpenAI's that are obeyed."""

UNHEARD = frozenset({
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("prompt_cache_retention", "parallel_tool_calls"),
})  # fmt: skip
"""Fields of OpenAI's that say nothing of the answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's that are not done here, with the values that ask for nothing; null too."""

MOST_MESSAGES, MOST_PARTS, MOST_STOPS, LONGEST_STOP = 256, 1024, 4, 1000


@dataclass(frozen=True)
class Message:
    """A turn of the conversation.

    Attributes:
        role: who speaks; OpenAI's "developer" is the system.
        text: its text parts, a line each.
        images: the URLs of its pictures.
    """

    role: Role
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A chat request.

    Attributes:
        model: its name.
        messages: the conversation; the last one is the user's.
        options: what it says of `CallOptions`, by name.
        seed: of drawing, None for one of the server's.
        stop: texts that end the answer.
        stream: whether the answer is wanted piece by piece.
        include_usage: whether a stream ends with its usage.
    """

    model: str
    messages: tuple[Message, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


def read(body: bytes, *, most_images: int = 16) -> Asked:
    """Read a request.

    Args:
        body: of the POST.
        most_images: pictures of a request, at most.

    Raises:
        RequestError: what is wrong with it, with the field's name.
    """
    given = _json(body)
    for name in given:
        if name not in OWN and name not in EXTENSIONS and name not in {*UNHEARD, *NEUTRAL}:
            near = difflib.get_close_matches(name[:80], [*OWN, *EXTENSIONS, *NEUTRAL], 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise wrong(f"Unrecognized request argument supplied: {name[:80]}{hint}", name[:80])
    for name, values in NEUTRAL.items():
        value = given.get(name)
        if value is not None and not any(_same(value, each) for each in values):
            raise wrong(f"{name}={shown(value)} is not done here: leave it out", name)
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("you must provide a model parameter, a text", "model")
    options = {name: given[name] for name in EXTENSIONS if given.get(name) is not None}
    if "keep" in given and given["keep"] is None:
        options["keep"] = None  # every token, also where the server prunes by default
    for name, want in (("temperature", _number), ("top_p", _number)):
        if given.get(name) is not None:
            options[name] = want(given[name], name)
    limits = {name: given[name] for name in ("max_completion_tokens", "max_tokens")
              if given.get(name) is not None}  # fmt: skip
    if len(set(map(str, limits.values()))) > 1:
        raise wrong("max_tokens and max_completion_tokens differ: give one", "max_tokens")
    for name, value in limits.items():
        most = _whole(value, name)
        if not 1 <= most < 2**31:
            raise wrong(f"{name} must be a whole number of at least 1, got {most}", name)
        options["max_new_tokens"] = most
    seed = given.get("seed")
    return Asked(
        model=model,
        messages=_messages(given.get("messages"), most_images),
        options=options,
        seed=None if seed is None else _whole(seed, "seed") % 2**32,
        stop=_stops(given.get("stop")),
        stream=_flag(given.get("stream"), "stream"),
        include_usage=_include_usage(given.get("stream_options"), given.get("stream")),
    )


def _json(body: bytes) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        given = json.loads(body, parse_constant=refuse)
    except RecursionError:
        raise wrong("the body is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise wrong(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise wrong(f"the body is a JSON object, got {_kind(given)}")
    return given


def _messages(given: Any, most_images: int) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise wrong(f"messages is a list of at least one message, got {_kind(given)}", "messages")
    if len(given) > MOST_MESSAGES:
        raise wrong(
            f"{len(given)} messages were given: {MOST_MESSAGES} at most are read", "messages"
        )
    found = tuple(_message(one, f"messages[{at}]") for at, one in enumerate(given))
    if found[-1].role != "user":
        raise wrong("the last message must be the user's: it is what is answered", "messages")
    images = sum(len(one.images) for one in found)
    if images > most_images:
        raise wrong(f"{images} images were given: {most_images} at most are read", "messages")
    return found


def _message(given: Any, where: str) -> Message:
    if not isinstance(given, dict):
        raise wrong(f"{where} is an object, got {_kind(given)}", where)
    role = given.get("role")
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise wrong(f"{where}.role is system, user or assistant, got {shown(role)}", where)
    for name, value in given.items():
        if name not in ("role", "content", "name", "refusal") and value not in (None, [], {}):
            raise wrong(f"{where}.{name[:40]} is not done here: leave it out", where)
    content = given.get("content")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list) or not content:
        raise wrong(f"{where}.content is a text or a list of parts, got {_kind(content)}", where)
    if len(content) > MOST_PARTS:
        raise wrong(f"{where}.content has {len(content)} parts: {MOST_PARTS} at most", where)
    texts, images = [], []
    for at, part in enumerate(content):
        own = f"{where}.content[{at}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image_url":
            images.append(_url(part.get("image_url"), own))
        else:
            raise wrong(
                f'{own} is {{"type": "text", "text": ...}} or {{"type": "image_url",'
                f' "image_url": {{"url": ...}}}}, got {shown(kind or part)}',
                own,
            )
    if images and role != "user":
        raise wrong(f"{where}: only the user's messages hold images", where)
    return Message(role, "\n".join(texts), tuple(images))


def _url(given: Any, where: str) -> str:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str) or not url:
        raise wrong(f'{where}.image_url is {{"url": "..."}}, got {_kind(given)}', where)
    return url


def _stops(given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or len(found) > MOST_STOPS:
        raise wrong(f"stop is a text or a list of up to {MOST_STOPS}, got {_kind(given)}", "stop")
    for one in found:
        if not isinstance(one, str) or not 1 <= len(one) <= LONGEST_STOP:
            raise wrong(f"stop holds texts of 1 to {LONGEST_STOP} characters", "stop")
    return tuple(found)


def _include_usage(given: Any, stream: Any) -> bool:
    if given is None:
        return False
    if not isinstance(given, dict) or set(given) - {"include_usage", "include_obfuscation"}:
        raise wrong(f'stream_options is {{"include_usage": true}}, got {shown(given)}',
                    "stream_options")  # fmt: skip
    if not stream:
        raise wrong("stream_options is for stream=true alone", "stream_options")
    return _flag(given.get("include_usage"), "stream_options")


def _flag(given: Any, name: str) -> bool:
    if given is not None and not isinstance(given, bool):
        raise wrong(f"{name} is true or false, got {shown(given)}", name)
    return bool(given)


def _number(given: Any, name: str) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise wrong(f"{name} is a number, got {shown(given)}", name)
    try:
        found = float(given)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise wrong(f"{name} is a finite number", name)
    return found


def _whole(given: Any, name: str) -> int:
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise wrong(f"{name} is a whole number, got {shown(given)}", name)
    return given


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, bool) or isinstance(value, bool):
        return value is neutral
    equal: Callable[[Any], bool] = neutral.__eq__
    return equal(value) is True


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), shown(value))
