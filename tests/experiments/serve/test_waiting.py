"""The queue: whatever comes, leaves and is taken in whatever order, against a plain list."""

from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resprune_jax.experiments.serve.batches.waiting import FullError, Waiting

ROWS, SECONDS, MOST = 3, 0.5, 7


@dataclass(eq=False)
class Request:
    key: Hashable
    arrived: float


class Queue(RuleBasedStateMachine):
    """The same steps on a list of requests in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Waiting[Request] = Waiting(ROWS, SECONDS, MOST)
        self.plain: list[Request] = []
        self.gone: list[Request] = []
        self.now = 0.0

    @rule(key=st.sampled_from("abc"))
    def add(self, key: str) -> None:
        request = Request(key, self.now)
        if len(self.plain) == MOST:
            with pytest.raises(FullError):
                self.queue.add(request)
            return
        self.queue.add(request)
        self.plain.append(request)

    @rule(seconds=st.sampled_from([0.1, 0.3, 0.6]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.plain)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.plain))
        assert self.queue.remove(request)
        self.plain.remove(request)
        self.gone.append(request)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def cancel_again(self, data: st.DataObject) -> None:
        assert not self.queue.remove(data.draw(st.sampled_from(self.gone)))

    @rule(hurry=st.booleans())
    def take(self, hurry: bool) -> None:
        wanted: list[Request] = []
        if self.plain:
            key = self.plain[0].key
            if not hurry and self.plain[0].arrived + SECONDS > self.now:
                full = [one.key for one in self.plain
                        if sum(other.key == one.key for other in self.plain) >= ROWS]  # fmt: skip
                key = full[0] if full else None
            wanted = [one for one in self.plain if key is not None and one.key == key][:ROWS]
        assert self.queue.take(self.now, hurry=hurry) == wanted
        self.plain = [one for one in self.plain if one not in wanted]
        self.gone += wanted

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.plain)
        due = self.queue.due(self.now)
        assert (due is None) == (not self.plain)
        if due == 0:
            batch = Waiting.take(self.queue, self.now)
            assert batch
            for one in batch:
                self.plain.remove(one)
            self.gone += batch


Queue.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestQueue = Queue.TestCase


def test_the_oldest_key_goes_first_unless_another_is_full() -> None:
    queue: Waiting[Request] = Waiting(2, 1.0, 10)
    first, *others = [Request(key, at) for at, key in enumerate("abb")]
    for one in (first, *others):
        queue.add(one)
    assert queue.take(0.5) == others  # full, and nobody of a has waited long enough
    assert queue.take(0.9) == [] and queue.due(0.9) == pytest.approx(0.1)
    assert queue.take(1.0) == [first]


def test_of_two_full_keys_the_older_goes_first() -> None:
    queue: Waiting[Request] = Waiting(2, 9.0, 10)
    waiting = [Request(key, at) for at, key in enumerate("abccbd")]
    for one in waiting:
        queue.add(one)
    assert queue.take(6.0) == [waiting[1], waiting[4]]
    assert queue.take(6.0) == waiting[2:4]
    assert queue.take(6.0) == []
