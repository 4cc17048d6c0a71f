"""POST /v1/chat/completions: one request from its body to its answer, its end, or its refusal."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from resprune_jax.experiments.serve.batches.worker import End, Job, Part, Worker
from resprune_jax.experiments.serve.requests.admission import Admission, Work
from resprune_jax.experiments.serve.requests.room import Hold, Room
from resprune_jax.experiments.serve.telling.errors import (
    RequestError,
    closing,
    of_error,
    timed_out,
)
from resprune_jax.experiments.serve.telling.metrics import Metrics
from resprune_jax.experiments.serve.telling.replies import Reply, encode, event
from resprune_jax.experiments.serve.web.asgi import (
    GoneError,
    Receive,
    Scope,
    Send,
    header,
    read_body,
    refuse,
    reply,
    start,
)

logger = logging.getLogger("resprune_jax")

STREAM = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""Headers that keep proxies from holding a stream back."""


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        body: bytes.
        body_seconds: for the body to come.
        seconds: from the body's end to the answer's.
    """

    body: int
    body_seconds: float
    seconds: float


class Chat:
    """The endpoint, an ASGI application.

    Args:
        admission: judges bodies, on threads of `pool`.
        worker: answers.
        metrics: are told.
        room: that bodies and pictures take.
        limits: of a request.
        pool: threads.
    """

    def __init__(
        self,
        admission: Admission,
        worker: Worker,
        metrics: Metrics,
        room: Room,
        limits: Limits,
        pool: Executor,
    ) -> None:
        self._admission = admission
        self._worker = worker
        self._metrics = metrics
        self._room = room
        self._limits = limits
        self._pool = pool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        counted = _Counted(send)
        with Hold(self._room) as hold:
            try:
                await self._answer(scope, receive, counted, hold)
            except GoneError:
                self._metrics.cancelled.labels("queue" if counted.read else "body").inc()
                return
            except RequestError as refusal:
                unread = receive if not counted.read and refusal.status != 408 else None
                await self._refused(refusal, counted, unread)
            except asyncio.CancelledError:  # the server is made to end at once
                await self._refused(closing(), counted, None)
            except Exception as error:
                logger.error("a request failed: unexpected %s: %s", type(error).__name__, error)
                logger.debug("it failed here", exc_info=True)
                await self._refused(of_error(error), counted, None)
        self._metrics.requests.labels(str(counted.status)).inc()

    async def _refused(
        self, refusal: RequestError, send: "_Counted", receive: Receive | None
    ) -> None:
        if not send.status:
            await refuse(send, refusal, receive, close=refusal.status == 408)
            return
        # A stream has begun: its status is sent, so that the error is its last event.
        send.status = refusal.status
        await send({"type": "http.response.body", "body": event(refusal.body())})

    async def _body(self, scope: Scope, receive: Receive, hold: Hold) -> bytes:
        kind = header(scope, "content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(
                415, f"the body is application/json, got {kind[:60]!r} as its content-type",
                code="unsupported_media_type",
            )  # fmt: skip
        limits = self._limits
        return await read_body(scope, receive, limits.body, limits.body_seconds, hold)

    async def _answer(self, scope: Scope, receive: Receive, send: "_Counted", hold: Hold) -> None:
        body = await self._body(scope, receive, hold)  # nobody else has it: it goes when it is read
        send.read = True
        begin = time.monotonic()
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Part | End] = asyncio.Queue()
        job: Job | None = None

        def tell(one: Part | End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: a forced end
                loop.call_soon_threadsafe(events.put_nowait, one)

        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            async with asyncio.timeout(self._limits.seconds):
                reading = loop.run_in_executor(self._pool, self._admission.admit, body, hold)
                key, work = await _unless(gone, reading)
                hold.drop(len(body))
                del body, reading
                made = Job(key, tell, work)
                self._worker.submit(made)
                job = made
                await self._tell(
                    work, lambda: _unless(gone, asyncio.ensure_future(events.get())), send
                )
        except TimeoutError:
            raise timed_out(self._limits.seconds) from None
        finally:
            gone.cancel()
            if job is not None:
                self._worker.cancel(job)
                self._metrics.latency.observe(time.monotonic() - begin)

    async def _tell(self, work: Work, next_: Callable[[], Any], send: "_Counted") -> None:
        """Send what the worker tells."""
        answer = Reply(self._admission.name)
        while True:
            one = await next_()
            if isinstance(one, End) and one.error is not None:
                raise one.error
            if not work.asked.stream:
                if isinstance(one, End):
                    await reply(send, encode(answer.whole(one.made)))
                    return
                continue
            if not send.status:
                await start(send, kind="text/event-stream; charset=utf-8", headers=STREAM)
                await _more(send, answer.first())
            if isinstance(one, Part):
                await _more(send, answer.piece(one.text))
            else:
                last = answer.last(one.made, usage=work.asked.include_usage)
                await send({"type": "http.response.body", "body": last})
                return


async def _unless(gone: "asyncio.Future[None]", coming: "asyncio.Future[Any]") -> Any:
    """What comes, unless the client goes away before.

    Raises:
        GoneError: it does.
    """
    both: set[asyncio.Future[Any]] = {coming, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if coming.done():
            return coming.result()
    finally:
        coming.cancel()
    raise GoneError


class _Counted:
    """Sends, and remembers how far a request is.

    Attributes:
        read: whether its body was read.
        status: of the response, once that has begun.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.read = False
        self.status = 0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
