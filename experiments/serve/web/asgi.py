"""What an endpoint needs of ASGI: a body within limits, replies, and errors in OpenAI's form."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from resprune_jax.experiments.serve.requests.room import Hold
from resprune_jax.experiments.serve.telling.errors import RequestError, too_large
from resprune_jax.experiments.serve.telling.replies import encode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DRAIN_BYTES, DRAIN_SECONDS = 2**28, 10.0
"""What is read and thrown away of a refused body, so that its sender reads why it was refused."""


class GoneError(Exception):
    """The client went away."""


def header(scope: Scope, name: str) -> str:
    """A header of the request; "" if it is not there."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), "")


async def read_body(scope: Scope, receive: Receive, most: int, seconds: float, hold: Hold) -> bytes:
    """The body of a request.

    Args:
        scope, receive: of ASGI.
        most: bytes.
        seconds: for all of it to come.
        hold: grows with it.

    Raises:
        RequestError: it is larger, the server holds too much at this time, or it does not come.
        GoneError: the client went away meanwhile.
    """
    announced = header(scope, "content-length")
    if announced.isdecimal() and int(announced[:18]) > most:
        raise too_large(f"the body has {announced[:18]} bytes: {most} at most are read")
    body = bytearray()

    async def collect() -> None:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise GoneError
            piece = message.get("body", b"")
            if len(body) + len(piece) > most:
                raise too_large(f"the body has more than {most} bytes, as many as are read")
            hold.add(len(piece))
            body.extend(piece)
            if not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(collect(), seconds)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not come within {seconds:g} s", code="request_timeout"
        ) from None
    return bytes(body)


async def reply(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    """A whole response."""
    await start(send, status=status, kind=kind, length=len(body), headers=headers)
    await send({"type": "http.response.body", "body": body})


async def start(
    send: Send,
    *,
    status: int = 200,
    kind: str,
    length: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """The head of a response."""
    own = {"content-type": kind, **(headers or {})}
    if length is not None:
        own["content-length"] = str(length)
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in own.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def refuse(
    send: Send, refusal: RequestError, receive: Receive | None = None, *, close: bool = False
) -> None:
    """A response that says why there is no answer.

    Args:
        send: of ASGI.
        refusal: the reason.
        receive: given where the body was not read: the rest of it is, after the response, so that
            the client comes to reading it.
        close: end the connection.
    """
    body = encode(refusal.body())
    headers = dict(refusal.headers)
    if close or receive is not None:
        headers["connection"] = "close"
    await start(send, status=refusal.status, kind="application/json", length=len(body),
                headers=headers)  # fmt: skip
    await send({"type": "http.response.body", "body": body, "more_body": receive is not None})
    if receive is None:
        return
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    break
                left -= len(message.get("body", b""))
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})
