"""A Hub that answers as no Hub should: silent, slow, broken, of other types, without end."""

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from huggingface_hub import close_session, constants

from resprune_jax.models.checkpoint import watch
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from resprune_jax.models.checkpoint.safetensors_files import read_part
from tests.attacks.harness import Fuzzer, draw
from tests.attacks.inputs.mutations import hostile, mutate, text

NAME = "hub"
COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llava"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "chat_template.jinja": b"{{ x }}",
}
ENDPOINTS = (
    "hf-mirror.com",
    "",
    "http://",
    "https://",
    "ftp://127.0.0.1",
    "file:///etc",
    "//127.0.0.1",
    "http://127.0.0.1:99999",
    "http://127.0.0.1:0",
    "http://[::1",
    "http://a b",
    "127.0.0.1:80",
    "http://127.0.0.1:1",
    "http://\u202e",
    "https://" + "x" * 3000,
    "http://127.0.0.1:1/\x1b[31m",
)
STATUSES = (
    100,
    201,
    204,
    206,
    301,
    302,
    304,
    308,
    400,
    401,
    403,
    404,
    410,
    416,
    418,
    429,
    451,
    500,
    502,
    503,
    504,
    599,
)
PLACES = (
    "/",
    "http://",
    "ftp://a/b",
    "//",
    "http://127.0.0.1:1/",
    "http://a b/",
    "javascript:1",
    "http://[",
    "x" * 9000,
    "\x00",
    "http://127.0.0.1:99999/x",
    "?",
)
CODES = ("RepoNotFound", "RevisionNotFound", "GatedRepo", "EntryNotFound", "x\x00", "DisabledRepo")


class Server:
    """Answers requests with what the case at hand says.

    Attributes:
        answer: writes to a request's socket; set anew by each case.
    """

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = good
        self.stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError, ValueError):
                    server.answer(self)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


_SERVER: list[Server] = []


def prepare() -> None:
    os.environ["NO_PROXY"] = "127.0.0.1"
    _SERVER.append(Server())
    with _at(_SERVER[0].url):
        resolve_checkpoint("lab/good")
    # What ends a download is the same at a fraction of the times. Only now: the good answer has to
    # come on a loaded machine too.
    watch.STALL_S, watch.READ_S, watch.GRACE_S = 0.4, 0.3, 0.6
    watch.LARGEST_ANSWER, watch.MOST_ANSWERS = 4 << 20, 40


@contextlib.contextmanager
def _at(endpoint: str) -> Iterator[None]:
    """The Hub's client pointed at an address, with an empty cache."""
    names = ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    before = {name: getattr(constants, name) for name in names}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        now = (endpoint, endpoint + "/{repo_id}/resolve/{revision}/{filename}", False, cache)
        for name, value in zip(names, now, strict=True):
            setattr(constants, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(constants, name, value)
            close_session()


def run(seed: int) -> None:
    numbers = draw(NAME, seed)
    server = _SERVER[0]
    if numbers.random() < 0.1:
        endpoint = ENDPOINTS[int(numbers.integers(len(ENDPOINTS)))]
    else:
        endpoint = server.url
    # From which request on it goes wrong: the first ones ask for the commit and the list.
    server.answer = _late(_bad(numbers), int(numbers.choice([0, 0, 1, 2, 3, 5])))
    with _at(endpoint):
        resolve_checkpoint("lab/small", judge=lambda folder: read_part(folder, "config.json"))


def _late(bad: Callable[[Any], None], after: int) -> Callable[[Any], None]:
    seen: list[None] = []

    def answer(request: Any) -> None:
        seen.append(None)
        (bad if len(seen) > after else good)(request)

    return answer


def good(request: Any) -> None:
    """The answer of a Hub."""
    path = request.path.split("?")[0]
    if "/tree/" in path:
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": str(len(content)) * 40}
            for name, content in FILES.items()
        ]
        return _send(request, 200, {}, json.dumps(entries).encode())
    if path.startswith("/api/"):
        names = [{"rfilename": name} for name in FILES]
        info = {"id": "lab/small", "sha": COMMIT, "siblings": names, "tags": []}
        return _send(request, 200, {}, json.dumps(info).encode())
    content = FILES.get(path.split("/")[-1])
    if content is None:
        return _send(request, 404, {"X-Error-Code": "EntryNotFound"}, b"")
    heads = {"ETag": f'"{path.split("/")[-1]}"', "X-Repo-Commit": COMMIT}
    return _send(request, 200, heads, content)


def _send(request: Any, status: int, heads: dict[str, str], body: bytes) -> None:
    length = heads.pop("Content-Length", str(len(body)))
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in heads.items()]
    request.wfile.write("\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n")
    if request.command != "HEAD":
        request.wfile.write(body)


def _bad(numbers: np.random.Generator) -> Callable[[Any], None]:
    """One way of going wrong."""
    ways = (
        _silent,
        _drip,
        _closing,
        _junk,
        _status,
        _redirect,
        _types,
        _types,
        _types,
        _heads,
        _endless,
        _packed,
        _short,
    )
    return ways[int(numbers.integers(len(ways)))](numbers)


def _silent(numbers: np.random.Generator) -> Callable[[Any], None]:
    return lambda request: time.sleep(20)


def _drip(numbers: np.random.Generator) -> Callable[[Any], None]:
    in_body = bool(numbers.random() < 0.5)

    def answer(request: Any) -> None:
        request.wfile.write(b"HTTP/1.1 200 x\r\n")
        if in_body:
            request.wfile.write(b"Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n[")
        for _ in range(200):
            time.sleep(0.1)
            request.wfile.write(b" " if in_body else b"X-A: b\r\n")
            request.wfile.flush()

    return answer


def _closing(numbers: np.random.Generator) -> Callable[[Any], None]:
    return lambda request: request.connection.close()


def _junk(numbers: np.random.Generator) -> Callable[[Any], None]:
    junk = bytes(numbers.integers(0, 256, int(numbers.choice([1, 50, 70_000])), np.uint8))
    return lambda request: request.wfile.write(junk)


def _status(numbers: np.random.Generator) -> Callable[[Any], None]:
    status = STATUSES[int(numbers.integers(len(STATUSES)))]
    heads = {"Retry-After": str(numbers.choice(["1", "99999", "-1", "x"]))}
    if numbers.random() < 0.5:
        heads["X-Error-Code"] = CODES[int(numbers.integers(len(CODES)))]
        heads["X-Error-Message"] = "m\x1b[31m" * int(numbers.choice([1, 3000]))
    body = text({"error": hostile(numbers)}) if numbers.random() < 0.5 else b"<html>" * 5000
    return lambda request: _send(request, status, dict(heads), body)


def _redirect(numbers: np.random.Generator) -> Callable[[Any], None]:
    status = int(numbers.choice([301, 302, 303, 307, 308]))
    place = PLACES[int(numbers.integers(len(PLACES)))]
    itself = bool(numbers.random() < 0.3)
    return lambda request: _send(
        request, status, {"Location": request.path if itself else place}, b""
    )


def _types(numbers: np.random.Generator) -> Callable[[Any], None]:
    """JSON of another shape in place of the commit or the list."""
    info: Any = {
        "id": "lab/small",
        "sha": COMMIT,
        "siblings": [{"rfilename": "config.json"}],
        "tags": [],
        "gated": False,
        "private": False,
        "lastModified": "2024-01-01",
    }
    tree: Any = [
        {
            "type": "file",
            "path": "config.json",
            "size": 23,
            "oid": "b" * 40,
            "lfs": {"size": 23, "sha256": "c" * 64, "pointerSize": 1},
        }
    ]
    made = text(mutate(info, numbers))
    listed = mutate({"list": tree}, numbers)
    listing = text(listed.get("list") if isinstance(listed, dict) else listed)
    deep = numbers.random() < 0.05

    def answer(request: Any) -> None:
        body = listing if "/tree/" in request.path else made
        return _send(request, 200, {}, b"[" * 200_000 if deep else body)

    return answer


def _heads(numbers: np.random.Generator) -> Callable[[Any], None]:
    """A file with headers that cannot be."""
    odd = ("", "-1", "x", "9" * 40, "\u202e", '"', 'W/"a"', "../../x", "a/b", "\x01", "z" * 5000)
    heads = {
        str(name): odd[int(numbers.integers(len(odd)))]
        for name in numbers.choice(
            [
                "ETag",
                "X-Repo-Commit",
                "Content-Length",
                "X-Linked-Size",
                "X-Linked-Etag",
                "Link",
                "X-Xet-Hash",
                "Content-Type",
                "Location",
                "Transfer-Encoding",
                "Set-Cookie",
            ],
            3,
        )
    }

    def answer(request: Any) -> None:
        body = FILES.get(request.path.split("/")[-1], b"[]")
        _send(request, 200, dict(heads), body)

    return answer


def _endless(numbers: np.random.Generator) -> Callable[[Any], None]:
    """A body, or pages of a list, without end."""
    pages = bool(numbers.random() < 0.5)

    def answer(request: Any) -> None:
        if pages and "/tree/" in request.path:
            link = f'<http://{request.headers["Host"]}{request.path}>; rel="next"'
            return _send(request, 200, {"Link": link}, b"[]")
        request.wfile.write(b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n[")
        for _ in range(3000):
            request.wfile.write(b"1," * 50_000)
        return None

    return answer


def _packed(numbers: np.random.Generator) -> Callable[[Any], None]:
    """A small body that unpacks to a large one."""
    import gzip

    packed = gzip.compress(b"[" + b" " * 200_000_000, 1) if numbers.random() < 0.1 else b"\x1f\x8b"
    kind = str(numbers.choice(["gzip", "deflate", "br", "x"]))
    return lambda request: _send(request, 200, {"Content-Encoding": kind}, packed)


def _short(numbers: np.random.Generator) -> Callable[[Any], None]:
    """Fewer bytes than were announced, or more."""
    length = str(int(numbers.choice([0, 1, 10**3, 10**15])))
    heads = {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Content-Length": length}
    return lambda request: _send(request, 200, dict(heads), b"short")


FUZZERS = [Fuzzer(NAME, run, cases=500, quick=20, prepare=prepare)]
