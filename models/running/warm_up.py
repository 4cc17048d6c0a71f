"""Compiling ahead: blank pictures and prompts that stand for those to come.

A program is compiled when it is first called, so what is warmed up is called once, on blank
pictures of the sizes that are expected; shapes that were met before are not run again.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.models.families.base import Picture, Video
from resprune_jax.models.prompts import buckets
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
        CallError: no size, or something else than whole numbers of at least 1.
    """
    rows: list[list[Any]] = []
    for entry in sizes:
        single = len(entry) > 0 and not isinstance(entry[0], Sequence)
        rows.append([entry] if single else list(entry))
    whole = (int, np.integer)
    for row in rows or [[]]:
        good = bool(row) and all(len(size) in (2, 3) for size in row)
        if not good or any(not isinstance(n, whole) or n < 1 for size in row for n in size):
            raise CallError(
                f"sizes is a list of (height, width), or (frames, height, width) for a video, in "
                f"pixels, got {sizes!r}"
            )
    return rows


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
    for name, values in (("prompt_lengths", prompt_lengths), ("batch_sizes", batch_sizes)):
        if not values or any(n < 1 for n in values):
            raise CallError(f"{name} holds whole numbers of at least 1, got {list(values)}")
    several = isinstance(options.keep, Sequence) and not isinstance(options.keep, str)
    keep = options.budgets(len(options.keep) if several else 1)  # type: ignore[arg-type]
    options = lvlm.settings.resolve(options)
    assert options.max_new_tokens is not None
    method = lvlm.method_of(options)
    rows = rows_of_sizes(sizes)
    lengths = _representatives(prompt_lengths, buckets.length_bucket)
    done: set[Any] = set()
    encoded: dict[Any, Any] = {}
    for batch in _representatives(batch_sizes, buckets.batch_bucket):
        for row in rows:
            pictures = lvlm.family.read([[blank(size) for size in row]] * batch, "processor")
            shape = _shapes(pictures.inputs)
            if shape not in encoded:
                encoded[shape] = lvlm.run_tower(pictures).visual
            media = tuple(image.media for image in pictures.layouts[0])
            for length in lengths:
                prompt = plain_prompt(lvlm.encoder, media, length)
                prompts = Prompts([prompt] * batch, [[] for _ in range(batch)], "none")
                for budget in keep:
                    call = lvlm.lay_out(
                        prompts, encoded[shape], pictures.layouts, [budget] * batch, options,
                        method=method, new_tokens=options.max_new_tokens,
                    )  # fmt: skip
                    plan = call.plan
                    key = (shape, plan.ids.shape, plan.length, plan.picks, _shapes(plan.rope))
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
