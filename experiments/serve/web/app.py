"""The endpoints and what stands in front of them all: the key, the host's name, forms of errors."""

import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from resprune_jax.experiments.serve.telling.errors import (
    AUTHENTICATION,
    REQUEST,
    RequestError,
    unknown_model,
)
from resprune_jax.experiments.serve.telling.metrics import CONTENT_TYPE, Metrics
from resprune_jax.experiments.serve.telling.replies import encode
from resprune_jax.experiments.serve.web.asgi import Receive, Scope, Send, header, refuse
from resprune_jax.experiments.serve.web.chat import Chat

OPEN = ("/health",)
"""Paths that need no key."""

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Lets requests through that may be asked.

    Args:
        app: behind it.
        keys: one of them must be the request's bearer token; none: no key is needed.
        hosts: names that the request may have asked by; none: any. A page that a browser shows can
            make a foreign name lead to this machine, but not ask by another name than its own.
    """

    def __init__(self, app: Any, keys: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return
        if self._hosts and _name(header(scope, "host")) not in self._hosts:
            refusal = RequestError(
                421, "this server is not asked by this name", code="unknown_host"
            )
            await refuse(send, refusal, receive)
            return
        if self._keys and scope["path"] not in OPEN and not self._knows(scope):
            given = header(scope, "authorization")
            said = "Incorrect API key provided" if given else (
                "no API key was given: send it as Authorization: Bearer KEY"
            )  # fmt: skip
            refusal = RequestError(
                401, said, kind=AUTHENTICATION, code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
            await refuse(send, refusal, receive)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        scheme, _, token = header(scope, "authorization").partition(" ")
        own = token.strip().encode("latin-1")
        # All of them are compared, in a time that says nothing of which fits.
        found = [hmac.compare_digest(own, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)


def _name(host: str) -> str:
    """The name of a Host header, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def application(
    chat: Chat,
    metrics: Metrics,
    *,
    model: str,
    facts: dict[str, Any],
    health: Callable[[], tuple[bool, dict[str, Any]]],
    keys: Sequence[str] = (),
    hosts: Sequence[str] = (),
) -> Guard:
    """The whole server as an ASGI application.

    Args:
        chat: answers.
        metrics: of it.
        model: its name.
        facts: what /v1/models says of it beside what OpenAI's says.
        health: whether all is well, and figures.
        keys, hosts: see `Guard`.
    """
    card = {"id": model, "object": "model", "created": int(time.time()),
            "owned_by": "resprune-jax", **facts}  # fmt: skip

    async def models(_: Request) -> Response:
        return _json({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != model:
            return _refused(unknown_model(name[:100], model))
        return _json(card)

    async def healthy(_: Request) -> Response:
        well, figures = health()
        return _json({"status": "ok" if well else "failed", **figures}, 200 if well else 503)

    async def told(_: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = f"{request.method} {request.url.path[:100]}"
        message = {
            404: f"there is no {said}: see /v1/models and /v1/chat/completions",
            405: f"{said} is not allowed",
        }.get(error.status_code, error.detail)
        return _refused(RequestError(error.status_code, message, kind=REQUEST,
                                headers=dict(error.headers or {})))  # fmt: skip

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", one_model, methods=["GET"]),
        Route("/health", healthy, methods=["GET"]),
        Route("/metrics", told, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: http_error})
    app.router.redirect_slashes = False
    return Guard(app, keys, hosts)


def _json(value: Any, status: int = 200) -> Response:
    return Response(encode(value), status, media_type="application/json")


def _refused(refusal: RequestError) -> Response:
    return Response(
        encode(refusal.body()), refusal.status, refusal.headers, media_type="application/json"
    )
