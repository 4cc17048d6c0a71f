"""Images as a user gives them, and what the vision tower made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.methods import VisualTokens
from resprune_jax.models.families.base import Layouts, Picture, Video


@dataclass(frozen=True)
class Encoded:
    """What `LVLM.encode` gives: visual tokens for any number of questions.

    Attributes:
        visual: the tokens, B rows and those that fill the batch's bucket.
        layouts: of the B rows, what the host knows of their images.
    """

    visual: VisualTokens
    layouts: Layouts

    def __getattr__(self, name: str) -> Any:
        """Read a field of the visual tokens, of the B rows alone."""
        if name not in VisualTokens.__dataclass_fields__:
            raise AttributeError(name)
        values = getattr(self.visual, name)
        return None if values is None else values[: len(self.layouts)]


Images = Picture | Sequence[Picture | Sequence[Picture]] | Encoded | VisualTokens
"""One image (a path, a PIL image, an array or a `Video`), a list with one for each prompt, lists in
that list where prompts have several, or what `LVLM.encode` gave."""


def rows_of(images: Images) -> list[list[Picture]]:
    """The images of each row."""
    if not isinstance(images, list | tuple):
        return [[images]]  # type: ignore[list-item]
    rows = [list(row) if isinstance(row, list | tuple) else [row] for row in images]
    if not rows or not all(rows):
        raise CallError("no image was given: this model needs one for all prompts, or one for each")
    return rows


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
