"""The one thread that owns the model: it takes batches from the queue and answers them."""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from resprune_jax.experiments.serve.batches.waiting import FullError, Waiting
from resprune_jax.experiments.serve.telling.errors import RequestError, broken, closing, full

logger = logging.getLogger("resprune_jax")


@dataclass(frozen=True)
class Part:
    """More of an answer's text."""

    text: str


@dataclass(frozen=True)
class End:
    """The end of a request: what it gave, or why it failed."""

    made: Any = None
    error: RequestError | None = None


@dataclass(eq=False)
class Job:
    """A request that was accepted.

    Attributes:
        key: jobs of one key can run in one batch.
        tell: is told of parts and of the end, from the worker's thread; of one end, and of nothing
            behind it.
        work: what the answerer needs to know of it.
        arrived: when it was made.
        over: whether its end was told, or nobody waits for it any more.
    """

    key: Hashable
    tell: Callable[[Part | End], None]
    work: Any = None
    arrived: float = field(default_factory=time.monotonic)
    over: bool = False

    def part(self, text: str) -> None:
        """Tell a part of the answer."""
        if not self.over and text:
            self.tell(Part(text))

    def end(self, made: Any = None, error: RequestError | None = None) -> None:
        """Tell the end, unless it was told or nobody waits for it."""
        if not self.over:
            self.over = True
            self.tell(End(made, error))


Answer = Callable[[Sequence[Job]], None]
"""Answers a batch: tells every job its end, in any order. It may leave jobs out that are over."""


class Worker:
    """Answers jobs in batches, one batch after the other, on a thread of its own.

    Args:
        answer: answers a batch.
        rows, seconds, most: see `Waiting`.
        watch: is told of every batch, with how long its jobs had waited.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        rows: int,
        seconds: float,
        most: int,
        watch: Callable[[Sequence[Job]], None] = lambda _: None,
    ) -> None:
        self._answer = answer
        self._watch = watch
        self._waiting: Waiting[Job] = Waiting(rows, seconds, most)
        self._changed = threading.Condition()
        self._closed = False
        self._running: Sequence[Job] = ()
        self._thread = threading.Thread(target=self._run, name="resprune-model", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Jobs of the batch that runs which still want an answer."""
        return sum(not job.over for job in self._running)

    def submit(self, job: Job) -> None:
        """Accept a job: from here on it is told an end, whatever happens, unless it is cancelled.

        Raises:
            RequestError: the queue is full, or the worker is closed.
        """
        with self._changed:
            if self._closed:
                raise closing()
            try:
                self._waiting.add(job)
            except FullError:
                raise full(
                    f"{self._waiting.most} requests are waiting, as many as may: ask again later"
                ) from None
            self._changed.notify()

    def cancel(self, job: Job) -> bool:
        """Nobody waits for this job any more: it leaves the queue, or its batch forgets it.

        Returns:
            Whether it was still waiting, so that nothing was computed for it.
        """
        with self._changed:
            job.over = True
            return self._waiting.remove(job)

    def close(self, seconds: float | None = None) -> bool:
        """Accept nothing more, answer what waits, and stop.

        Args:
            seconds: to wait for that; None for as long as it takes.

        Returns:
            Whether it has stopped.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next():
            self._running = batch
            self._watch(batch)
            try:
                self._answer(batch)
            except Exception as error:
                logger.error("a batch of %d requests failed: %s", len(batch), error)
                logger.debug("it failed here", exc_info=True)
            finally:
                self._running = ()
                for job in batch:
                    job.end(error=broken("this request's batch failed; the server's log says why"))

    def _next(self) -> list[Job]:
        """The next batch; empty when the worker is closed and nothing waits."""
        with self._changed:
            while True:
                now = time.monotonic()
                if batch := self._waiting.take(now, hurry=self._closed):
                    return batch
                if self._closed:
                    return []
                self._changed.wait(self._waiting.due(now))
