"""A call laid out on the host: prompts, nouns and budgets as padded arrays; nothing runs yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.errors import CallError, shown
from resprune_jax.models.families.base import Family, ImageLayout, Layouts, pad_rows
from resprune_jax.models.prompts import buckets, budgets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.chat import Conversation, EncodedPrompt, PromptEncoder
from resprune_jax.models.prompts.expansion import check_context, check_visual, expand, pad_batch
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.prompts import (
    Noun,
    NounExtractor,
    OcrLine,
    TextSource,
    conditioning_spans,
    noun_token_ids,
)

Question = str | Conversation

Questions = Question | Sequence[Question] | Sequence[Sequence[Question]]
"""A question, one a row, or several about each image; each alone or behind a conversation."""


@dataclass(frozen=True)
class Planned:
    """What a prompt's images give and what its budget leaves of them, known before anything runs.

    Attributes:
        images: visual tokens of each image.
        kept: how many of them all enter the LLM; a tolerance can leave fewer.
    """

    images: tuple[int, ...]
    kept: int


@dataclass(frozen=True)
class Prompts:
    """The questions of a call: checked and tokenized, before any image is read.

    Attributes:
        encoded: one for each question.
        nouns: what conditions the choice of each, spans included.
        backend: which part-of-speech tagger found them.
        rows: which row of images each is about; empty: the only one, or each its own.
    """

    encoded: list[EncodedPrompt]
    nouns: list[list[Noun]]
    backend: str
    rows: tuple[int, ...] = ()

    def about(self, images: int) -> np.ndarray:
        """Which of so many rows of images each prompt is about, (B,) int32."""
        count = len(self.encoded)
        if self.rows:
            return np.asarray(self.rows, np.int32)
        return np.zeros(count, np.int32) if images == 1 else np.arange(count, dtype=np.int32)


def read_questions(prompts: Any, images: int) -> tuple[list[Question], tuple[int, ...]]:
    """The questions of a call, one after the other, and which row of images each is about.

    Args:
        prompts: a question, a list of them, or for each row of images a list of them.
        images: rows of images.

    Returns:
        (B questions, B row numbers).

    Raises:
        CallError: no question, something else, or questions for another number of images.
    """
    if isinstance(prompts, str | Conversation):
        prompts = [prompts]
    if not isinstance(prompts, list | tuple):
        if not (isinstance(prompts, np.ndarray) and prompts.ndim == 1):
            raise CallError(f"prompts are texts, or a list of them, got {shown(prompts)}")
        prompts = prompts.tolist()
    if not prompts:
        raise CallError("no prompt was given")
    nested = [isinstance(own, list | tuple) for own in prompts]
    if not any(nested):
        questions, rows = prompts, tuple(range(len(prompts)))
        if images == 1:
            rows = (0,) * len(prompts)
        elif images != len(prompts):
            raise CallError(
                f"{images} images for {len(prompts)} prompts: give one image for all prompts, one"
                " for each, a list of images for each, or a list of prompts for each image"
            )
    else:
        if not all(nested):
            raise CallError("prompts mix texts and lists of texts: give every image a list")
        if len(prompts) != images:
            raise CallError(f"{len(prompts)} lists of prompts for {images} images: give each one")
        if not all(prompts):
            raise CallError(f"no prompt was given for image {[not p for p in prompts].index(True)}")
        questions = [question for own in prompts for question in own]
        rows = tuple(row for row, own in enumerate(prompts) for _ in own)
    for number, question in enumerate(questions):
        if not isinstance(question, str | Conversation):
            raise CallError(f"prompt {number} is no text: {shown(question)}")
    return list(questions), rows


@dataclass(frozen=True)
class Plan:
    """A batch as the compiled functions take it, made on the host before anything runs.

    Arrays are padded to their buckets: rows beyond `size` repeat row 0.
    """

    size: int  # real rows
    noun_ids: np.ndarray  # [B, M]
    noun_valid: np.ndarray  # [B, M]
    about: tuple[int, ...]  # which row of images each real prompt is about
    rows: np.ndarray  # [B] which row of visual tokens that is
    ids: np.ndarray  # [B, S]
    visual_index: np.ndarray  # [B, S]
    valid: np.ndarray  # [B, S]
    rope: Any  # the family's positions of the unpruned prompts, or None
    totals: np.ndarray  # [B] visual tokens of the row's images
    full: np.ndarray  # [B] bool, rows that keep them all
    limits: np.ndarray  # [B] visual tokens that each row may keep, or [B, R] for each of its images
    images: tuple[tuple[int, ...], ...]  # visual tokens of each image, for the B prompts
    length: int  # P, slots of the pruned prompts
    picks: int  # K, slots of a selection

    def own(self, kept: Any) -> np.ndarray:
        """Of tokens (B, N) bool, those of the real rows: a row without images borrows another's."""
        return np.asarray(kept)[: self.size] & (self.totals[: self.size, None] > 0)

    def owner(self, tokens: int) -> np.ndarray:
        """Which of its row's images each of `tokens` slots belongs to, [B, tokens]; -1: none."""
        table = np.full((len(self.rows), tokens), -1, np.int32)
        for row, counts in enumerate(self.images):
            own = np.repeat(np.arange(len(counts)), counts)
            table[row, : len(own)] = own
        return table


def read_prompts(
    encoder: PromptEncoder,
    questions: Sequence[Question],
    media: list[tuple[str, ...]],
    *,
    text: TextSource | None,
    extractor: NounExtractor | None,
    ocr_line: OcrLine,
    chat_template: bool,
    rows: tuple[int, ...] = (),
) -> Prompts:
    """Tokenize the questions and find their nouns.

    Args:
        encoder: makes prompts of questions.
        questions: B of them.
        media: what each is about, see `PromptEncoder.encode`.
        text: what conditions the choice, or None for nothing.
        extractor: finds the nouns where `text` is "nouns".
        ocr_line: whether a line of reference OCR tokens counts.
        chat_template: whether questions go into the checkpoint's template.
        rows: see `Prompts`.

    Raises:
        CallError: a prompt that cannot be used.
    """
    pairs = zip(questions, media, strict=True)
    encoded = [encoder.encode(q, about, chat_template=chat_template) for q, about in pairs]
    nouns: list[list[Noun]] = [[] for _ in encoded]
    if text is not None:
        nouns = [
            conditioning_spans(prompt.question, extractor, text=text, ocr_line=ocr_line)
            for prompt in encoded
        ]
    backend = {None: "none", "prompt": "whole prompt"}.get(text, "")
    tagger = extractor.backend if extractor is not None else backend
    return Prompts(encoded, nouns, tagger, rows)


def make_plan(
    family: Family,
    encoder: PromptEncoder,
    prompts: Prompts,
    layouts: Layouts,
    budget: list[Keep],
    options: CallOptions,
    *,
    slots: int,
    new_tokens: int,
    beside: int = 0,
) -> Plan:
    """Lay a batch of questions out.

    Static sizes follow the bucket of visual tokens, not the tokens themselves: images of one bucket
    under one budget give prompts of one size, whatever the budget.

    Args:
        family: for positions and the context's length.
        encoder: for the ids of placeholders.
        prompts: B of them.
        layouts: of the rows of images, which the prompts are about.
        budget: one for each prompt.
        options: whether a prompt's images share its budget, and newline tokens compete for it.
        slots: N, the bucket of a row's visual tokens.
        new_tokens: room to leave in the context.
        beside: see `Method.beside`.

    Returns:
        The plan.

    Raises:
        CallError: a prompt that is longer than the context.
    """
    encoded, count = prompts.encoded, len(prompts.encoded)
    per_image = options.budget == "per_image"
    noun_ids, noun_valid = noun_tokens(encoded, prompts.nouns)
    about = prompts.about(len(layouts))
    own = [layouts[row] for row in about]
    # Visual tokens hold the rows that have images alone; a prompt without one borrows the row in
    # front of it, of which it shows nothing.
    places = np.maximum(np.cumsum([bool(row) for row in layouts]) - 1, 0).astype(np.int32)
    rows = places[about]
    images = tuple(tuple(image.tokens for image in row) for row in own)
    placeholders = [token_id for token_id, _ in encoder.placeholders.values()]
    expanded = [
        expand(prompt.ids, placeholders, counts)
        for prompt, counts in zip(encoded, images, strict=True)
    ]
    totals = np.asarray([sum(counts) for counts in images])
    words = np.asarray([len(ids) for ids, _ in expanded]) - totals
    room = buckets.length_bucket(int(words.max()))
    ids, visual_index, valid = pad_batch(expanded, slots + room)
    width = max(1, *map(len, images)) if per_image else 1
    limits = resolve_limits(images, budget, per_image=per_image)
    extra = [_beside(row, options, beside) for row in own]
    check_lengths(family, prompts, layouts, budget, options, beside=beside, new_tokens=new_tokens)
    picks = [budgets.ceiling(keep, slots) + beside for keep in budget if keep is not None]
    pictured = [keep for keep, row in zip(budget, own, strict=True) if row]
    visual = _room(pictured, slots, images=width) + buckets.step(max(extra)) if pictured else 0
    size = buckets.batch_bucket(count)
    ids, visual_index, valid = (pad_rows(x, size) for x in (ids, visual_index, valid))
    spare = size - count
    return Plan(
        size=count,
        noun_ids=pad_rows(noun_ids, size),
        noun_valid=pad_rows(noun_valid, size),
        about=tuple(about.tolist()),
        rows=pad_rows(rows, size),
        ids=ids,
        visual_index=visual_index,
        valid=valid,
        rope=family.rope(ids, valid, (*own, *own[:1] * spare)),
        totals=pad_rows(totals, size),
        full=pad_rows(np.asarray([k is None for k in budget]), size),
        limits=pad_rows(limits, size),
        images=images + images[:1] * spare,
        length=room + buckets.step(min(visual, slots)),
        picks=min(slots, buckets.step(max(picks, default=0))),
    )


def check_lengths(
    family: Family,
    prompts: Prompts,
    layouts: Layouts,
    budget: list[Keep],
    options: CallOptions,
    *,
    beside: int = 0,
    new_tokens: int,
) -> None:
    """Refuse a prompt that leaves no room for its answer; arguments as for `make_plan`.

    Raises:
        CallError: text, kept visual tokens and answer exceed the model's context, or the images
            have too many visual tokens to choose from.
    """
    own = [layouts[row] for row in prompts.about(len(layouts))]
    check_visual(max(sum(image.tokens for image in row) for row in own))
    kept = [each.kept for each in planned(own, budget, options, beside)]
    words = [len(prompt.ids) - len(row) for prompt, row in zip(prompts.encoded, own, strict=True)]
    longest = max(text + visual for text, visual in zip(words, kept, strict=True))
    check_context(longest, new_tokens, family.config.text.max_position_embeddings)


def check_ceiling(prompts: Prompts, layouts: Layouts, ceiling: int | None, source: str) -> None:
    """Refuse prompts that a checkpoint's `max_length` leaves no answer.

    Args:
        prompts: B of them.
        layouts: as for `make_plan`.
        ceiling: the most tokens of prompt and answer, visual tokens that are not kept included.
        source: where it is from.

    Raises:
        CallError: a prompt of so many tokens or more.
    """
    own = [layouts[row] for row in prompts.about(len(layouts))]
    for prompt, row in zip(prompts.encoded, own, strict=True):
        length = len(prompt.ids) - len(row) + sum(image.tokens for image in row)
        if ceiling is not None and length >= ceiling:
            raise CallError(
                f"max_length={ceiling} of {source} bounds prompt and answer together, and a prompt"
                f" has {length} tokens (all visual tokens count): give max_new_tokens"
            )


def planned(
    layouts: Sequence[Sequence[ImageLayout]],
    budget: list[Keep],
    options: CallOptions,
    beside: int = 0,
) -> list[Planned]:
    """What each prompt's images give and what is kept of them; arguments as for `make_plan`.

    Args:
        layouts: of each prompt's images.
        budget: one for each prompt.
        options: the call's.
        beside: see `Method.beside`.
    """
    per_image = options.budget == "per_image"
    images = [tuple(image.tokens for image in row) for row in layouts]
    limits = resolve_limits(images, budget, per_image=per_image)
    most = limits.sum(axis=1) if per_image else limits
    made = []
    for row, counts, kept in zip(layouts, images, most.tolist(), strict=True):
        made.append(Planned(counts, min(kept + _beside(row, options, beside), sum(counts))))
    return made


def resolve_limits(
    images: Sequence[Sequence[int]], budget: list[Keep], *, per_image: bool
) -> np.ndarray:
    """Visual tokens that each prompt may choose, (B,), or (B, R) for each of its images."""
    if not per_image:
        return budgets.resolve(budget, [sum(counts) for counts in images])
    limits = np.zeros((len(images), buckets.image_bucket(max(map(len, images)))), np.int32)
    for row, (keep, counts) in enumerate(zip(budget, images, strict=True)):
        limits[row, : len(counts)] = budgets.resolve([keep] * len(counts), counts)
    return limits


def _beside(row: Sequence[ImageLayout], options: CallOptions, beside: int) -> int:
    """What is kept beside the budget: newline tokens, and what a method adds to each choice."""
    lines = sum(image.newlines for image in row) if options.newline == "always" else 0
    return lines + beside * (len(row) if options.budget == "per_image" else min(1, len(row)))


def _room(budget: list[Keep], slots: int, *, images: int) -> int:
    """The most visual tokens that a row of this bucket keeps, each of its images by the budget."""
    if images == 1:
        return max(budgets.ceiling(keep, slots) for keep in budget)
    # Each image's share of a ratio is rounded, and at least one token.
    return max(
        slots
        if keep is None
        else round(keep * slots) + images
        if isinstance(keep, float)
        else keep * images
        for keep in budget
    )


def noun_tokens(
    prompts: list[EncodedPrompt], nouns: list[list[Noun]]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the tokens that spell each question's nouns (B, M), and their validity."""
    ids = [
        noun_token_ids(
            [noun.span(prompt.question_start) for noun in own], prompt.offsets, prompt.ids,
            prompt.text, pieces=prompt.pieces,
        )
        for prompt, own in zip(prompts, nouns, strict=True)
    ]  # fmt: skip
    width = buckets.noun_bucket(max(len(row) for row in ids))
    table = np.zeros((len(ids), width), np.int32)
    valid = np.zeros((len(ids), width), bool)
    for row, own in enumerate(ids):
        table[row, : len(own)], valid[row, : len(own)] = own, True
    return table, valid
