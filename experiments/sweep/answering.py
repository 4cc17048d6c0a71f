"""Answers of a block: each distinct keep list of an example is prefilled and decoded once.

Lists of similar lengths run together, in batches of one size, so that a budget of 16 tokens does
not pay for one of 48, and few shapes are compiled.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.common import reason
from resprune_jax.experiments.sweep.choosing import Block, Kept, in_image_order
from resprune_jax.experiments.sweep.grid import Configuration
from resprune_jax.methods import Method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.expansion import check_context
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.generation import (
    Call,
    Chosen,
    Outcome,
    answered_ids,
    costs_of_rows,
    drops_of_rows,
    row_errors,
)
from resprune_jax.models.running.plan import Prompts, read_prompts
from resprune_jax.models.running.programs import EMPTY

GRAIN = 16
"""Prompts of a batch are padded to a multiple of so many tokens."""


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        text: the answer; "" where the row failed.
        error: why it failed, else None.
        kept: visual tokens that entered the LLM, or were left behind its last drop.
        average: the same on average over the LLM's layers.
        seconds: its share of the time of its batch.
        nouns: what conditioned the choice, where that was done here.
        noun_backend: which tagger found them.
        select_seconds: of a choice that was made here.
    """

    text: str
    error: str | None
    kept: int
    average: float
    seconds: float
    nouns: tuple[str, ...] = ()
    noun_backend: str = "none"
    select_seconds: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """A distinct keep list of one example.

    Attributes:
        example: its number in the block.
        mask: (N,) bool.
        count: how many tokens that are.
        positions: how position ids are counted, None as the model does.
        length: text and kept tokens, for the order of work.
    """

    example: int
    mask: np.ndarray
    count: int
    positions: str | None
    length: int


class Answerer:
    """Answers for the blocks of one sweep.

    Args:
        lvlm: the model.
        options: what holds for every call: `max_new_tokens` and how tokens are drawn.
        batch: rows that are answered together.
    """

    def __init__(self, lvlm: LVLM, options: CallOptions, batch: int) -> None:
        self.lvlm = lvlm
        self.options = lvlm.settings.resolve(options)
        self.batch = batch

    def check(self, question: str, pictures: int) -> None:
        """Refuse a question that cannot be asked, before anything is computed.

        Args:
            question: its text.
            pictures: how many it is about.

        Raises:
            CallError: it holds a placeholder, or its words leave no room for an answer.
        """
        read = self.lvlm.encoder.encode(question, ("image",) * pictures, chat_template=True)
        most = self.lvlm.config.text.max_position_embeddings
        check_context(len(read.ids) - pictures, self._most, most)

    def distinct(
        self, block: Block, chosen: Sequence[tuple[Configuration, Kept]]
    ) -> tuple[list[Wanted], dict[str, list[int]]]:
        """The different keep lists, and for each configuration which of them each example has.

        A failed example has -1.
        """
        texts = self._prompts(block)
        words = [len(prompt.ids) - len(block.encoded.layouts[row])
                 for prompt, row in zip(texts.encoded, block.rows, strict=True)]  # fmt: skip
        wanted: list[Wanted] = []
        known: dict[Any, int] = {}
        which: dict[str, list[int]] = {}
        whole = block.encoded.visual.valid
        full = np.asarray(whole)[block.places]
        for one, kept in chosen:
            own = []
            given = one.axes.get("positions")
            for example, mask in enumerate(kept.mask):
                if kept.failed[example] and block.totals[example]:
                    own.append(-1)
                    continue
                # Where nothing is left out both rules of positions are one.
                positions = None if (mask == full[example]).all() else given
                key = example, positions, np.packbits(mask).tobytes()
                if key not in known:
                    known[key] = len(wanted)
                    count = int(mask.sum())
                    wanted.append(Wanted(example, mask, count, positions, words[example] + count))
                own.append(known[key])
            which[one.name] = own
        return wanted, which

    def batches(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """Which of the wanted run together, in the order of their lengths."""
        groups: dict[Any, list[int]] = {}
        for number, one in enumerate(wanted):
            length = buckets.multiple(one.length, GRAIN)
            groups.setdefault((one.positions or "", length), []).append(number)
        made = []
        for key in sorted(groups):
            own = groups[key]
            made += [own[at : at + self.batch] for at in range(0, len(own), self.batch)]
        return made

    def answer(self, block: Block, wanted: Sequence[Wanted]) -> tuple[list[Answer], float]:
        """Prefill and decode every distinct list.

        Returns:
            (the answers, seconds that prefilling and decoding took of it)

        Raises:
            KeyboardInterrupt: the run is to stop.
        """
        found: list[Answer | None] = [None] * len(wanted)
        on_devices = 0.0
        prompts = self._prompts(block)
        for numbers in self.batches(wanted):
            stopping.check()
            rows = [wanted[n] for n in numbers]
            try:
                said, spent = self._together(block, prompts, rows)
            except CallError:  # one that is longer than the context, with its visual tokens
                said, spent = self._one_by_one(block, prompts, rows)
            on_devices += spent
            for number, one in zip(numbers, said, strict=True):
                found[number] = one
        return [one for one in found if one is not None], on_devices

    def _one_by_one(
        self, block: Block, prompts: Prompts, rows: list[Wanted]
    ) -> tuple[list[Answer], float]:
        answers, seconds = [], 0.0
        for row in rows:
            try:
                said, spent = self._together(block, prompts, [row])
                answers += said
                seconds += spent
            except CallError as error:
                answers.append(Answer("", reason(error), row.count, 0.0, 0.0))
        return answers, seconds

    def _together(
        self, block: Block, prompts: Prompts, rows: list[Wanted]
    ) -> tuple[list[Answer], float]:
        begin = time.perf_counter()
        real = len(rows)
        # Few sizes of a batch: a last one is filled up to a power of two.
        size = min(self.batch, max(8, buckets.image_bucket(real)))
        filled = rows + rows[:1] * (size - real)
        own = Prompts(
            [prompts.encoded[row.example] for row in filled], [[] for _ in filled], "none",
            tuple(block.rows[row.example] for row in filled),
        )  # fmt: skip
        positions: Any = rows[0].positions
        call = self.lvlm.lay_out(
            own, block.encoded.visual, block.encoded.layouts,
            [row.count if block.totals[row.example] else None for row in filled],
            dataclasses.replace(self.options, positions=positions), method=None,
            new_tokens=self._most,
        )  # fmt: skip
        length = max(buckets.multiple(row.length, GRAIN) for row in filled)
        call = dataclasses.replace(call, plan=dataclasses.replace(call.plan, length=length))
        kept = np.stack([row.mask for row in filled])
        made = self.lvlm.run(call, last=self._most, chosen=Chosen(*self.lvlm.put(kept)))
        spent = made.timings["prefill"] + made.timings["decode"]
        return self._said(call, made, begin)[:real], spent

    @property
    def _most(self) -> int:
        assert self.options.max_new_tokens is not None
        return self.options.max_new_tokens

    def _said(self, call: Call, made: Outcome, begin: float) -> list[Answer]:
        """The answers of a batch, and what they cost."""
        plan = call.plan
        errors = row_errors(made.failed, made.finite, plan)
        ids = answered_ids(made, errors, np.full(plan.size, self._most), EMPTY)
        texts = [self.lvlm.encoder.decode(row) for row in ids]
        costs = costs_of_rows(
            drops_of_rows(made, call), plan, self.lvlm.config.text, self.lvlm.dtype.itemsize
        )
        kept = plan.own(made.kept).sum(axis=1).tolist()
        seconds = (time.perf_counter() - begin - made.timings["select"]) / plan.size
        return [
            Answer(
                "" if error else text, error, count,
                0.0 if cost is None else cost.average, seconds,
                tuple(noun.text for noun in own), call.prompts.backend,
                made.timings["select"] / plan.size,
            )
            for text, error, count, cost, own in zip(
                texts, errors, kept, costs, call.prompts.nouns, strict=True
            )
        ]  # fmt: skip

    def alone(
        self, block: Block, one: Configuration, method: Method, pictures: Sequence[Any]
    ) -> list[Answer]:
        """The answers under a configuration whose rows nothing else shares.

        Args:
            block: of examples.
            one: a configuration of a method that merges, or that works elsewhere than in front of
                the LLM.
            method: of it.
            pictures: of each row of images, read where the method makes them smaller.
        """
        begin = time.perf_counter()
        places = in_image_order(block)
        images: Any = block.encoded
        if method.stage == "pixels":
            images = list(pictures)
        options = dataclasses.replace(
            one.options(), max_new_tokens=self._most, rng_seed=self.options.rng_seed,
            image_aspect=self.options.image_aspect,
        )  # fmt: skip
        call = self.lvlm.prepare(images, block.nested, options, new_tokens=self._most)
        if isinstance(method, DecoderMethod) or method.stage == "pixels":
            made = self.lvlm.run(call, last=self._most)
        else:
            chosen = self.lvlm.choose(call)
            plan = call.plan
            counts = plan.own(chosen.kept).sum(axis=1)
            words = (plan.valid[: plan.size].sum(axis=1)) - plan.totals[: plan.size]
            tight = buckets.multiple(int((counts + words).max()), GRAIN)
            length = min(plan.length, tight)
            call = dataclasses.replace(call, plan=dataclasses.replace(plan, length=length))
            made = self.lvlm.run(call, last=self._most, chosen=chosen)
        said = self._said(call, made, begin)
        return [said[place] for place in places]

    def _prompts(self, block: Block) -> Prompts:
        return read_prompts(
            self.lvlm.encoder, list(block.questions), block.media, text=None, extractor=None,
            ocr_line="strip", chat_template=True,
        )  # fmt: skip
