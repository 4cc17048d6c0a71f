"""A model with everything that serves it: cache, queue, worker, endpoints."""

import base64
import contextlib
import io
import json
import os
import socket as sockets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.experiments.serve.batches.answering import Answerer
from resprune_jax.experiments.serve.batches.worker import End, Job, Worker
from resprune_jax.experiments.serve.command import ServeOptions, is_loopback, megabytes
from resprune_jax.experiments.serve.pictures.cache import ImageCache
from resprune_jax.experiments.serve.pictures.folder import Folder
from resprune_jax.experiments.serve.pictures.remote import Remote
from resprune_jax.experiments.serve.pictures.urls import Sources
from resprune_jax.experiments.serve.requests.admission import Admission
from resprune_jax.experiments.serve.requests.room import Hold, Room
from resprune_jax.experiments.serve.telling.metrics import Metrics
from resprune_jax.experiments.serve.telling.replies import method_name
from resprune_jax.experiments.serve.web.app import application
from resprune_jax.experiments.serve.web.chat import Chat, Limits
from resprune_jax.experiments.serve.web.server import make_server
from resprune_jax.experiments.words import OWN, version_of
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts.options import CallOptions

READERS = 4
"""Threads that read requests: decode pictures, wait for other hosts."""


class Service:
    """Everything behind the socket.

    Args:
        lvlm: the model.
        name: that requests call it by.
        options: the command's.
        call: options of requests that say nothing.
        keys: that clients may have; none: no key is asked for.
    """

    def __init__(
        self,
        lvlm: LVLM,
        name: str,
        options: ServeOptions,
        call: CallOptions,
        keys: tuple[str, ...],
    ) -> None:
        lvlm.method_of(call)  # refuses what cannot run on this model
        self.lvlm = lvlm
        self.name = name
        lvlm.encoder.name = name  # what clients are told names no folder of this machine
        self._options = options
        self._call = call
        self._metrics = Metrics()
        self._cache = ImageCache(megabytes(options.image_cache_mb))
        self._room = Room(megabytes(options.max_memory_mb))
        self._worker = Worker(
            Answerer(lvlm, self._cache, self._metrics, step=options.stream_tokens),
            rows=options.max_batch, seconds=options.wait_ms / 1e3, most=options.max_waiting,
            watch=self._watch,
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(READERS, "resprune-reader")
        sources = Sources(
            megabytes(options.max_body_mb),
            None if options.image_folder is None else Folder(options.image_folder),
            Remote(options.allow_host) if options.allow_host else None,
        )
        self._admission = admission = Admission(
            lvlm, name, call, sources, self._cache,
            most_images=options.max_images, most_pixels=options.max_pixels,
            seed=options.rng_seed,
        )  # fmt: skip
        limits = Limits(megabytes(options.max_body_mb), options.body_timeout, options.timeout)
        chat = Chat(admission, self._worker, self._metrics, self._room, limits, self._pool)
        loopback = is_loopback(options.host)
        self.app = application(
            chat, self._metrics, model=name, facts=self._facts(), health=self._health, keys=keys,
            hosts=("localhost", "127.0.0.1", "::1", options.host) if loopback else (),
        )  # fmt: skip
        self._gauges()

    def prepare(self) -> None:
        """Load what the first request would load, and compile what was asked for."""
        call = self._call
        if call.keep is not None and not call.keeps_all:
            self.lvlm.extractor(call.tagger, strict=call.strict_nouns)
        heights: dict[int, tuple[int, int]] = {}
        for size in self.lvlm.family.usual_sizes(self.lvlm.config):
            heights.setdefault(self.lvlm.family.layout(*size).tokens, size)
        for rows in self._options.warm_up:
            for height, width in heights.values():
                self._compile(rows, height, width)

    def _compile(self, rows: int, height: int, width: int) -> None:
        """Answer a batch of blank pictures, with a stop behind every token.

        Raises:
            RequestError: what requests of this kind will fail with.
        """
        answerer = Answerer(self.lvlm, ImageCache(0), Metrics(), step=1)
        jobs: list[Job] = []
        ends: list[Any] = []
        with Hold(Room(2**62)) as hold:
            for row in range(rows):
                pixels = np.full((height, width, 3), row % 256, np.uint8)
                pixels[0, 0, 0] = row // 256
                key, work = self._admission.admit(blank(self.name, pixels), hold)
                jobs.append(Job(key, ends.append, work))
            answerer(jobs)
        for end in ends:
            if isinstance(end, End) and end.error is not None:
                raise end.error

    def serve(self, socket: sockets.socket) -> int:
        """Answer until a signal says to end, and then what was accepted.

        Returns:
            0; 1 if it was made to end before that was done.
        """
        self._worker.start()
        own = self._options
        server = make_server(self.app, drain_seconds=own.body_timeout + own.timeout + 10)
        try:
            server.run([socket])
        finally:
            done = self._worker.close(0 if server.force_exit else 10)
            self._pool.shutdown(wait=False, cancel_futures=True)
            if not done:
                # The model's thread is inside a program that nothing interrupts; Python's own end
                # beside it aborts.
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(Exception):
                        stream.flush()
                os._exit(1)
        return 1 if server.force_exit else 0

    def _watch(self, jobs: Any) -> None:
        self._metrics.batches.inc()
        self._metrics.batch_rows.observe(len(jobs))
        now = time.monotonic()
        job: Job
        for job in jobs:
            self._metrics.wait.observe(max(0.0, now - job.arrived))

    def _facts(self) -> dict[str, Any]:
        return {
            "resprune": {
                "version": version_of(OWN),
                "family": self.lvlm.family.name,
                "dtype": str(self.lvlm.dtype),
                "max_model_len": self.lvlm.config.text.max_position_embeddings,
                "keep": self._call.keep,
                "method": method_name(self._call.method),
            }
        }

    def _health(self) -> tuple[bool, dict[str, Any]]:
        return self._worker.alive, {
            "model": self.name,
            "waiting": self._worker.waiting,
            "running": self._worker.running,
        }

    def _gauges(self) -> None:
        self._metrics.gauges({
            "waiting_requests": ("Requests that wait.", lambda: self._worker.waiting),
            "running_requests": ("Requests of the batch that runs.", lambda: self._worker.running),
            "held_bytes": ("Memory of bodies and images.", lambda: self._room.taken),
            "image_cache_bytes": ("Encoded images that are kept.", lambda: self._cache.bytes),
            "image_cache_entries": ("How many.", lambda: len(self._cache)),
            "image_cache_hits": ("Images found there.", lambda: self._cache.hits),
            "image_cache_misses": ("Images not found there.", lambda: self._cache.misses),
        })  # fmt: skip


def blank(model: str, pixels: np.ndarray) -> bytes:
    """A request about a picture, as they are expected to come."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    url = "data:image/bmp;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture? Answer with a word."},
    ]
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()
