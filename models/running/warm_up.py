"""Compiling ahead: blank pictures and prompts that stand for those to come.

A program is compiled when it is first called, so what is warmed up is called once, on blank
pictures of the sizes that are expected; shapes that were met before are not run again.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resprune_jax.arguments import whole
from resprune_jax.errors import CallError, shown
from resprune_jax.methods import for_rows, rows_of
from resprune_jax.models.families.base import Picture, Video
from resprune_jax.models.images.files import check_size
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.budgets import listed
from resprune_jax.models.prompts.chat import EncodedPrompt, PromptEncoder
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.plan import Prompts

if TYPE_CHECKING:
    from resprune_jax.models.api import LVLM

Size = tuple[int, int] | tuple[int, int, int]
"""(height, width) of a picture, or (frames, height, width) of a video, in pixels."""

Sizes = Sequence[Size | Sequence[Size]]
"""For each kind of prompt, the size of its picture, or those of its pictures and videos."""


def blank(size: Size) -> Picture:
    """A black picture, or a video of them, of this size."""
    pixels = np.zeros((*size, 3), np.uint8)
    return pixels if len(size) == 2 else Video(pixels, fps=24.0)


def rows_of_sizes(sizes: Sizes) -> list[list[Size]]:
    """The sizes of each kind of prompt.

    Raises:
        CallError: no size, or something else than whole numbers of at least 1, or too large a one.
    """
    rows: list[list[Any]] = []
    try:
        for entry in sizes:
            single = not isinstance(entry[0], Sequence | np.ndarray)
            row = [entry] if single else list(entry)
            rows.append([tuple(whole("a size", n) for n in size) for size in row])  # type: ignore[union-attr]
    except Exception:  # whatever indexing something else raises
        rows = []
    if not rows or any(len(size) not in (2, 3) for row in rows for size in row):
        raise CallError(
            f"sizes is a list of (height, width), or (frames, height, width) for a video, in "
            f"pixels, got {shown(sizes)}"
        )
    for size in (size for row in rows for size in row):
        check_size(size[-1], size[-2], "a picture of these sizes")
        if len(size) == 3 and size[0] > MOST_FRAMES:
            raise CallError(f"a video of these sizes has {size[0]} frames: {MOST_FRAMES} at most")
    return rows


MOST_FRAMES = 10_000
MOST_ROWS = 4096


def _counts(name: str, values: Any, most: int) -> list[int]:
    """Whole numbers of at least 1.

    Raises:
        CallError: none, something else, or one beyond `most`.
    """
    given = listed(values)
    try:
        found = [whole(name, n) for n in given] if isinstance(given, list | tuple | range) else []
    except CallError:
        found = []
    if not found:
        raise CallError(f"{name} holds whole numbers of at least 1, got {shown(values)}")
    if max(found) > most:
        raise CallError(f"{name} go up to {most} here, got {max(found)}")
    return found


def plain_prompt(encoder: PromptEncoder, media: Sequence[str], tokens: int) -> EncodedPrompt:
    """A prompt of so many tokens beside its placeholders, without a noun."""
    ids = [encoder.placeholders[kind][0] for kind in media] + [0] * tokens
    offsets = np.zeros((len(ids), 2), np.int32)
    return EncodedPrompt("", np.asarray(ids, np.int32), ("",) * len(ids), offsets, 0, "")


def warm_up(
    lvlm: "LVLM",
    sizes: Sizes,
    options: CallOptions,
    *,
    prompt_lengths: Sequence[int],
    batch_sizes: Sequence[int],
) -> int:
    """Run every combination once; see `LVLM.warm_up`.

    Returns:
        How many different shapes were run.
    """
    context = lvlm.family.config.text.max_position_embeddings
    prompt_lengths = _counts("prompt_lengths", prompt_lengths, context)
    batch_sizes = _counts("batch_sizes", batch_sizes, MOST_ROWS)
    budgets = listed(options.keep)
    keep = options.budgets(len(budgets) if isinstance(budgets, list | tuple) else 1)
    if not keep:
        raise CallError("keep is an empty list: give the budgets to come")
    options = lvlm.settings.resolve(options)
    assert options.max_new_tokens is not None
    method = lvlm.method_of(options)
    if method is not None and method.stage == "pixels":
        raise CallError(
            f"warm_up runs full pictures, and {type(method).__name__} makes them smaller: warm up"
            " by a call of your own"
        )
    entries = 1 if method is None else rows_of(method)
    needs = frozenset() if method is None else frozenset(method.needs)
    rows = rows_of_sizes(sizes)
    lengths = _representatives(prompt_lengths, buckets.length_bucket)
    done: set[Any] = set()
    encoded: dict[Any, Any] = {}
    for batch in _representatives(batch_sizes, buckets.batch_bucket):
        for row in rows:
            pictures = lvlm.family.read([[blank(size) for size in row]] * batch, "processor")
            shape = _shapes(pictures.inputs)
            if shape not in encoded:
                encoded[shape] = lvlm.run_tower(pictures, needs).visual
            media = tuple(image.media for image in pictures.layouts[0])
            for length in lengths:
                prompt = plain_prompt(lvlm.encoder, media, length)
                prompts = Prompts([prompt] * batch, [[] for _ in range(batch)], "none")
                own = None if method is None else for_rows(method, entries, batch)
                for budget in keep:
                    call = lvlm.lay_out(
                        prompts, encoded[shape], pictures.layouts, [budget] * batch, options,
                        method=own, new_tokens=options.max_new_tokens,
                    )  # fmt: skip
                    plan = call.plan
                    inside = None if call.schedule is None else call.schedule.stops
                    key = (
                        shape, plan.ids.shape, plan.length, plan.picks, _shapes(plan.rope), inside
                    )  # fmt: skip
                    if key not in done:
                        done.add(key)
                        # One step of the loop compiles it as a thousand would.
                        lvlm.run(call, last=1)
    return len(done)


def _representatives(values: Iterable[int], bucket: Any) -> list[int]:
    """The largest value of each bucket, ascending."""
    largest: dict[int, int] = {}
    for value in sorted(values):
        largest[bucket(value)] = value
    return list(largest.values())


def _shapes(tree: Any) -> Any:
    """The shapes of a pytree's arrays, to tell one program from another."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(np.shape(leaf) for leaf in leaves)
