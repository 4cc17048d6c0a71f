"""The worker: each job is told one end, whatever comes, fails, leaves, or when it is closed."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.experiments.serve.batches.worker import End, Job, Part, Worker
from resprune_jax.experiments.serve.telling.errors import RequestError

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from("aab"), st.sampled_from(["answer", "fail"])),
        st.tuples(st.just("leave"), st.integers(0, 30), st.just("")),
        st.tuples(st.just("rest"), st.sampled_from([0.0, 0.0005, 0.002]), st.just("")),
    ),
    max_size=40,
)  # fmt: skip


class Fake:
    """A model that answers with the number of the job, in no order, and fails where it is told."""

    def __init__(self) -> None:
        self.batches: list[list[Job]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, jobs: Sequence[Job]) -> None:
        self.gate.wait()
        self.batches.append(list(jobs))
        for job in reversed(jobs):
            if job.work == "fail":
                raise ValueError("planted")
            job.part("some")
            job.end(made=job.work)
            job.end(made="twice")


def made(key: str, work: Any) -> tuple[Job, list[Part | End]]:
    told: list[Part | End] = []
    return Job(key, told.append, work), told


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 5), st.sampled_from([0.0, 0.001]))
def test_each_is_told_one_end(steps: list[tuple[Any, ...]], rows: int, seconds: float) -> None:
    fake = Fake()
    worker = Worker(fake, rows=rows, seconds=seconds, most=1000)
    worker.start()
    jobs: list[tuple[Job, list[Part | End]]] = []
    left: set[int] = set()
    freed: set[int] = set()
    for what, value, work in steps:
        if what == "come":
            jobs.append(made(value, work if work == "fail" else len(jobs)))
            worker.submit(jobs[-1][0])
        elif what == "leave" and value < len(jobs):
            left.add(value)
            if worker.cancel(jobs[value][0]):
                freed.add(value)
        elif what == "rest":
            time.sleep(value)
    assert worker.close(30)
    ran = Counter(id(job) for batch in fake.batches for job in batch)
    assert max(ran.values(), default=1) == 1
    for batch in fake.batches:
        assert len(batch) <= rows and len({job.key for job in batch}) == 1
    for number, (job, told) in enumerate(jobs):
        ends = [one for one in told if isinstance(one, End)]
        assert ends == told[-1:] or number in left
        assert len(ends) == 1 or (number in left and not ends)
        assert (id(job) in ran) == (number not in freed)
        for end in ends:
            if end.error is None:
                assert end.made == job.work  # nobody's else
            else:
                assert end.error.status == 500
    with pytest.raises(RequestError) as caught:
        worker.submit(made("a", 0)[0])
    assert caught.value.status == 503


def test_the_queue_has_a_limit_and_cancelled_jobs_make_room() -> None:
    fake = Fake()
    fake.gate.clear()
    worker = Worker(fake, rows=2, seconds=0.0, most=3)
    worker.start()
    running = made("a", "first")
    worker.submit(running[0])
    while worker.waiting:
        time.sleep(0.001)
    waiting = [made("a", number) for number in range(3)]
    for job, _ in waiting:
        worker.submit(job)
    late = made("a", "late")
    with pytest.raises(RequestError) as caught:
        worker.submit(late[0])
    assert caught.value.status == 429 and caught.value.headers["retry-after"]
    assert worker.cancel(waiting[0][0])
    worker.submit(late[0])
    assert (worker.waiting, worker.running) == (3, 1)
    fake.gate.set()
    assert worker.close(30)
    assert waiting[0][1] == []
    for job, told in (running, *waiting[1:], late):
        assert [one.made for one in told if isinstance(one, End)] == [job.work]


def test_one_that_left_while_it_ran_is_told_nothing() -> None:
    fake = Fake()
    fake.gate.clear()
    worker = Worker(fake, rows=4, seconds=0.0, most=9)
    worker.start()
    job, told = made("a", 1)
    worker.submit(job)
    while worker.waiting:
        time.sleep(0.001)
    assert not worker.cancel(job)
    assert worker.running == 0
    fake.gate.set()
    assert worker.close(30) and told == []


def test_a_batch_waits_for_company_but_not_for_ever() -> None:
    fake = Fake()
    worker = Worker(fake, rows=3, seconds=0.2, most=9)
    worker.start()
    jobs = [made("a", number) for number in range(4)]
    for job, _ in jobs:
        worker.submit(job)
    while not jobs[-1][1]:
        time.sleep(0.005)
    assert [len(batch) for batch in fake.batches] == [3, 1]
    assert worker.close(30)
