"""Prompts as arrays: a place for every visual token, rows padded to one length."""

from collections.abc import Sequence

import numpy as np

from resprune_jax.errors import CallError


def expand(
    ids: np.ndarray, placeholders: int | Sequence[int], counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Repeat each image placeholder once for every visual token of its image.

    Args:
        ids: (S,) token ids with one placeholder an image.
        placeholders: the placeholder's id, or those of every kind of media.
        counts: visual tokens of each image, in the order of the placeholders.

    Returns:
        (ids (P,) int32, visual_index (P,) int32): the index of a position's token among the row's
        visual tokens, all images in one run, or -1 for text.

    Raises:
        CallError: another number of counts than placeholders, or a negative count.
    """
    here = np.isin(ids, placeholders)
    if here.sum() != len(counts):
        raise CallError(f"{here.sum()} image placeholders for {len(counts)} images")
    if any(count < 0 for count in counts):
        raise CallError(f"an image gives 0 visual tokens or more, got {list(counts)}")
    repeats = np.ones(len(ids), np.int64)
    repeats[here] = counts
    expanded = np.repeat(ids, repeats).astype(np.int32)
    visual = np.repeat(here, repeats)
    index = np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32)
    return expanded, index


def pad_batch(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], length: int, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stack expanded prompts, padded on the right to one static length.

    Args:
        rows: B pairs (ids, visual_index) as `expand` gives them.
        length: of the result, S, in tokens.
        pad_id: the id in padded positions; its value has no effect where `valid` is honoured.

    Returns:
        (ids (B, S) int32, visual_index (B, S) int32 with -1 in padding, valid (B, S) bool).

    Raises:
        CallError: a row longer than `length`.
    """
    ids = np.full((len(rows), length), pad_id, np.int32)
    visual_index = np.full((len(rows), length), -1, np.int32)
    valid = np.zeros((len(rows), length), bool)
    for row, (own, index) in enumerate(rows):
        if len(own) > length:
            raise CallError(f"a prompt of {len(own)} tokens does not fit the length {length}")
        ids[row, : len(own)] = own
        visual_index[row, : len(own)] = index
        valid[row, : len(own)] = True
    return ids, visual_index, valid


MOST_VISUAL = 2**17
"""Visual tokens of a prompt before pruning, at most: choosing among them holds a few float32 copies
of them all, 2 GiB each at a width of 4,096."""


def check_visual(visual_tokens: int) -> None:
    """Refuse a prompt with more pictures than memory can be foreseen for.

    Args:
        visual_tokens: of all its images and videos, before pruning.

    Raises:
        CallError: they are more than `MOST_VISUAL`.
    """
    if visual_tokens > MOST_VISUAL:
        raise CallError(
            f"a prompt has {visual_tokens} visual tokens before pruning, and at most {MOST_VISUAL}"
            " are chosen from: give fewer or smaller images, or fewer frames"
        )


def check_context(prompt_tokens: int, new_tokens: int, max_positions: int) -> None:
    """Refuse a prompt that leaves no room for its answer.

    Args:
        prompt_tokens: text and visual tokens that enter the language model.
        new_tokens: the most tokens to generate.
        max_positions: the model's context, in tokens.

    Raises:
        CallError: they do not fit together.
    """
    if prompt_tokens + new_tokens > max_positions:
        raise CallError(
            f"a prompt of {prompt_tokens} tokens (text and visual) and {new_tokens} new tokens "
            f"exceed the model's context of {max_positions}: shorten the prompt, keep fewer visual "
            "tokens or generate fewer tokens"
        )
