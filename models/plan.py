"""A call laid out on the host: prompts, nouns and budgets as padded arrays; nothing runs yet."""

from dataclasses import dataclass

import numpy as np

from resprune_jax.models import buckets, budgets
from resprune_jax.models.budgets import Keep
from resprune_jax.models.chat import EncodedPrompt, PromptEncoder, check_context, expand, pad_batch
from resprune_jax.models.config import LlavaConfig
from resprune_jax.prompts import (
    Noun,
    NounExtractor,
    OcrLine,
    TextSource,
    conditioning_spans,
    noun_token_ids,
)


@dataclass(frozen=True)
class Plan:
    """A batch as the compiled functions take it, made on the host before anything runs.

    Arrays are padded to their buckets: rows beyond `size` repeat row 0.
    """

    size: int  # real rows
    prompts: list[EncodedPrompt]
    nouns: list[list[str]]
    noun_backend: str
    noun_ids: np.ndarray  # [B, M]
    noun_valid: np.ndarray  # [B, M]
    rows: np.ndarray  # [B] which image each prompt asks about
    ids: np.ndarray  # [B, S]
    visual_index: np.ndarray  # [B, S]
    valid: np.ndarray  # [B, S]
    totals: np.ndarray  # [B] visual tokens of the row's image
    full: np.ndarray  # [B] bool, rows that keep them all
    limits: np.ndarray  # [B] visual tokens that each row may keep
    length: int  # bucket of the longest pruned prompt


def make_plan(
    config: LlavaConfig,
    encoder: PromptEncoder,
    questions: list[str],
    budget: list[Keep],
    *,
    shared_image: bool,
    text: TextSource | None,
    extractor: NounExtractor | None,
    ocr_line: OcrLine,
    chat_template: bool,
    max_new_tokens: int,
) -> Plan:
    """Lay a batch of questions out.

    Args:
        config: the architecture, for token counts and limits.
        encoder: makes prompts of questions.
        questions: B of them.
        budget: one for each question.
        shared_image: all questions are about one image; else each has its own.
        text: what conditions the choice, or None for nothing.
        extractor: finds the nouns where `text` is "nouns".
        ocr_line: whether a line of reference OCR tokens counts.
        chat_template: whether questions go into the checkpoint's template.
        max_new_tokens: room to leave in the context.

    Returns:
        The plan.

    Raises:
        CallError: a prompt that cannot be used, or is longer than the context.
    """
    encoded = [encoder.encode(q, chat_template=chat_template) for q in questions]
    nouns: list[list[Noun]] = [[] for _ in encoded]
    if text is not None:
        nouns = [
            conditioning_spans(prompt.question, extractor, text=text, ocr_line=ocr_line)
            for prompt in encoded
        ]
    noun_ids, noun_valid = noun_tokens(encoded, nouns)
    per_image = config.num_visual_tokens
    expanded = [expand(p.ids, config.image_token_id, [per_image]) for p in encoded]
    widest = max(len(ids) for ids, _ in expanded)
    ids, visual_index, valid = pad_batch(expanded, buckets.length_bucket(widest))
    totals = (visual_index >= 0).sum(axis=1)
    limits = budgets.resolve(budget, totals)
    longest = int(np.max((valid & (visual_index < 0)).sum(axis=1) + limits))
    check_context(longest, max_new_tokens, config.text.max_position_embeddings)
    size = buckets.batch_bucket(len(questions))
    rows = np.zeros(len(questions)) if shared_image else np.arange(len(questions))
    backend = {None: "none", "prompt": "whole prompt"}.get(text, "")
    return Plan(
        size=len(questions),
        prompts=encoded,
        nouns=[[noun.text for noun in own] for own in nouns],
        noun_backend=extractor.backend if extractor is not None else backend,
        noun_ids=pad_rows(noun_ids, size),
        noun_valid=pad_rows(noun_valid, size),
        rows=pad_rows(rows.astype(np.int32), size),
        ids=pad_rows(ids, size),
        visual_index=pad_rows(visual_index, size),
        valid=pad_rows(valid, size),
        totals=pad_rows(totals, size),
        full=pad_rows(np.asarray([k is None for k in budget]), size),
        limits=pad_rows(limits, size),
        length=buckets.length_bucket(longest),
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


def pad_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first row until the batch has `size` rows: real work, so nothing can be NaN."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)])
