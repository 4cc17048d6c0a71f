"""Bodies of requests: what is read, what is refused by which name, and nothing else happens."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.experiments.serve.requests.schema import EXTENSIONS, NEUTRAL, OWN, UNHEARD, read
from resprune_jax.experiments.serve.telling.errors import RequestError
from resprune_jax.models.prompts.options import CallOptions

URL = "data:image/png;base64,AAAA"
ASKED: dict[str, Any] = {
    "model": "pocket",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                {"type": "text", "text": "What is red?"},
                {"type": "text", "text": "One word."},
            ],
        }
    ],
}


def body(**changes: Any) -> bytes:
    return json.dumps({**ASKED, **changes}).encode()


def test_a_whole_request() -> None:
    asked = read(
        body(
            max_tokens=9, temperature=1, top_p=0.5, seed=7, stop="a", stream=True, keep=0.25,
            stream_options={"include_usage": True}, alpha=None, method="fastv", user="me",
            n=1, logprobs=False, response_format={"type": "text"}, tools=[], logit_bias=None,
        )
    )  # fmt: skip
    assert asked.options == {
        "keep": 0.25, "method": "fastv", "temperature": 1.0, "top_p": 0.5, "max_new_tokens": 9,
    }  # fmt: skip
    assert (asked.seed, asked.stop, asked.stream, asked.include_usage) == (7, ("a",), True, True)
    (message,) = asked.messages
    assert (message.text, message.images) == ("What is red?\nOne word.", (URL,))


def test_a_conversation() -> None:
    talk = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "A cup?", "name": "me"},
        {"role": "assistant", "content": "no", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "Red?"},
    ]
    asked = read(body(messages=talk, keep=None))
    assert [one.role for one in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.options == {"keep": None}  # every token, whatever the server's default is


def test_every_field_has_one_meaning() -> None:
    groups = [set(OWN), set(EXTENSIONS), set(UNHEARD), set(NEUTRAL)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    fields = set(CallOptions.__dataclass_fields__)
    assert set(EXTENSIONS) < fields
    # What is left out names files or programs, is of the server alone, or has OpenAI's name.
    assert fields - set(EXTENSIONS) == {
        "tagger", "strict_nouns", "chat_template", "rng_seed", "max_new_tokens", "temperature",
        "top_p",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "word", "param"),
    [
        ({"kep": 3}, "did you mean keep", "kep"),
        ({"tagger": "evil"}, "Unrecognized", "tagger"),
        ({"x" * 5000: 1}, "Unrecognized", "x" * 80),
        ({"model": None}, "model", "model"),
        ({"model": 3}, "model", "model"),
        ({"messages": []}, "at least one", "messages"),
        ({"messages": {}}, "list", "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 10_000}, "10000 messages", "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "role", "messages[0]"),
        ({"messages": [{"role": "user"}]}, "content", "messages[0]"),
        ({"messages": [{"role": "user", "content": [[[[]]]]}]}, "image_url",
         "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input_audio",
         None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
         "last message", "messages"),
        ({"messages": [{"role": "assistant", "content": ASKED["messages"][0]["content"]},
                       {"role": "user", "content": "a"}]}, "only the user", None),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "tool_calls", None),
        ({"messages": [{"role": "user", "content": [ASKED["messages"][0]["content"][0]] * 17}]},
         "17 images", "messages"),
        ({"max_tokens": 0}, "at least 1", "max_tokens"),
        ({"max_tokens": -5}, "at least 1", "max_tokens"),
        ({"max_tokens": 1.5}, "whole number", "max_tokens"),
        ({"max_tokens": True}, "whole number", "max_tokens"),
        ({"max_completion_tokens": 10**400}, "at least 1", "max_completion_tokens"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "differ", "max_tokens"),
        ({"temperature": "hot"}, "number", "temperature"),
        ({"temperature": 10**400}, "finite", "temperature"),
        ({"seed": 0.5}, "whole number", "seed"),
        ({"stop": [""]}, "stop", "stop"),
        ({"stop": list("abcde")}, "up to 4", "stop"),
        ({"stream": "yes"}, "stream", "stream"),
        ({"stream_options": {"include_usage": True}}, "stream=true", "stream_options"),
        ({"stream": True, "stream_options": {"more": 1}}, "include_usage", "stream_options"),
        ({"n": 2}, "n=2", "n"),
        ({"n": True}, "n=True", "n"),
        ({"logprobs": True}, "logprobs", "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format", "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], word: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        read(body(**changes))
    error = caught.value
    assert error.status == 400 and word in error.message
    assert param is None or error.param == param
    assert len(error.message) <= 450 and error.message.isprintable()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe{", b'{"a": NaN}', b'{"keep": Infinity}',
        b"[" * 200_000, b'{"a":' * 100_000, b'{"keep": ' + b"9" * 5000 + b"}", b'{"keep": 1e}',
    ],
)  # fmt: skip
def test_what_is_no_request(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read(raw)
    assert caught.value.status == 400 and "body" in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from([*OWN, *EXTENSIONS, *NEUTRAL, *UNHEARD]), JSON, max_size=4))
def test_no_value_does_anything_else(changes: dict[str, Any]) -> None:
    try:
        asked = read(body(**changes))
    except RequestError as error:
        assert error.status == 400 and error.body()["error"]["message"]
    else:
        assert set(asked.options) <= {*EXTENSIONS, "temperature", "top_p", "max_new_tokens"}


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_no_message_does_anything_else(message: Any) -> None:
    for messages in (message, [message], [{"role": "user", "content": message}],
                     [{"role": "user", "content": [message]}]):  # fmt: skip
        try:
            read(body(messages=messages))
        except RequestError as error:
            assert error.status == 400
