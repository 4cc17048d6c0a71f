"""The process that listens: its socket, its signals, and clients that say nothing."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resprune_jax.errors import CallError

HEAD_SECONDS = 20.0
"""For the head of a request to come, once its connection is there or its first bytes are."""

UNREAD_SECONDS = 60.0
"""For a client to read what was sent, once more waits for it than a connection takes at a time."""


class Protocol(H11Protocol):
    """HTTP/1.1 of a connection, which is closed where no request comes, or nobody reads."""

    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request that has begun to come, and no longer for one that did."""
        super().data_received(data)
        if not self._idle:
            self._wait_no_longer()
        elif self._patience is None and self.timeout_keep_alive_task is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._wait_no_longer()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads."""
        if self._unread is not None:
            self._unread.cancel()
        super().resume_writing()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _wait_no_longer(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._idle:
            self.transport.close()


class Server(uvicorn.Server):
    """Ends at SIGTERM and Ctrl-C once every request that came is answered; at a second one, now."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear the signals inside; those who heard them before do so again behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        own = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self._hear) for each in own}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _hear(self, *_: Any) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        CallError: the address is no address of this machine, or is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CallError(f"--host {host}: {error.strerror or error}") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        raise CallError(f"--host {host} --port {port} cannot be listened on: {error.strerror}"
                        ) from None  # fmt: skip
    return made


def make_server(app: Any, *, drain_seconds: float) -> Server:
    """A server for an application.

    Args:
        app: of ASGI.
        drain_seconds: for what runs when it is told to end.
    """
    config = uvicorn.Config(
        app, http=Protocol, loop="asyncio", ws="none", lifespan="off", interface="asgi3",
        access_log=False, log_config=None, log_level="error", server_header=False,
        proxy_headers=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )  # fmt: skip
    return Server(config)
