"""Requests that wait, and which of them run together next: no thread, no clock of its own."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Waits(Protocol):
    """What waits.

    Attributes:
        key: requests of one key can run in one batch.
        arrived: when it came, in seconds of any clock.
    """

    @property
    def key(self) -> Hashable:
        """See above."""

    @property
    def arrived(self) -> float:
        """See above."""


Job = TypeVar("Job", bound=Waits)


class FullError(Exception):
    """As many wait as may wait."""


class Waiting(Generic[Job]):
    """The queue. Whoever uses it from several threads holds a lock.

    A batch is formed around the request that has waited longest: it takes the others of its key in
    the order in which they came. It goes when it is full, or when that request has waited `seconds`
    for company.

    Args:
        rows: of a batch, at most.
        seconds: that the first request of a batch waits for others.
        most: requests that may wait.
    """

    def __init__(self, rows: int, seconds: float, most: int) -> None:
        self.rows = rows
        self.seconds = seconds
        self.most = most
        self._count = 0
        # Requests by key, and in it by identity, each in the order in which they came.
        self._groups: OrderedDict[Hashable, OrderedDict[int, Job]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def add(self, job: Job) -> None:
        """Let a request wait.

        Raises:
            FullError: too many do.
        """
        if self._count >= self.most:
            raise FullError
        self._groups.setdefault(job.key, OrderedDict())[id(job)] = job
        self._count += 1

    def remove(self, job: Job) -> bool:
        """Take a request out that nobody waits for any more.

        Returns:
            Whether it was there; it has been taken otherwise.
        """
        group = self._groups.get(job.key)
        if group is None or group.pop(id(job), None) is None:
            return False
        self._count -= 1
        if not group:
            del self._groups[job.key]
        return True

    def due(self, now: float) -> float | None:
        """Seconds until a batch can go, 0 if one can now; None if nothing waits."""
        if not self._count:
            return None
        if any(len(group) >= self.rows for group in self._groups.values()):
            return 0.0
        return max(0.0, self._head(self._oldest()).arrived + self.seconds - now)

    def take(self, now: float, *, hurry: bool = False) -> list[Job]:
        """The next batch; empty if none can go yet.

        Args:
            now: the time.
            hurry: let a request go without waiting for company.
        """
        if not self._count:
            return []
        key = self._oldest()
        if not hurry and self._head(key).arrived + self.seconds > now:
            full = [each for each, group in self._groups.items() if len(group) >= self.rows]
            if not full:
                return []
            key = min(full, key=lambda each: self._head(each).arrived)
        group = self._groups[key]
        batch = [group.popitem(last=False)[1] for _ in range(min(self.rows, len(group)))]
        self._count -= len(batch)
        if not group:
            del self._groups[key]
        return batch

    def _head(self, key: Hashable) -> Job:
        return next(iter(self._groups[key].values()))

    def _oldest(self) -> Hashable:
        return min(self._groups, key=lambda key: self._head(key).arrived)
