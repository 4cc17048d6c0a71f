"""A Hub that is slow, silent or no Hub at all: a line in time, and the cache where it can serve."""

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants, get_session

from resprune_jax.errors import CallError, RunError
from resprune_jax.models import load_model
from resprune_jax.models.checkpoint import watch
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from tests.models.checkpoint.hub_server import StandInHub

ID = "some-lab/llava-small"
FILES = {
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
}
Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A good Hub to start with."""
    server = StandInHub()
    server.repositories[ID] = {"main": dict(FILES)}
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()
    close_session()


def bad(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """Let the Hub answer everything like this from now on."""
    monkeypatch.setattr(hub, "_answer", lambda request, with_body: answer(request))
    if answer in (silent, drip):
        # Where the limit is what is tested: others would run into a short one on a loaded machine.
        for name, seconds in {"STALL_S": 0.5, "READ_S": 0.3, "GRACE_S": 0.5}.items():
            monkeypatch.setattr(watch, name, seconds)


def status(number: int) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(number)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


def drip(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 x\r\n")
    for _ in range(100):
        request.wfile.write(b"X-Wait: a\r\n")
        request.wfile.flush()
        time.sleep(0.05)


def junk(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"\0\xff" * 99)


def types(request: BaseHTTPRequestHandler) -> None:
    body = b'{"id": 5, "sha": null, "siblings": "x"}'
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def round_and_round(request: BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", request.path)
    request.send_header("Content-Length", "0")
    request.end_headers()


def packed(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Encoding", "gzip")
    request.send_header("Content-Length", "2")
    request.end_headers()
    request.wfile.write(b"\x1f\x8b")


def endless(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n[")
    while True:
        request.wfile.write(b"1," * 50_000)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (silent, "in 0.5 seconds|cannot be reached"),
        (drip, "was given up: less than 32 KiB came in 0.5 seconds"),
        (junk, "does not answer as a Hub does .*HF_ENDPOINT"),
        (types, "does not answer as a Hub does"),
        (round_and_round, "does not answer as a Hub does"),
        (packed, "was given up: the server sends 'gzip' data"),
        (endless, "was given up: the server sends more than"),
        (status(429), r"too many requests from here \(status 429\): try again later"),
        (status(500), r"the Hub is in trouble \(status 500\): try again later"),
        (status(503), r"the Hub is in trouble \(status 503\)"),
        (status(418), r"the Hub refuses to give it \(status 418\)"),
    ],
)
def test_every_bad_answer_is_one_line_in_time(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, answer: Answer, said: str
) -> None:
    bad(hub, monkeypatch, answer)
    with pytest.raises(RunError, match=said) as caught:
        resolve_checkpoint(ID)
    assert ID in str(caught.value) and "unexpected" not in str(caught.value)


@pytest.mark.parametrize("answer", [drip, junk, types, status(503), status(429)])
def test_the_cache_serves_where_the_hub_fails(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    folder = resolve_checkpoint(ID)
    bad(hub, monkeypatch, answer)
    assert resolve_checkpoint(ID) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "endpoint", ["hf-mirror.com", "", "http://", "ftp://a", "http://127.0.0.1:99999", "http://[::1"]
)
def test_an_address_that_is_none(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(CallError, match=r"HF_ENDPOINT is .* write it as https://huggingface\.co"):
        resolve_checkpoint(ID)


@pytest.mark.parametrize("refused", ["config.json", "tokenizer.json"])
def test_nothing_large_is_fetched_before_it_is_judged(hub: StandInHub, refused: str) -> None:
    def judge(folder: Path) -> None:
        assert (folder / refused).is_file()
        raise CallError("not this one")

    with pytest.raises(CallError, match="not this one"):
        resolve_checkpoint(ID, judge=judge)
    assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "internvl_chat"}, "InternVL"),
        ({"model_type": "qwen3_vl"}, "Qwen3-VL"),
        ({"model_type": "llava_mistral"}, "original LLaVA"),
        ({"model_type": "llava", "quantization_config": {"quant_method": "gptq"}}, "GPTQ"),
        (
            {"model_type": "llava_next", "text_config": {"num_hidden_layers": 0}},
            "num_hidden_layers",
        ),
    ],
    ids=str,
)
def test_no_weights_are_fetched_of_what_config_json_rules_out(
    hub: StandInHub, config: Any, said: str
) -> None:
    hub.repositories[ID]["main"]["config.json"] = json.dumps(config).encode()
    with pytest.raises(CallError, match=said):
        load_model(ID)
    assert "config.json" in hub.fetched and "model.safetensors" not in hub.fetched


def test_the_client_is_left_as_it_was(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    resolve_checkpoint(ID)
    bad(hub, monkeypatch, junk)
    with pytest.raises(RunError):
        resolve_checkpoint("some-lab/other")
    after = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    assert after == before
