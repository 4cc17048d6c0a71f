"""The endpoint without a model behind it: time, clients that leave, and what is held meanwhile."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from resprune_jax.experiments.serve.batches.worker import Job, Worker
from resprune_jax.experiments.serve.requests.room import Hold, Room
from resprune_jax.experiments.serve.telling.errors import RequestError
from resprune_jax.experiments.serve.telling.metrics import Metrics
from resprune_jax.experiments.serve.web.chat import Chat, Limits

SCOPE = {"headers": [(b"content-type", b"application/json")]}


class Judge:
    """Stands for the admission: takes bytes, and does not end before it is told to."""

    name = "it"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.refusal: RequestError | None = None

    def admit(self, body: bytes, hold: Hold) -> tuple[str, Any]:
        self.began.set()
        hold.add(100)
        self.gate.wait(30)
        try:
            hold.add(100)
        except RequestError as refusal:
            self.refusal = refusal
            raise
        asked = SimpleNamespace(stream=False, include_usage=False)
        return "key", SimpleNamespace(asked=asked)


def ask(judge: Judge, room: Room, worker: Worker, *, seconds: float, leave: bool) -> int:
    """One request; its status, 0 for none."""
    statuses: list[int] = []

    async def asked() -> None:
        with ThreadPoolExecutor(1) as pool:
            limits = Limits(1000, 5, seconds)
            chat = Chat(judge, worker, Metrics(), room, limits, pool)  # type: ignore[arg-type]
            coming = [{"type": "http.request", "body": b"{}"}]

            async def receive() -> Any:
                if coming:
                    return coming.pop()
                while not (leave and judge.began.is_set()):
                    await asyncio.sleep(0.005)
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                statuses.append(message.get("status", 0))

            try:
                await asyncio.wait_for(chat(SCOPE, receive, send), 20)
                assert room.taken == 0
            finally:
                judge.gate.set()

    asyncio.run(asked())
    return statuses[0] if statuses else 0


@pytest.mark.parametrize(("seconds", "leave", "status"), [(0.05, False, 504), (60, True, 0)])
def test_a_request_that_is_read_for_long(seconds: float, leave: bool, status: int) -> None:
    """Its time counts from its body's end, and whoever leaves meanwhile takes it along."""
    judge, room = Judge(), Room(1000)
    worker = Worker(lambda _: None, rows=1, seconds=0, most=1)
    assert ask(judge, room, worker, seconds=seconds, leave=leave) == status
    assert judge.refusal is not None  # the thread that still reads it gets nothing more
    assert room.taken == 0 and worker.waiting == 0


class Bytes(bytearray):
    """A body that can be watched."""


def test_a_body_is_let_go_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said to be free is free while the model works."""
    from resprune_jax.experiments.serve.web import chat as module

    alive: list[Callable[[], Any]] = []
    seen: list[Any] = []

    async def read(*_: Any) -> Any:
        body = Bytes(b"{}")
        alive.append(weakref.ref(body))
        return body

    def answer(jobs: Any) -> None:
        job: Job
        for job in jobs:
            end = time.monotonic() + 5
            while alive[0]() is not None and time.monotonic() < end:
                gc.collect()
                time.sleep(0.01)
            seen.append(alive[0]())
            job.end(error=RequestError(418, "done"))

    monkeypatch.setattr(module, "read_body", read)
    judge = Judge()
    judge.gate.set()
    worker = Worker(answer, rows=1, seconds=0, most=1)
    worker.start()
    assert ask(judge, Room(1000), worker, seconds=60, leave=False) == 418
    assert seen == [None]
    assert worker.close(30)
