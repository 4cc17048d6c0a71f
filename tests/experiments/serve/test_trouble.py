"""What goes wrong at a real server: each has its status and word, and the others get answers."""

import asyncio
import http.client
import json
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from resprune_jax.experiments.bench.serving.process import ServerProcess
from tests.experiments.serve.conftest import KEY, WAITING, Scene, Served, data_url, messages, png
from tests.experiments.serve.test_server import ask, get, waiting

pytestmark = pytest.mark.serve


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than anyone should decode."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_error_of_each_kind(client: Any, served: Served, scenes: list[Scene]) -> None:
    import openai

    scene = scenes[5]
    content = png(scene.pixels)
    wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (openai.NotFoundError, "model_not_found", {"model": "gpt-4o"}),
        (openai.BadRequestError, "did you mean keep", {"extra_body": {"kepe": 3}}),
        (openai.BadRequestError, "no visual token", {"extra_body": {"keep": 0}}),
        (openai.BadRequestError, "keep", {"extra_body": {"keep": "nan"}}),
        (openai.BadRequestError, "keep", {"extra_body": {"keep": [3]}}),
        (openai.BadRequestError, "alpha", {"extra_body": {"keep": 3, "alpha": -1}}),
        (openai.BadRequestError, "alpha", {"extra_body": {"keep": 3, "alpha": [0.5]}}),
        (openai.BadRequestError, "unknown method", {"extra_body": {"method": "magic"}}),
        (openai.BadRequestError, "unknown method", {"extra_body": {"method": "evil.py:Own"}}),
        (openai.BadRequestError, "no setting", {
            "extra_body": {"keep": 3, "method_settings": {"power": 9}}}),
        (openai.BadRequestError, "aggregate", {
            "extra_body": {"keep": 3, "method_settings": {"aggregate": ["max"]}}}),
        (openai.BadRequestError, "at least 1", {"max_tokens": -3}),
        (openai.BadRequestError, "context", {"max_tokens": 100_000}),
        (openai.BadRequestError, "n=2", {"n": 2}),
        (openai.BadRequestError, "temperature", {"temperature": -0.5}),
        (openai.BadRequestError, "top_p", {"top_p": 1.5}),
        (openai.BadRequestError, "characters", {"messages": messages(None, "a" * 10**5)}),
        (openai.BadRequestError, "context", {"messages": messages(None, "red " * 5000)}),
        (openai.BadRequestError, "empty", {"messages": messages(data_url(content), " ")}),
        (openai.BadRequestError, "placeholder", {"messages": messages(None, "<image> what?")}),
        (openai.BadRequestError, "17 images", {
            "messages": [{"role": "user", "content": 17 * scene.messages[0]["content"]}]}),
        (openai.BadRequestError, "image 1", {"messages": messages(data_url(content[:900]), "?")}),
        (openai.BadRequestError, "image 1", {"messages": messages(data_url(b"no picture"), "?")}),
        (openai.BadRequestError, "base64", {"messages": messages("data:image/png;base64,#", "?")}),
        (openai.BadRequestError, "1000000", {
            "messages": messages(data_url(bomb(5000, 5000)), "?")}),
        (openai.BadRequestError, "too many pixels", {
            "messages": messages(data_url(bomb(30_000, 30_000)), "?")}),
        (openai.BadRequestError, "no image file below", {
            "messages": messages(served.outside.as_uri(), "?")}),
        (openai.BadRequestError, "not fetched", {
            "messages": messages("http://169.254.169.254/latest/meta-data", "?")}),
    ]  # fmt: skip
    for kind, word, changes in wrong:
        with pytest.raises(kind) as caught:
            ask(client, changes.pop("messages", scene.messages), **changes)
        error: Any = caught.value
        said = error.response.json()["error"]
        assert word in json.dumps(said), said
        assert set(said) == {"message", "type", "param", "code"}
        assert error.type == "invalid_request_error"
    with pytest.raises(openai.AuthenticationError) as denied:
        ask(client.with_options(api_key="sk-wrong"), scene.messages)
    assert denied.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="pocket", input="a")


@pytest.mark.parametrize(
    ("path", "key", "method", "status"),
    [
        ("/v1/models", "", "GET", 401), ("/metrics", "", "GET", 401), ("/nothing", "", "GET", 401),
        ("/v1/models", f"{KEY}x", "GET", 401), ("/nothing", KEY, "GET", 404),
        ("/v1/chat/completions", KEY, "GET", 405), ("/v1/chat/completions", KEY, "POST", 415),
        ("/health", "", "GET", 200),
    ],
)  # fmt: skip
def test_paths_keys_and_methods(
    served: Served, path: str, key: str, method: str, status: int
) -> None:
    found, content, _ = get(served, path, key, method)
    assert found == status
    assert status == 200 or json.loads(content)["error"]["message"]


def test_a_foreign_name_is_refused(served: Served) -> None:
    parts = urlsplit(served.url)
    made = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    made.request(
        "GET", "/v1/models", headers={"authorization": f"Bearer {KEY}", "host": "evil.org"}
    )
    assert made.getresponse().status == 421
    made.close()


def test_no_way_out_of_the_folder(client: Any, served: Served, scenes: list[Scene]) -> None:
    import openai

    place = served.folder.parent
    for url in (
        "../outside.png", "deep/../../outside.png", str(served.outside), served.outside.as_uri(),
        served.folder.as_uri() + "/%2e%2e/outside.png", "file:///etc/passwd", "/etc/passwd",
        "out.png", "up/outside.png", f"file://{place}/pictures/up/pictures/../../outside.png",
        "file://elsewhere/etc/passwd", "deep", ".", "notes.txt", "missing.png", "a\0b.png",
        "file:///" + "a/" * 3000, "/dev/zero", "/proc/self/environ", "~/secret.png",
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages(url, scenes[0].question))
        assert "root:" not in str(caught.value) and "PATH=" not in str(caught.value)


def test_no_way_to_other_hosts(client: Any, served: Served, scenes: list[Scene]) -> None:
    import openai

    before = len(served.asked)
    port = served.host.partition(":")[2]
    for url in (
        "http://example.org/a.png", f"http://localhost:{port}/picture.png",
        f"http://{served.host}@example.org/a.png", f"http://user@{served.host}/picture.png",
        f"http://{served.host}.example.org/a.png", f"http://127.1:{port}/picture.png",
        "http://127.0.0.1/picture.png", "https://", "http://[::1", f"ftp://{served.host}/a.png",
        f"http://{served.host}\\@example.org/", f"HTTP:///{served.host}/picture.png",
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError):
            ask(client, messages(url, scenes[0].question))
    assert len(served.asked) == before
    for path in ("/missing.png", "/away.png"):
        with pytest.raises(openai.BadRequestError, match="could not be fetched"):
            ask(client, messages(f"http://{served.host}{path}", scenes[0].question))
    assert "/picture.png" not in served.asked[before:]  # no redirect was followed
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, messages(f"http://{served.host}/large.png", scenes[0].question))
    assert caught.value.status_code == 413


def test_bad_clients_do_not_harm_the_others(
    client: Any, served: Served, scenes: list[Scene], answers: list[str]
) -> None:
    import openai

    parts = urlsplit(served.url)
    address = (str(parts.hostname), int(parts.port or 0))
    head = (f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}"
            "\r\ncontent-type: application/json\r\n")  # fmt: skip
    hanging = [socket.create_connection(address) for _ in range(3)]
    hanging[0].sendall((head + "content-length: 5000\r\n\r\n" + '{"model"').encode())
    hanging[1].sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
    hanging[2].sendall(b"POST /v1/chat")
    found: dict[str, Any] = {}

    def large() -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, messages("data:image/png;base64," + "A" * 10**8, "?"))
        found["large"] = caught.value

    def endless() -> None:
        """A body that never says how long it is."""
        own = socket.create_connection(address, timeout=60)
        own.sendall((head + "transfer-encoding: chunked\r\n\r\n").encode())
        piece = b"10000\r\n" + b"A" * 0x10000 + b"\r\n"
        for _ in range(1600):
            own.sendall(piece)
        own.sendall(b"0\r\n\r\n")
        found["endless"] = own.makefile("rb").read()

    def truncated() -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages(data_url(png(scenes[6].pixels)[:-400]), "?"))
        found["truncated"] = caught.value

    threads = [threading.Thread(target=bad) for bad in (large, endless, truncated)]
    for thread in threads:
        thread.start()
    for number in (6, 7, 8):
        assert ask(client, scenes[number].messages).choices[0].message.content == answers[number]
    for thread in threads:
        thread.join(60)
    assert found["large"].status_code == 413 and found["large"].code == "request_too_large"
    assert b" 413 " in found["endless"][:20] and b"request_too_large" in found["endless"]
    assert found["truncated"].code == "invalid_image"
    for one in hanging[:2]:
        one.settimeout(30)
        said = one.makefile("rb").read()  # to the end: the connection is closed
        assert b" 408 " in said[:20] and b"request_timeout" in said
    for one in hanging:
        one.close()
    assert ask(client, scenes[9].messages).choices[0].message.content == answers[9]


def test_a_flood_is_told_to_come_again(
    served: Served, scenes: list[Scene], answers: list[str]
) -> None:
    import openai

    async def flood() -> tuple[Counter[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key=KEY, max_retries=0) as client:

            def one(number: int) -> "asyncio.Task[Any]":
                # Batches of one, so that the queue fills.
                own = {"keep": 0.25, "repetition_penalty": 1 + (number + 1) / 1e4}
                asked = scenes[number % len(scenes)].messages
                return asyncio.ensure_future(ask(client, asked, extra_body=own))

            early = [one(number) for number in range(2)]
            await asyncio.sleep(0.5)
            tasks = [one(number) for number in range(2, WAITING + 60)]
            while waiting(served) < WAITING:
                await asyncio.sleep(0.02)
            with pytest.raises(openai.RateLimitError) as caught:
                await ask(client, scenes[0].messages)
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.code == "server_full"
            refused = Counter(type(task.exception()).__name__ for task in tasks if task.done()
                              and task.exception() is not None)  # fmt: skip
            texts = [reply.choices[0].message.content for reply in await asyncio.gather(*early)]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return refused, texts

    refused, texts = asyncio.run(flood())
    assert set(refused) == {"RateLimitError"}
    assert texts == answers[:2]  # so small a penalty changes nothing
    from openai import OpenAI

    with OpenAI(base_url=served.url, api_key=KEY, max_retries=5) as client:
        for number in (10, 11):
            reply = ask(client, scenes[number].messages)
            assert reply.choices[0].message.content == answers[number]


@pytest.fixture
def ending(compiled: dict[str, str]) -> Iterator[ServerProcess]:
    """A server that a test ends."""
    words = ["--model", "pocket", "--max-batch", "4", "--keep", "0.25"]
    with ServerProcess(words, compiled) as process:
        yield process


def test_sigterm_loses_no_accepted_request(
    ending: ServerProcess, scenes: list[Scene], answers: list[str]
) -> None:
    parts = urlsplit(ending.url)
    bodies = [
        json.dumps({"model": "pocket", "messages": scene.messages, "max_tokens": 16,
                    "stream": number % 4 == 3}).encode()
        for number, scene in enumerate(scenes[:24])
    ]  # fmt: skip
    replies: dict[int, str] = {}

    def post(number: int) -> None:
        own = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)
        own.request("POST", "/v1/chat/completions", bodies[number],
                    {"content-type": "application/json"})  # fmt: skip
        response = own.getresponse()
        content = response.read().decode()
        assert response.status == 200, content
        if number % 4 == 3:
            events = [json.loads(line[6:]) for line in content.splitlines() if line[6:7] == "{"]
            assert content.endswith("data: [DONE]\n\n")
            replies[number] = "".join(
                event["choices"][0]["delta"].get("content", "") for event in events
            )
        else:
            replies[number] = json.loads(content)["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=post, args=(number,)) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    health = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    while True:
        health.request("GET", "/health")
        figures = json.loads(health.getresponse().read())
        if figures["waiting"] + figures["running"] + len(replies) == len(bodies):
            break
        time.sleep(0.01)
    accepted = len(bodies) - len(replies)
    ending.stop()
    for thread in threads:
        thread.join(120)
    assert ending.wait(60) == 0
    assert accepted > 4  # there was something to lose
    assert [replies[number] for number in range(len(bodies))] == answers[: len(bodies)]
    with pytest.raises(OSError):
        socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=5)
    assert not [line for line in ending.said if "Traceback" in line]
