"""Signals that end a command: Ctrl-C (SIGINT) and SIGTERM, whenever they come.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a callback of the
garbage collector or of JAX it is printed and lost, and the run goes on; some libraries turn it into
another error. So the signal is noted too: what was lost is sent again, and the loop over rows looks
before it begins a batch and before it keeps what one gave. Nothing here imports anything slow: it
listens while the rest is imported.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.05
"""Seconds after which a lost interrupt is sent again, elsewhere in the program."""
PATIENCE_S = 1.0
"""Seconds before a second signal interrupts once more: the first is being dealt with."""


class _Listener:
    """The state of the one main thread."""

    def __init__(self) -> None:
        self.depth = 0
        self.forget()

    def forget(self) -> None:
        self.number: int | None = None  # the first signal that came
        self.raised = -PATIENCE_S  # when it was last turned into an exception
        self.lost = False  # that exception was swallowed
        self.held = 0  # sections that must not be torn
        self.over = False  # the command has ended, nothing is left to interrupt
        self.timer: threading.Timer | None = None

    def hear(self, number: int, _: Any) -> None:
        """The handler of the signals."""
        self.number = self.number or number
        if self.held or self.over:
            return
        if self.lost or time.monotonic() - self.raised >= PATIENCE_S:
            self.lost, self.raised = False, time.monotonic()
            raise KeyboardInterrupt

    def send_again(self) -> None:
        """Interrupt once more in a moment, from a thread: here it would be swallowed too."""
        self.lost = True
        self.timer = threading.Timer(AGAIN_S, signal.raise_signal, (self.number,))
        self.timer.daemon = True
        self.timer.start()


_listener = _Listener()


@contextlib.contextmanager
def listening(*, for_good: bool = False) -> Iterator[None]:
    """Hear the signals inside; a context in another one, or in another thread, changes nothing.

    Args:
        for_good: the process ends behind the context: later signals are ignored, so that none of
            them disturbs the interpreter's own end.
    """
    if threading.current_thread() is not threading.main_thread() or _listener.depth:
        yield
        return
    _listener.forget()
    _listener.depth = 1
    # A signal that the caller ignores (nohup, a shell's background job) stays ignored.
    heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    before = {each: signal.getsignal(each) for each in heard}
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt) and _listener.number is not None:
            if not _listener.over:
                _listener.send_again()
        else:
            hook(lost)

    sys.unraisablehook = unraisable
    try:
        for each in heard:
            signal.signal(each, _listener.hear)
        yield
    finally:
        _listener.over = True
        if _listener.timer is not None:
            _listener.timer.cancel()
            _listener.timer.join()
        for each in heard:
            signal.signal(each, signal.SIG_IGN if for_good else before[each])
        sys.unraisablehook = hook
        _listener.depth = 0


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """A section that no signal tears: it is heard at the end of it."""
    _listener.held += 1
    try:
        yield
    finally:
        _listener.held -= 1
    check()


def asked() -> bool:
    """Whether a signal has come."""
    return _listener.depth > 0 and _listener.number is not None


def check() -> None:
    """Stop here if a signal has come, even if its exception was swallowed.

    Raises:
        KeyboardInterrupt: it has.
    """
    if asked() and not _listener.over and not _listener.held:
        raise KeyboardInterrupt


def status() -> int:
    """End the listening: nothing interrupts from here on.

    Returns:
        The exit status of a command that a signal ended, as shells count: 130 for SIGINT, 143 for
        SIGTERM.
    """
    _listener.over = True
    return 128 + (_listener.number or signal.SIGINT)
