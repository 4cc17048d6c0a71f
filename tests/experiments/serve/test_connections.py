"""Connections of clients that do not read, or do not end what they begin to say."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from resprune_jax.experiments.serve.web import server as module

WAIT = 20.0
"""Seconds that nothing here takes."""


class App:
    """Answers /endless with more than any connection takes, and all else with a word."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200,
                    "headers": [(b"transfer-encoding", b"chunked")]})  # fmt: skip
        if scope["path"] == "/endless":
            for _ in range(2000):
                await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
            self.ended.set()
        await send({"type": "http.response.body", "body": b"word"})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[App, tuple[str, int]]]:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(module, "UNREAD_SECONDS", 0.3)
    app, own = App(), module.listen("127.0.0.1", 0)
    address = own.getsockname()
    server = module.make_server(app, drain_seconds=5)
    thread = threading.Thread(target=server.run, args=([own],))
    thread.start()
    yield app, address
    server.should_exit = True
    thread.join(WAIT)
    assert not thread.is_alive()


def ask(client: socket.socket) -> None:
    """A whole request, and its answer."""
    client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    said = b""
    while not said.endswith(b"0\r\n\r\n"):
        more = client.recv(1000)
        assert more
        said += more
    assert said.startswith(b"HTTP/1.1 200") and b"word" in said


def test_a_client_that_does_not_read(served: tuple[App, tuple[str, int]]) -> None:
    """Its request ends, so that nothing is held for it."""
    app, address = served
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert app.ended.wait(WAIT)


def test_a_request_that_does_not_come(served: tuple[App, tuple[str, int]]) -> None:
    """The first one or a later one: half a head closes the connection; nothing leaves it open."""
    _, address = served
    for before, half in ((0, b""), (0, b"GET / HT"), (1, b"GET / HT"), (3, b"G")):
        with socket.create_connection(address, timeout=WAIT) as client:
            for _ in range(before):
                ask(client)
            client.sendall(half)
            assert client.recv(1000) == b""
    with socket.create_connection(address, timeout=WAIT) as client:
        for pause in (0.0, 0.6):  # between requests it stays open for longer
            time.sleep(pause)
            ask(client)
