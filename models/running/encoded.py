"""Images as a user gives them, and what the vision tower made of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from resprune_jax.arguments import array_of
from resprune_jax.errors import CallError
from resprune_jax.methods import VisualTokens
from resprune_jax.methods.base import NEWLINE, OPTIONAL
from resprune_jax.models.families.base import (
    Family,
    ImageLayout,
    Layouts,
    Picture,
    Pictures,
    Video,
)
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import ImageAspect


@dataclass(frozen=True)
class Encoded:
    """What `LVLM.encode` gives: visual tokens for any number of questions.

    Attributes:
        visual: the tokens of the rows that have images, and those that fill the batch's bucket.
        layouts: of all B rows, what the host knows of their images; empty where there are none.
    """

    visual: VisualTokens
    layouts: Layouts

    def __getattr__(self, name: str) -> Any:
        """Read a field of the visual tokens, of the rows that have images alone."""
        if name not in VisualTokens.__dataclass_fields__:
            raise AttributeError(name)
        values = getattr(self.visual, name)
        return None if values is None else values[: sum(map(bool, self.layouts))]


Images = Picture | Sequence[Picture | Sequence[Picture] | None] | Encoded | VisualTokens | None
"""One image (a path, a PIL image, an array or a `Video`), a list with one for each prompt, lists in
that list where prompts have several, None for a prompt without one, or what `LVLM.encode` gave."""


def rows_of(images: Images) -> list[list[Picture]]:
    """The images of each row; a row of None or of an empty list has none.

    Raises:
        CallError: an empty list in place of all images.
    """
    if images is None:
        return [[]]
    if not isinstance(images, list | tuple):
        return [[images]]  # type: ignore[list-item]
    if not images:
        raise CallError("no image was given: give one for all prompts, one for each, or None")
    return [
        [] if row is None else list(row) if isinstance(row, list | tuple) else [row]
        for row in images
    ]


def read_pictures(
    family: Family,
    rows: list[list[Picture]],
    image_aspect: ImageAspect,
    smaller: Sequence[Keep] = (),
) -> Pictures | None:
    """The pictures of the rows that have any, read; None where none has.

    Args:
        family: of the model.
        rows: of pictures.
        image_aspect: see `Family.read`.
        smaller: a budget for every row, see `Family.read_smaller`; empty reads them as they are.

    Raises:
        CallError, RunError: a picture that cannot be used.
    """
    shown = [row for row in rows if row]
    if not shown:
        return None
    if not smaller:
        return family.read(shown, image_aspect)
    budgets = [keep for row, keep in zip(rows, smaller, strict=True) if row]
    return family.read_smaller(shown, budgets, image_aspect)


def spread(rows: list[list[Picture]], layouts: Layouts) -> Layouts:
    """The layouts of the rows that have pictures, at their places among all rows."""
    own = iter(layouts)
    return tuple(next(own) if row else () for row in rows)


def no_tokens(width: int, dtype: Any) -> VisualTokens:
    """What stands for the visual tokens of a call without pictures: one slot, not valid."""
    return VisualTokens(jnp.zeros((1, 1, width), dtype), jnp.zeros((1, 1), bool))


def adopt(visual: VisualTokens, family: Family) -> Encoded:
    """Visual tokens that somebody made or changed, one image a row.

    Raises:
        CallError: arrays that cannot be the visual tokens of this model.
    """
    if family.rope(np.zeros((0, 0)), np.zeros((0, 0)), ()) is not None:
        raise CallError(
            f"positions of {family.name} depend on the images' grids, which VisualTokens"
            " do not hold: pass what LVLM.encode gave"
        )
    width = family.config.text.hidden_size
    embeddings = array_of("embeddings", visual.embeddings, "float")
    mask = array_of("valid", visual.valid, "truth")
    if embeddings.ndim != 3 or 0 in embeddings.shape or embeddings.shape[2] != width:
        raise CallError(
            f"embeddings of visual tokens are (B, N, {width}) for this model, got"
            f" {embeddings.shape}"
        )
    if mask.shape != embeddings.shape[:2]:
        raise CallError(f"valid has shape {mask.shape}, expected {embeddings.shape[:2]}")
    made: dict[str, Any] = {"embeddings": embeddings, "valid": mask.astype(bool)}
    visual = dataclasses.replace(visual, **made)
    for name in OPTIONAL:
        own = getattr(visual, name)
        if own is not None and np.shape(own)[:2] != mask.shape:
            raise CallError(f"{name} has shape {np.shape(own)}, expected {mask.shape} first")
    valid = np.asarray(visual.valid)
    if not valid.any(axis=1).all():
        raise CallError("a row of these visual tokens has no valid one")
    lines = np.zeros(len(valid), int)
    if visual.kind is not None:
        lines = (valid & (np.asarray(visual.kind) == NEWLINE)).sum(axis=1)
    counts = zip(valid.sum(axis=1).tolist(), lines.tolist(), strict=True)
    return Encoded(visual, tuple((ImageLayout(n, own),) for n, own in counts))


def media_of(images: Images) -> list[tuple[str, ...]]:
    """What each row holds, "image" or "video", without reading any of it."""
    if isinstance(images, VisualTokens):
        return [("image",)] * (np.shape(images.embeddings) or (1,))[0]
    if isinstance(images, Encoded):
        return [tuple(image.media for image in row) for row in images.layouts]
    return [
        tuple("video" if isinstance(picture, Video) else "image" for picture in row)
        for row in rows_of(images)
    ]
