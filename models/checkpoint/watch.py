"""A download that cannot go on for ever: limits on what a server may make us wait for and hold.

The Hub's own client asks without a limit of time, and a limit for each reading would not help
against a server that sends a byte a second. So a download runs beside its caller, who looks at what
has come, and ends it when too little does.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import close_session, get_session

T = TypeVar("T")

READ_S = 10.0
"""Seconds that one reading from a server may wait."""

STALL_S = 20.0
"""Seconds after which a download ends that brought less than `LEAST_BYTES` in them."""

LEAST_BYTES = 32 << 10
"""What a download must bring in `STALL_S`, in bytes; an answer to a request counts as so much."""

LARGEST_ANSWER = 32 << 20
"""Bytes of a list of files or an error's page, at most."""

MOST_ANSWERS = 300
"""Answers before the files themselves come: a list has a few pages."""

GRACE_S = 3.0
"""Seconds that a download which was ended has to notice."""


class EndedError(Exception):
    """A download was ended here; the message says why, for the end of a sentence."""


def watched(
    download: Callable[[], T], folder: Path, *, files: int, largest: int | None = None
) -> T:
    """Run a download, and end it when the server is silent, slow or sends too much.

    Args:
        download: what asks the Hub; it runs in a thread of its own.
        folder: where files arrive.
        files: how many there are.
        largest: bytes of a file, at most; None for no limit.

    Returns:
        What the download gives.

    Raises:
        EndedError: it was ended.
        Exception: whatever the download raises.
    """
    rules = _Rules(files, largest)
    outcome: list[tuple[bool, Any]] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append((True, download()))
        except BaseException as error:  # handed to the caller
            outcome.append((False, error))
        finally:
            done.set()

    with _installed(rules):
        # A thread that hangs in spite of all does not keep the process from ending.
        threading.Thread(target=run, daemon=True, name="download").start()
        try:
            _wait(done, rules, folder)
        except BaseException:
            rules.end("it was interrupted")
            close_session()
            raise
        if not done.is_set():
            _give_up(done, rules)
    if rules.ended:
        raise EndedError(rules.ended)
    good, value = outcome[0]
    if not good:
        raise value
    return value


def _wait(done: threading.Event, rules: "_Rules", folder: Path) -> None:
    """Wait until a download is done, or must end."""
    seen, since = (_bytes_in(folder), rules.answers), time.monotonic()
    pause = 0.01
    while not done.wait(pause):
        pause = min(2 * pause, 0.25)
        now = _bytes_in(folder), rules.answers
        if now[0] - seen[0] >= LEAST_BYTES or now[1] > seen[1]:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > STALL_S:
            rules.end(f"less than {LEAST_BYTES >> 10} KiB came in {STALL_S:g} seconds")
        if rules.ended:
            return


def _give_up(done: threading.Event, rules: "_Rules") -> None:
    """Close the connections until the download notices, or for a moment."""
    limit = time.monotonic() + GRACE_S
    while not done.is_set() and time.monotonic() < limit:
        close_session()
        rules.install()  # in the client that retries will be made with
        done.wait(0.5)


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder, those that are still being written included."""
    total = 0
    try:
        for entry in folder.iterdir():
            try:
                total += entry.lstat().st_size
            except OSError:
                continue  # it was just renamed
    except OSError:
        return 0
    return total


class _Rules:
    """What every request of a download must keep to."""

    def __init__(self, files: int, largest: int | None) -> None:
        self.ended = ""
        self.answers = 0
        self._most = MOST_ANSWERS + 10 * files
        self._largest = largest
        self._clients: list[Any] = []

    def end(self, why: str) -> None:
        """From now on every request fails."""
        self.ended = self.ended or why

    def install(self) -> None:
        """Give the Hub's client these rules."""
        client = get_session()
        if not any(client is known for known in self._clients):
            client.event_hooks["request"].append(self.request)
            client.event_hooks["response"].append(self.response)
            self._clients.append(client)

    def remove(self) -> None:
        """Take them back."""
        for client in self._clients:
            for name, hook in (("request", self.request), ("response", self.response)):
                if hook in client.event_hooks[name]:
                    client.event_hooks[name].remove(hook)

    def request(self, request: Any) -> None:
        """Before a request is sent."""
        if self.ended:
            raise EndedError(self.ended)
        # What is compressed could unfold to any size.
        request.headers["accept-encoding"] = "identity"
        limits = dict(request.extensions.get("timeout") or {})
        for name in ("connect", "read", "write", "pool"):
            limits[name] = min(limits.get(name) or READ_S, READ_S)
        request.extensions = {**request.extensions, "timeout": limits}

    def response(self, response: Any) -> None:
        """When the head of an answer is there."""
        if response.status_code < 400:
            self.answers += 1
        if self.answers > self._most:
            self.end(f"the server has more than {self._most} answers for {self._most // 10} files")
        encoding = response.headers.get("content-encoding", "identity")
        if encoding not in ("", "identity"):
            self.end(f"the server sends {encoding[:20]!r} data, which was not asked for")
        if self.ended:
            raise EndedError(self.ended)
        listing = response.request.url.path.startswith("/api/") or response.status_code >= 300
        limit = LARGEST_ANSWER if listing else self._largest
        if limit is not None:
            response.stream = _capped(response.stream, limit, self)


def _capped(stream: Any, limit: int, rules: _Rules) -> Any:
    """The body of an answer, with an end."""
    # The client asks for an instance of its own base class, whatever library it comes from.
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "SyncByteStream")

    class Capped(base):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[bytes]:
            total = 0
            for part in stream:
                total += len(part)
                if total > limit:
                    rules.end(f"the server sends more than {limit >> 20} MiB for a small file")
                if rules.ended:
                    raise EndedError(rules.ended)
                yield part

        def close(self) -> None:
            stream.close()

    return Capped()


@contextmanager
def _installed(rules: _Rules) -> Iterator[None]:
    rules.install()
    try:
        yield
    finally:
        rules.remove()
