"""The time that a run of a benchmark may take, and what is still worth beginning in it."""

import math
import time
from collections.abc import Callable

OUT_OF_TIME = "not measured (time budget)"


class Budget:
    """Minutes for a whole run; what is begun is finished, since no compiler can be interrupted.

    So a row begins only if as much time is left as the last row of its kind took.
    """

    def __init__(
        self, minutes: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        """Start the clock.

        Args:
            minutes: of the run; None: as long as it takes.
            clock: tells seconds.
        """
        self._clock = clock
        self._end = math.inf if minutes is None else clock() + 60 * minutes
        self._took: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds that are left; infinity without a budget, never below 0."""
        return max(0.0, self._end - self._clock())

    def allows(self, kind: str) -> bool:
        """Whether a row of a kind can be expected to end in time."""
        left = self.left
        return left > 0 and left >= self._took.get(kind, 0.0)

    def took(self, kind: str, seconds: float) -> None:
        """Learn what a row of a kind took, everything included."""
        self._took[kind] = seconds
