"""A server process that the tests of a session share, and what they ask it."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

KEY = "sk-of-these-tests"
WAITING = 70
"""Requests that may wait."""


def png(pixels: np.ndarray) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    """A file as requests send it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def messages(url: str | None, question: str) -> list[dict[str, Any]]:
    """A question about an image."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class Scene:
    """A picture with a question about it."""

    pixels: np.ndarray
    question: str

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As a request has them."""
        return messages(data_url(png(self.pixels)), self.question)


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """64 pictures, each with a question of its own."""
    from resprune_jax.experiments.data.scenes import scene_examples

    by_picture: dict[str, list[Any]] = {}
    for example in scene_examples("test", scenes=64):
        by_picture.setdefault(example.cluster, []).append(example)
    made = []
    for number, own in enumerate(by_picture.values()):
        example = own[number % len(own)]
        made.append(Scene(example.images[0].load(), example.question))
    assert len({(scene.pixels.tobytes(), scene.question) for scene in made}) == 64
    return made


@pytest.fixture(scope="session")
def pocket() -> Any:
    """The pocket model in this process."""
    from resprune_jax.models import load_model

    return load_model("pocket")


@pytest.fixture(scope="session")
def answers(pocket: Any, scenes: list[Scene]) -> list[str]:
    """What `LVLM.generate` says to the scenes."""
    texts: list[str] = []
    for at in range(0, len(scenes), 16):
        own = scenes[at : at + 16]
        texts += pocket.generate(
            [scene.pixels for scene in own], [scene.question for scene in own],
            keep=0.25, max_new_tokens=16,
        ).texts  # fmt: skip
    assert len(set(texts)) > 10  # mixing them up would show
    return texts


@dataclass(frozen=True)
class Served:
    """A running server.

    Attributes:
        process: of it.
        url: of its API.
        folder: below which it reads pictures.
        outside: a picture that lies beside that folder.
        host: another server, from which it fetches pictures, with port.
        asked: paths that this other server was asked for.
    """

    process: Any
    url: str
    folder: Path
    outside: Path
    host: str
    asked: list[str]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of servers: they share compiled programs, and find nobody else's."""
    folder = tmp_path_factory.mktemp("programs")
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="session")
def served(
    tmp_path_factory: pytest.TempPathFactory, scenes: list[Scene], compiled: dict[str, str]
) -> Iterator[Served]:
    """A server of the pocket model, with a key, a folder of pictures and an allowed host."""
    from resprune_jax.experiments.bench.serving.process import ServerProcess

    place = tmp_path_factory.mktemp("served")
    folder = place / "pictures"
    (folder / "deep").mkdir(parents=True)
    content = png(scenes[0].pixels)
    for path in (folder / "deep" / "a b.png", place / "outside.png"):
        path.write_bytes(content)
    (folder / "notes.txt").write_text("no picture")
    (folder / "out.png").symlink_to(place / "outside.png")
    (folder / "up").symlink_to(place)
    (folder / "in.png").symlink_to(folder / "deep" / "a b.png")
    asked: list[str] = []

    class Pictures(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/away.png":
                self.send_response(302)
                self.send_header("location", "/picture.png")
                self.end_headers()
                return
            self.send_response(200 if self.path in ("/picture.png", "/large.png") else 404)
            self.end_headers()
            self.wfile.write(content if self.path == "/picture.png" else bytes(3 * 10**6))

        def log_message(self, *_: Any) -> None:
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{other.server_port}"
    words = [
        "--model", "pocket", "--image-folder", str(folder), "--allow-host", host,
        "--max-waiting", str(WAITING), "--max-body-mb", "2", "--max-pixels", "1000000",
        "--body-timeout", "3", "--stream-tokens", "4", "--timeout", "120",
    ]  # fmt: skip
    with ServerProcess(words, {**compiled, "RESPRUNE_API_KEY": KEY}) as process:
        url = f"{process.url}/v1"
        yield Served(process, url, folder, place / "outside.png", host, asked)
        process.stop()
        assert process.wait(60) == 0
    other.shutdown()


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    """OpenAI's client."""
    from openai import OpenAI

    with OpenAI(base_url=served.url, api_key=KEY, max_retries=0, timeout=120) as made:
        yield made
