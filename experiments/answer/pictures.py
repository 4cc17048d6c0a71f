"""A picture of what was kept, for notebooks: panels by their titles, as an image."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.answer.overlay import PAPER, View, figure_of
from resprune_jax.experiments.answer.views import parts_of, view_of
from resprune_jax.models.api import LVLM
from resprune_jax.models.families.base import ImageAspect

DPI = 100
"""A panel has three inches."""


def draw_kept(
    lvlm: LVLM,
    images: Any,
    choices: Mapping[str, ArrayLike | None],
    *,
    question: str | None = None,
    image_aspect: ImageAspect = "processor",
    order: bool = False,
) -> Image.Image:
    """Draw which visual tokens were kept: one panel a choice, dropped ones veiled and hatched.

    Args:
        lvlm: the model that chose.
        images: what one prompt was about: a path, a PIL image or an array, or a list of them.
        choices: kept tokens in order of choice by the title of their panel, or None for all of
            them; a row of `Selection.indices` as it is. Where a model sees a picture in several
            parts, each choice has a panel for each part.
        question: written above the panels.
        image_aspect: as the call had it.
        order: outline the kept tokens in the colour of their turn, early ones bright.

    Returns:
        The picture.

    Raises:
        CallError: no choice, or tokens that are no numbers of visual tokens.
    """
    pictures = images if isinstance(images, list) else [images]
    parts, total = parts_of(lvlm.family, pictures, image_aspect=image_aspect)
    panels: list[View] = []
    for title, picks in choices.items():
        chosen = None if picks is None else _tokens(title, picks, total)
        for part in parts:
            view = view_of(part, chosen)
            name = title if len(parts) == 1 else f"{title}, {view.title}"
            panels.append(dataclasses.replace(view, title=name))
    drawn = io.BytesIO()
    figure_of(panels, question=question, order=order).savefig(drawn, facecolor=PAPER, dpi=DPI)
    return Image.open(drawn).convert("RGB")


def _tokens(title: str, picks: ArrayLike, total: int) -> np.ndarray:
    """The visual tokens of a choice.

    Raises:
        CallError: there are others in it.
    """
    chosen = np.asarray(picks)
    if chosen.ndim != 1 or not (chosen.size == 0 or np.issubdtype(chosen.dtype, np.integer)):
        raise CallError(
            f"choice {title!r} is a list of token numbers, got {chosen.dtype} of shape"
            f" {chosen.shape}: give one row of indices"
        )
    chosen = chosen[chosen != total]  # the entries of a selection that hold nothing
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < total):
        raise CallError(
            f"choice {title!r} names tokens from {chosen.min()} to {chosen.max()}: the images have"
            f" {total}, from 0 on"
        )
    return chosen
