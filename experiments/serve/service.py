"""A model with everything that serves it: cache, queue, worker, endpoints."""

import socket as sockets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from resprune_jax.experiments.serve.batches.answering import Answerer
from resprune_jax.experiments.serve.batches.worker import Job, Worker
from resprune_jax.experiments.serve.command import ServeOptions, is_loopback, megabytes
from resprune_jax.experiments.serve.pictures.cache import ImageCache
from resprune_jax.experiments.serve.pictures.folder import Folder
from resprune_jax.experiments.serve.pictures.remote import Remote
from resprune_jax.experiments.serve.pictures.urls import Sources
from resprune_jax.experiments.serve.requests.admission import Admission
from resprune_jax.experiments.serve.requests.room import Room
from resprune_jax.experiments.serve.telling.metrics import Metrics
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
        admission = Admission(
            lvlm, name, call, sources, self._cache,
            most_images=options.max_images, most_pixels=options.max_pixels,
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
        pruned = call.keep is not None
        if pruned and not call.keeps_all:
            self.lvlm.extractor(call.tagger, strict=call.strict_nouns)
        if self._options.warm_up:
            self.lvlm.warm_up(
                self.lvlm.family.usual_sizes(self.lvlm.config), options=call,
                batch_sizes=self._options.warm_up,
            )  # fmt: skip

    def serve(self, socket: sockets.socket) -> int:
        """Answer until a signal says to end, and then what was accepted.

        Returns:
            0; 1 if it was made to end before that was done.
        """
        self._worker.start()
        server = make_server(self.app, drain_seconds=self._options.timeout + 10)
        try:
            server.run([socket])
        finally:
            done = self._worker.close(0 if server.force_exit else 10)
            self._pool.shutdown(wait=False, cancel_futures=True)
        return 0 if done and not server.force_exit else 1

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
                "method": self._call.method,
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
