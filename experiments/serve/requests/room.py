"""How much memory requests hold together: bodies that come in, and pictures that wait."""

import threading

from resprune_jax.experiments.serve.telling.errors import broken, full


class Room:
    """A number of bytes that requests share.

    Args:
        most: bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take bytes.

        Raises:
            RequestError: others hold too many at this time.
        """
        with self._lock:
            if self.taken + count > self.most:
                raise full(
                    f"requests hold {self.taken} of {self.most} bytes of memory at this time:"
                    " ask again later"
                )
            self.taken += count

    def give(self, count: int) -> None:
        """Give bytes back."""
        with self._lock:
            self.taken -= count


class Hold:
    """What one request holds of a room; a context that gives it back.

    A thread that still reads a request which is over, since nobody waits for it any more, gets no
    more of the room.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._lock = threading.Lock()
        self._over = False
        self.count = 0

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            RequestError: see `Room.take`; or the request is over.
        """
        with self._lock:
            if self._over:
                raise broken("this request is over")
            self._room.take(count)
            self.count += count

    def drop(self, count: int) -> None:
        """Hold less."""
        with self._lock:
            if not self._over:
                self._room.give(count)
                self.count -= count

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            self._room.give(self.count)
            self.count = 0
