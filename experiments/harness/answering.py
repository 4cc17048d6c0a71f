"""Questions in batches through `LVLM.generate`, each image of a batch encoded once."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.experiments.common import reason
from resprune_jax.experiments.harness.journal import Answer, Journal
from resprune_jax.experiments.harness.requests import Asked, Content, digest_of
from resprune_jax.models.prompts.options import CallOptions

logger = logging.getLogger("resprune_jax")

MOST_NAMED = 3
"""Failed rows that an error names."""


@dataclass
class Figures:
    """What a run cost, of the batches that were computed.

    Attributes:
        seconds: of all batches.
        first_token: seconds to a batch's first token, images included, one a batch.
        questions: that were answered.
        output_tokens: that were generated.
        kept: visual tokens that entered the LLM.
        visual_tokens: visual tokens that the images gave.
    """

    seconds: float = 0.0
    first_token: list[float] = field(default_factory=list)
    questions: int = 0
    output_tokens: int = 0
    kept: int = 0
    visual_tokens: int = 0


@dataclass(frozen=True)
class _Read:
    """A question whose images are there.

    Attributes:
        asked: the question.
        content: its images and text.
        pictures: the content of each image in hex digits.
        key: names question, images and drawing; the same in every run.
    """

    asked: Asked
    content: Content
    pictures: tuple[str, ...]
    key: str


class Answering:
    """Answers any number of questions with one model.

    Attributes:
        figures: what it cost so far.
    """

    def __init__(
        self, lvlm: Any, options: CallOptions, *, batch_size: int, journal: Journal | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            lvlm: an `LVLM`.
            options: of every call.
            batch_size: questions that run together.
            journal: keeps finished batches.
        """
        self._lvlm, self._options, self._size, self._journal = lvlm, options, batch_size, journal
        self._worked = False
        self.figures = Figures()

    def __call__(
        self, questions: Sequence[Asked], step: Callable[[int], object] = lambda count: None
    ) -> list[Answer]:
        """Answer questions, in batches of their order.

        Which questions share a batch does not depend on what the journal holds already, so that a
        run that goes on computes what it would have computed. A row that fails fails alone; the
        others are finished and kept first.

        Args:
            questions: to be answered.
            step: told how many more are answered.

        Returns:
            One answer each.

        Raises:
            CallError, RunError: rows that failed, or a call that no row can work with.
        """
        answers: list[Answer | None] = [None] * len(questions)
        failed: list[str] = []
        for numbers in self._batches(questions):
            batch = [questions[n] for n in numbers]
            for number, made in zip(numbers, self._batch(batch), strict=True):
                if isinstance(made, Answer):
                    answers[number] = made
                else:
                    failed.append(made)
            step(len(numbers))
        if failed:
            named = "; ".join(failed[:MOST_NAMED])
            kept = " (the others are kept in resume)" if self._journal is not None else ""
            raise RunError(f"{len(failed)} of {len(questions)} rows failed{kept}: {named}")
        return [answer for answer in answers if answer is not None]

    def _batches(self, questions: Sequence[Asked]) -> Iterator[list[int]]:
        """Numbers of questions that run together: those that are drawn alike, in their order."""
        alike: dict[Any, list[int]] = {}
        for number, asked in enumerate(questions):
            alike.setdefault(asked.drawing.options, []).append(number)
        for numbers in alike.values():
            for at in range(0, len(numbers), self._size):
                yield numbers[at : at + self._size]

    def _batch(self, batch: list[Asked]) -> list[Answer | str]:
        """The answers of a batch; a text says why a row failed."""
        found: list[Answer | str] = []
        rows: list[_Read] = []
        for asked in batch:
            try:
                rows.append(_read(asked))
                found.append("")
            except Exception as error:
                found.append(f"{asked.where}: {_without(reason(error), asked.where)}")
        if rows:
            made = iter(self._rows(rows))
            found = [next(made) if each == "" else each for each in found]
        return found

    def _rows(self, rows: list[_Read]) -> list[Answer | str]:
        known = [self._journal.get(row.key) if self._journal else None for row in rows]
        if all(known):
            return [answer for answer in known if answer is not None]
        made = self._alone_where_failed(rows)
        # What was finished before stays as it is.
        made = [old if old is not None else new for old, new in zip(known, made, strict=True)]
        if self._journal is not None:
            self._journal.add(
                (row.key, answer)
                for row, answer in zip(rows, made, strict=True)
                if isinstance(answer, Answer)
            )
        return made

    def _alone_where_failed(self, rows: list[_Read]) -> list[Answer | str]:
        """A batch; where it fails as a whole, each of its rows alone."""
        try:
            made = self._generate(rows)
            self._worked = True
            return made
        except Exception as error:
            logger.debug("a batch of %d rows failed", len(rows), exc_info=True)
            if len(rows) == 1:
                return [f"{rows[0].asked.where}: {reason(error)}"]
            alone = [self._alone_where_failed([row])[0] for row in rows]
            if not self._worked and isinstance(error, ResPruneError):
                raise type(error)(str(error)) from None  # the call itself cannot work
            return alone

    def _generate(self, rows: list[_Read]) -> list[Answer | str]:
        begin = time.perf_counter()
        # The rows of one picture follow each other: it is encoded once.
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(row.pictures, []).append(number)
        order = [number for numbers in groups.values() for number in numbers]
        options = replace(self._options, **dict(rows[0].asked.drawing.options))
        if rows[0].asked.drawing.sampled:
            seeds = [(options.rng_seed + _seed(rows[n].key)) % 2**32 for n in order]  # type: ignore[operator]
            options = replace(options, rng_seed=seeds)
        pictures = [rows[numbers[0]].content.images for numbers in groups.values()]
        generation = self._lvlm.generate(
            [list(own) or None for own in pictures],
            [[rows[n].content.text for n in numbers] for numbers in groups.values()],
            options=options,
        )
        made: list[Answer | str] = [""] * len(rows)
        for place, number in enumerate(order):
            row = rows[number]
            if (why := generation.errors[place]) is not None:
                made[number] = f"{row.asked.where}: {why}"
                continue
            media = ["image"] * len(row.content.images)
            prompt = self._lvlm.encoder.encode(row.content.text, media)
            kept = generation.kept[place]
            made[number] = Answer(
                text=row.asked.drawing.cut(generation.texts[place]),
                input_tokens=len(prompt.ids) - len(media) + kept,
                output_tokens=len(generation.tokens[place]),
                kept=kept,
                visual_tokens=generation.visual_tokens[place],
            )
        self._count([each for each in made if isinstance(each, Answer)], generation.timings, begin)
        return made

    def _count(self, answers: list[Answer], timings: dict[str, float], begin: float) -> None:
        own = self.figures
        own.seconds += time.perf_counter() - begin
        own.first_token.append(sum(timings[name] for name in ("encode", "select", "prefill")))
        own.questions += len(answers)
        own.output_tokens += sum(answer.output_tokens for answer in answers)
        own.kept += sum(answer.kept for answer in answers)
        own.visual_tokens += sum(answer.visual_tokens for answer in answers)


def _read(asked: Asked) -> _Read:
    content = asked.read()
    if not content.text.strip():
        raise CallError("the question is empty")
    pictures = tuple(map(digest_of, content.images))
    told = [content.text, pictures, asked.drawing.options, asked.drawing.until, asked.repeat]
    return _Read(asked, content, pictures, hashlib.sha256(json.dumps(told).encode()).hexdigest())


def _seed(key: str) -> int:
    """Where a question draws from: the same in every batch."""
    return int(key[:8], 16)


def _without(text: str, where: str) -> str:
    """An error's text without the place that it names itself."""
    return text.removeprefix(f"{where}: ")
