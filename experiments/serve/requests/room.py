"""How much memory requests hold together: bodies that come in, and pictures that wait."""

import threading

from resprune_jax.experiments.serve.telling.errors import full


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
    """What one request holds of a room; a context that gives it back."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self.count = 0

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            RequestError: see `Room.take`.
        """
        self._room.take(count)
        self.count += count

    def drop(self, count: int) -> None:
        """Hold less."""
        self._room.give(count)
        self.count -= count

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self._room.give(self.count)
        self.count = 0
