"""One block of a sweep, from pictures to rows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, ResPruneError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.common import reason
from resprune_jax.experiments.data.examples import Dataset, Example
from resprune_jax.experiments.sweep.answering import Answer, Answerer, Wanted
from resprune_jax.experiments.sweep.choosing import (
    Block,
    Chooser,
    Kept,
    lists_tokens,
)
from resprune_jax.experiments.sweep.grid import Configuration
from resprune_jax.experiments.sweep.summary import summaries
from resprune_jax.methods import Method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts.budgets import count
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.encoded import Encoded

Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """A block whose tokens are chosen, before anything is answered.

    Attributes:
        block: the examples whose pictures could be read.
        examples: their numbers among the block's.
        errors: why the others cannot be answered, by number.
        pictures: of each row of images.
        kept: what each configuration that lists tokens keeps, in the order of configurations.
        wanted: the distinct lists.
        which: for each configuration, which of them each example has; -1 for none.
    """

    block: Block
    examples: list[int]
    errors: dict[int, str]
    pictures: list[Any]
    kept: dict[str, Kept]
    wanted: list[Wanted]
    which: dict[str, list[int]]


class Engine:
    """Runs blocks of a sweep on a model.

    Args:
        lvlm: the model.
        data: the data set.
        configurations: of the grid.
        options: what holds for every call.
        size: examples of a block.
        batch: rows that are answered together.

    Raises:
        CallError: a configuration that cannot run on this model.
    """

    def __init__(
        self,
        lvlm: LVLM,
        data: Dataset,
        configurations: Sequence[Configuration],
        options: CallOptions,
        *,
        size: int,
        batch: int,
    ) -> None:
        self.lvlm, self.data, self.size = lvlm, data, size
        self.aspect = options.image_aspect
        self.methods: dict[str, Method | None] = {}
        self.left_out: dict[str, str] = {}
        self.tokens = self._tokens()
        for one in configurations:
            try:
                self.methods[one.name] = self._method(one)
            except CallError as error:
                if not one.optional:
                    raise CallError(f"configuration {one.name}: {error}") from None
                self.left_out[one.name] = str(error)
        self.configurations = [one for one in configurations if one.name in self.methods]
        self.pruned: list[Configuration] = []
        self.whole: list[Configuration] = []
        self.alone: list[Configuration] = []
        for one in self.configurations:
            method = self.methods[one.name]
            if method is None:
                self.whole.append(one)
            else:
                (self.pruned if lists_tokens(method) else self.alone).append(one)
        own = [method for one in self.pruned if (method := self.methods[one.name]) is not None]
        self.chooser = Chooser(lvlm, self.pruned, own)
        self.answerer = Answerer(lvlm, options, batch)
        reading = [m for m in self.methods.values() if m is not None and m.stage != "pixels"]
        self.needs = frozenset().union(*(method.needs for method in reading)) & ON_REQUEST

    def _tokens(self) -> int:
        """The visual tokens of the first example whose pictures can be read, 0 without any."""
        for example in self.data.examples[: self.size]:
            try:
                shown = self._pictures(example)
            except (ResPruneError, OSError, ValueError):
                continue
            if shown is None:
                return 0
            return sum(image.tokens for image in self._encoded([shown]).layouts[0])
        return 0

    def _encoded(self, images: list[Any], needs: Collection[str] = ()) -> Encoded:
        return self.lvlm.encode(images, image_aspect=self.aspect, needs=needs)

    def _method(self, one: Configuration) -> Method | None:
        """The method of a configuration.

        Raises:
            CallError: it cannot run on this model, or not at this budget.
        """
        if one.refused:
            raise CallError(one.refused)
        method: Method | None = self.lvlm.method_of(one.options())
        if isinstance(method, DecoderMethod) and self.tokens:
            keep = self.tokens if one.budget is None else count(one.budget, self.tokens)
            method.drops(self.tokens, keep, self.lvlm.config.text.num_layers)
        return method

    @property
    def blocks(self) -> int:
        """How many blocks the data set has."""
        return -(-len(self.data.examples) // self.size)

    def examples(self, block: int) -> list[Example]:
        """The examples of a block."""
        return list(self.data.examples[block * self.size : (block + 1) * self.size])

    def choose(self, number: int) -> Chosen:
        """Encode the pictures of a block and choose under every configuration that lists tokens."""
        own = self.examples(number)
        errors: dict[int, str] = {}
        encoded, pictures, rows = self._read(own, errors)
        read = [n for n in range(len(own)) if n not in errors]
        totals = np.asarray([sum(i.tokens for i in encoded.layouts[row]) for row in rows])
        questions = tuple(own[n].question for n in read)
        keys = tuple(own[n].key for n in read)
        block = Block(encoded, tuple(rows), keys, questions, totals)
        everything = self._everything(block)
        if totals.any():
            kept = self.chooser.choose(block) | {one.name: everything for one in self.whole}
        else:  # text alone: there is nothing to choose from
            kept = {one.name: everything for one in (*self.pruned, *self.whole)}
        listed = [(one, kept[one.name]) for one in self.configurations if one.name in kept]
        wanted, which = self.answerer.distinct(block, listed)
        return Chosen(block, read, errors, pictures, kept, wanted, which)

    def _read(
        self, own: list[Example], errors: dict[int, str]
    ) -> tuple[Encoded, list[Any], list[int]]:
        """The pictures of a block, encoded, and which of them each example is about.

        Args:
            own: the examples.
            errors: takes those that cannot be asked, by number, with the reason.

        Raises:
            _UnreadableError: none of them can.
        """
        at: dict[Any, int] = {}
        pictures: list[Any] = []
        about: dict[int, int] = {}
        for n, example in enumerate(own):
            if n in errors:
                continue
            try:
                self.answerer.check(example.question, len(example.images))
                if example.images not in at:
                    shown = self._pictures(example)
                    at[example.images] = len(pictures)
                    pictures.append(shown)
                about[n] = at[example.images]
            except (ResPruneError, OSError, ValueError) as error:
                errors[n] = reason(error)
        if not about:
            raise _UnreadableError(errors)
        try:
            return self._encoded(pictures, self.needs), pictures, list(about.values())
        except ResPruneError:
            before = len(errors)
            for n, row in about.items():  # which of them it was
                try:
                    self._encoded([pictures[row]], self.needs)
                except ResPruneError as error:
                    errors[n] = reason(error)
            if len(errors) == before:
                raise
        return self._read(own, errors)

    def run(self, number: int) -> list[Row]:
        """The rows of a block, sorted by configuration and example."""
        return self.timed(number)[0]

    def timed(self, number: int) -> tuple[list[Row], float]:
        """The rows of a block, and the seconds of prefilling and decoding its distinct lists."""
        stopping.check()
        try:
            made = self.choose(number)
        except _UnreadableError as error:
            failed = [
                _failed(one, example, error.errors[n])
                for one in self.configurations
                for n, example in enumerate(self.examples(number))
            ]
            return failed, 0.0
        answers, on_devices = self.answerer.answer(made.block, made.wanted)
        visual = made.block.encoded.visual
        places = made.block.places
        residual, rank = summaries(
            visual.embeddings, visual.valid, places, made.wanted, mesh=self.lvlm.mesh
        )
        own = self.examples(number)
        rows: list[Row] = []
        for one in self.configurations:
            stopping.check()
            if one.name in made.which:
                rows += self._listed(one, made, answers, residual, rank, own)
            else:
                rows += self._alone(one, made, own)
            rows += [_failed(one, own[n], why) for n, why in made.errors.items()]
        order = {example.key: n for n, example in enumerate(own)}
        rank_of = {one.name: n for n, one in enumerate(self.configurations)}
        rows.sort(key=lambda row: (rank_of[row["configuration"]], order[row["example"]]))
        return rows, on_devices

    def _listed(
        self,
        one: Configuration,
        made: Chosen,
        answers: list[Answer],
        residual: np.ndarray,
        rank: np.ndarray,
        own: list[Example],
    ) -> list[Row]:
        kept = made.kept[one.name]
        rows = []
        for place, n in enumerate(made.examples):
            number = made.which[one.name][place]
            if number < 0:
                rows.append(_failed(one, own[n], _NOT_FINITE, int(made.block.totals[place])))
                continue
            answer = answers[number]
            rows.append({
                **self._said(one, own[n], answer, int(made.block.totals[place])),
                "residual": _number(residual[number]),
                "effective_rank": _number(rank[number]),
                "nouns": kept.nouns[place],
                "noun_backend": kept.noun_backend,
                "distinct": number,
                "select_ms": 1e3 * kept.seconds,
                "answer_ms": 1e3 * answer.seconds,
            })  # fmt: skip
        return rows

    def _alone(self, one: Configuration, made: Chosen, own: list[Example]) -> list[Row]:
        method = self.methods[one.name]
        assert method is not None
        try:
            answers = self.answerer.alone(made.block, one, method, made.pictures)
        except CallError as error:
            answers = self._one_by_one(one, method, made, error)
        return [
            {
                **self._said(one, own[n], answers[place], int(made.block.totals[place])),
                "nouns": list(answers[place].nouns),
                "noun_backend": answers[place].noun_backend,
                "select_ms": 1e3 * answers[place].select_seconds,
                "answer_ms": 1e3 * answers[place].seconds,
            }
            for place, n in enumerate(made.examples)
        ]

    def _one_by_one(
        self, one: Configuration, method: Method, made: Chosen, because: CallError
    ) -> list[Answer]:
        """The answers where some pictures do not fit a configuration: these fail alone.

        Raises:
            CallError: all of them do; it is the configuration that cannot be.
        """
        block, answers = made.block, []
        for place, row in enumerate(block.rows):
            shown = [made.pictures[row]]
            single = Block(
                self._encoded(shown, self.needs), (0,), (block.keys[place],),
                (block.questions[place],), block.totals[[place]],
            )  # fmt: skip
            try:
                answers += self.answerer.alone(single, one, method, shown)
            except CallError as error:
                answers.append(Answer("", reason(error), 0, 0.0, 0.0))
        if all(answer.error is not None for answer in answers):
            raise CallError(f"configuration {one.name}: {because}") from None
        return answers

    def _said(self, one: Configuration, example: Example, answer: Answer, total: int) -> Row:
        if answer.error is not None:
            return _failed(one, example, answer.error, total)
        return {
            **_EMPTY,
            "configuration": one.name,
            "example": example.key,
            "answer": answer.text,
            "score": self.data.score(example, answer.text),
            "visual_tokens": total,
            "kept": answer.kept,
            "average": answer.average,
        }

    def _everything(self, block: Block) -> Kept:
        valid = np.asarray(block.encoded.visual.valid)
        mask = valid[block.places] & (block.totals[:, None] > 0)
        failed = np.zeros(len(mask), bool)
        return Kept(mask, failed, [[] for _ in failed], "none")

    def _pictures(self, example: Example) -> Any:
        shown = list(self.data.pictures(example))
        return shown or None


class _UnreadableError(Exception):
    """No example of a block can be asked; holds the reasons by number."""

    def __init__(self, errors: dict[int, str]) -> None:
        super().__init__("no example can be asked")
        self.errors = errors


_NOT_FINITE = "the visual tokens of this image are not finite (NaN or infinite)"


def _number(value: Any) -> float | None:
    found = float(value)
    return found if np.isfinite(found) else None


_EMPTY: Row = {
    "answer": "", "score": None, "error": None, "visual_tokens": 0, "kept": 0, "average": 0.0,
    "residual": None, "effective_rank": None, "nouns": [], "noun_backend": "none",
    "distinct": None, "select_ms": 0.0, "answer_ms": 0.0,
}  # fmt: skip


def _failed(one: Configuration, example: Example, why: str, total: int = 0) -> Row:
    return {
        **_EMPTY, "configuration": one.name, "example": example.key, "error": why,
        "visual_tokens": total,
    }  # fmt: skip
