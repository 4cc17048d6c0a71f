"""A batch of requests through the model: encode what is new, answer, cut, tell."""

import dataclasses
import gc
import logging
import re
import time
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from resprune_jax.experiments.serve.batches.worker import Job
from resprune_jax.experiments.serve.pictures.cache import ImageCache, Row, join, split
from resprune_jax.experiments.serve.requests.admission import Work, has_alpha_of_rows
from resprune_jax.experiments.serve.telling.errors import broken, of_error
from resprune_jax.experiments.serve.telling.metrics import Metrics
from resprune_jax.experiments.serve.telling.replies import Made, method_name
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.compiling import compiling
from resprune_jax.models.running.generation import Generation

logger = logging.getLogger("resprune_jax")

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")

GRAIN = 64
"""Prompts of a batch are padded to a multiple of so many tokens."""


class Answerer:
    """Answers batches; the worker's thread alone calls it.

    Args:
        lvlm: the model.
        cache: of encoded pictures.
        metrics: are told of every batch.
        step: tokens between two looks at a batch: what streams, what is at its end, whether
            anybody still waits.
    """

    def __init__(self, lvlm: LVLM, cache: ImageCache, metrics: Metrics, *, step: int) -> None:
        self.lvlm = lvlm
        self.cache = cache
        self.metrics = metrics
        self.step = step
        tokenizer = lvlm.encoder.tokenizer
        # A tokenizer that takes blanks away later changes text that a stream has sent already.
        self._steady = not getattr(tokenizer, "clean_up_tokenization_spaces", False)
        pieces = tokenizer.get_vocab().items()
        self._bytes = np.asarray([at for piece, at in pieces if _BYTE.fullmatch(piece)], np.int64)

    def __call__(self, jobs: Sequence[Job]) -> None:
        """Answer a batch; if it fails as a whole, each job alone, so that only bad ones fail."""
        jobs = [job for job in jobs if not job.over]
        again = []
        try:
            self._answer(jobs)
        except Exception as error:
            logger.debug("a batch of %d requests failed", len(jobs), exc_info=True)
            for job in jobs:
                if job.over:
                    continue
                if len(jobs) == 1 or job.work.sent:
                    refusal = of_error(error)
                    if refusal.status >= 500:
                        logger.error("a request failed: %s: %s", type(error).__name__, error)
                    job.end(error=refusal)
                else:
                    again.append(job)
        # Not above: as long as the error is there its traceback keeps the batch's arrays.
        if again:
            gc.collect()
        for job in again:
            self([job])

    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        begin = time.monotonic()
        works: list[Work] = [job.work for job in jobs]
        cached = [work.row is not None for work in works]
        with compiling() as compiled:
            images = self._images(works)
        encoded = time.monotonic() - begin
        options = self._shared(works)
        made = None
        for made in self.lvlm.stream(
            images, [work.question for work in works], options=options, step=self.step,
            grain=GRAIN,
        ):  # fmt: skip
            for at, job in enumerate(jobs):
                if not job.over:
                    about = {"batch_rows": len(jobs), "image_cached": cached[at]}
                    times = {
                        "queue": begin - job.arrived, "encode": encoded,
                        "compile": compiled.seconds,
                    }  # fmt: skip
                    self._tell(job, made, at, about, times)
            if all(job.over for job in jobs):
                break
        if made is not None:
            self._count(made, encoded, compiled.seconds)

    def _images(self, works: Sequence[Work]) -> Any:
        """The batch's pictures as `stream` takes them; those that are new are encoded, once each.

        Where a method makes pictures smaller before they are encoded, the pictures themselves.
        """
        if not works[0].picture_key:
            return [None] * len(works)
        if works[0].by_pixels:
            return [work.pictures for work in works]
        new: dict[Hashable, Work] = {}
        for work in works:
            if work.row is None:
                new.setdefault(work.picture_key, work)
        rows: dict[Hashable, Row] = {}
        if new:
            encoded = self.lvlm.encode(
                [list(work.pictures) for work in new.values()],
                image_aspect=works[0].options.image_aspect, needs=works[0].needs,
            )  # fmt: skip
            for key, row in zip(new, split(encoded), strict=True):
                rows[key] = row
                self.cache.put(key, row)
        for work in works:
            work.row = work.row or rows[work.picture_key]
            work.pictures = []
        return join([work.row for work in works if work.row is not None])

    def _shared(self, works: Sequence[Work]) -> CallOptions:
        """The options of the batch: what each row has of its own as a list."""
        first = works[0].options
        most = [work.options.max_new_tokens or 1 for work in works]
        own: dict[str, Any] = {"max_new_tokens": max(most)}
        if not first.keeps_all:
            own["keep"] = [work.options.keep for work in works]
            method = self.lvlm.method_of(first)
            if first.alpha is not None and method is not None and has_alpha_of_rows(method):
                own["alpha"] = [work.options.alpha for work in works]
        own["rng_seed"] = [work.options.rng_seed for work in works]
        return dataclasses.replace(first, **own)

    def _tell(
        self, job: Job, made: Generation, at: int, about: dict[str, Any], times: dict[str, float]
    ) -> None:
        """Tell a job what there is of its answer, and its end if it is there."""
        work: Work = job.work
        if (error := made.errors[at]) is not None:
            job.end(error=broken(error))
            return
        most = work.options.max_new_tokens
        assert most is not None
        ids = made.tokens[at][:most]
        text = made.texts[at] if len(ids) == len(made.tokens[at]) else self.lvlm.encoder.decode(ids)
        over = made.done[at] or len(ids) == most
        finish = "length" if over and not np.isin(ids[-1:], self.lvlm.eos_ids).any() else "stop"
        if not over:
            text = self._settled(ids, text)
        if (end := first_stop(text, work.asked.stop)) is not None:
            text, finish, over = text[:end], "stop", True
            ids = self._until(ids, work.asked.stop)
        if work.asked.stream and (over or self._steady):
            safe = text if over else steady(text, work.asked.stop)
            if not safe.startswith(work.sent):
                if over:
                    job.end(error=broken("the tokenizer changed text that was sent already"))
                return
            job.part(safe[len(work.sent) :])
            work.sent = safe
        if over:
            self._end(job, made, at, Made(text, finish, len(ids), work.words, 0, 0), about, times)

    def _end(
        self,
        job: Job,
        made: Generation,
        at: int,
        answer: Made,
        about: dict[str, Any],
        times: dict[str, float],
    ) -> None:
        options = job.work.options
        spent = {**times, "prepare": made.timings["encode"]}
        spent |= {name: made.timings[name] for name in ("select", "prefill", "decode")}
        spent["compile"] = times["compile"] + made.timings["compile"]
        spent["total"] = time.monotonic() - job.arrived
        costs = made.costs[at]
        own = {
            "method": method_name(options.method),
            "keep": options.keep,
            "visual_tokens": made.visual_tokens[at],
            "visual_tokens_kept": made.kept[at],
            "nouns": list(made.nouns[at]),
            "noun_backend": made.noun_backend,
            "layer_average": None if costs is None else round(costs.average, 3),
            **({"seed": options.rng_seed} if options.temperature else {}),
            **about,
            "timings": {name: round(seconds, 6) for name, seconds in spent.items()},
        }
        answer = dataclasses.replace(
            answer, visual=made.visual_tokens[at], kept=made.kept[at], about=own
        )
        self.metrics.tokens.inc(answer.tokens)
        self.metrics.visual.labels("given").inc(answer.visual)
        self.metrics.visual.labels("kept").inc(answer.kept)
        job.end(made=answer)

    def _settled(self, ids: np.ndarray, text: str) -> str:
        """The text of unfinished ids without a run of bytes at their end.

        A tokenizer that spells rare characters in bytes reads a run of them as a whole: one more
        can turn all of its characters into replacement characters.
        """
        kept = len(ids)
        while kept and ids[kept - 1] in self._bytes:
            kept -= 1
        return text if kept == len(ids) else self.lvlm.encoder.decode(ids[:kept])

    def _until(self, ids: np.ndarray, stops: Sequence[str]) -> np.ndarray:
        """The ids up to the one that completes a stop."""
        for count in range(1, len(ids)):
            if first_stop(self.lvlm.encoder.decode(ids[:count]), stops) is not None:
                return ids[:count]
        return ids

    def _count(self, made: Generation, encoded: float, compiled: float) -> None:
        phases = {"encode": encoded, "prepare": made.timings["encode"]}
        phases |= {name: made.timings[name] for name in ("select", "prefill", "decode")}
        phases["compile"] = compiled + made.timings["compile"]
        for name, seconds in phases.items():
            self.metrics.phases.labels(name).inc(max(0.0, seconds))


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop begins that is complete first; None if none is there.

    Not the one that begins first: what follows must not change where a text was cut.
    """
    found = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    return min(found)[1] if found else None


def steady(text: str, stops: Sequence[str]) -> str:
    """What of an unfinished text will stay, whatever follows.

    Half of a character stands as a replacement character until the rest is there, and an end that
    may become a stop is held back.
    """
    text = text.rstrip("\ufffd").rstrip()
    held = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return text[: len(text) - held]
