"""A picture of what was kept: the image as the model sees it, dropped patches veiled and hatched.

The like of the paper's Figure 2: one panel a budget, the question and the answer above them. What
was dropped must be told from what was kept on any picture, white, black or noisy: its patches lose
their colour and most of their contrast, are hatched, and are bounded by a light and a dark line.
"""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from resprune_jax.errors import CallError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Panel = tuple[str, Sequence[int] | np.ndarray | None]
"""A title, and the kept patches in order of choice, or None for all of them."""

SIDE = 672  # pixels a panel's image is drawn with
PAPER, INK, FAINT, ACCENT = "#ffffff", "#1b1e23", "#6b7280", "#ff4f1f"
ANSWER = "#0b7285"
VEIL, HATCH = (72, 78, 90), (158, 164, 176)  # what dropped patches are drawn with
SEEN = 0.28
"""How much of a dropped patch shows through the veil."""


def patch_mask(kept: Sequence[int] | np.ndarray | None, grid: tuple[int, int]) -> np.ndarray:
    """Which patches are kept, (rows, columns) bool.

    Raises:
        CallError: an index that the grid does not have.
    """
    rows, columns = grid
    if kept is None:
        return np.ones(grid, bool)
    indices = np.asarray(kept, np.int64).reshape(-1)
    if indices.size and not (indices.min() >= 0 and indices.max() < rows * columns):
        raise CallError(
            f"a kept patch lies outside the grid of {rows}x{columns}: indices go from"
            f" {indices.min()} to {indices.max()}"
        )
    mask = np.zeros(rows * columns, bool)
    mask[indices] = True
    return mask.reshape(grid)


def dim(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Veil and hatch what was dropped, and bound what was kept, so that both show on any picture.

    Args:
        pixels: (H, W, 3) uint8.
        mask: (rows, columns) bool, the kept patches.

    Returns:
        (H, W, 3) uint8; kept patches are untouched.
    """
    height, width = pixels.shape[:2]
    rows, columns = mask.shape
    in_row = np.minimum(np.arange(height) * rows // height, rows - 1)
    in_column = np.minimum(np.arange(width) * columns // width, columns - 1)
    clear = mask[in_row][:, in_column]  # [H, W]
    unit = max(height, width) / SIDE  # the scale of lines
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    veiled = SEEN * grey[..., None] + (1 - SEEN) * np.array(VEIL, np.float32)
    every = max(round(14 * unit), 2)
    line = (np.add.outer(np.arange(height), np.arange(width)) % every) < max(2.2 * unit, 1)
    veiled = np.where(line[..., None], np.array(HATCH, np.float32), veiled)
    # The bound lies on the dropped side: light towards what was kept, dark towards the veil.
    near, far = (_grown(clear, round(size * unit) or 1) for size in (2, 4))
    veiled = np.where(far[..., None], 20.0, veiled)
    veiled = np.where(near[..., None], 255.0, veiled)
    out = np.where(clear[..., None], pixels, veiled)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)


def _grown(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask and everything within `size` pixels of it, along rows and columns."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, min(size, mask.shape[axis] - 1) + 1):
            ahead = [slice(None)] * 2
            behind = [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= mask[tuple(behind)]
            grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


def overlay(
    image: Any,
    panels: Sequence[Panel],
    grid: tuple[int, int],
    *,
    question: str | None,
    answer: str | None = None,
    image_aspect: Literal["processor", "pad"],
    image_size: int,
    path: str | Path,
    order: bool = False,
) -> Path:
    """Draw which patches of an image were kept, one panel a budget, like the paper's Figure 2.

    Args:
        image: a path, a PIL image or an array.
        panels: (title, kept patches in order of choice or None for all), left to right.
        grid: rows and columns of patches.
        question: what was asked, written above the panels.
        answer: what was answered, written below the question.
        image_aspect: "processor" or "pad", as the image was given to the model.
        image_size: side of the vision tower's input in pixels.
        path: the picture to write; its suffix gives the format.
        order: outline the kept patches in the colour of their turn, early ones bright.

    Returns:
        The path.

    Raises:
        CallError: no panel, or a patch outside the grid.
        RunError: an image that cannot be read.
    """
    from resprune_jax.models.families.llava.images import seen_by_model
    from resprune_jax.models.images.files import open_image

    seen = seen_by_model(open_image(image), image_aspect=image_aspect, image_size=image_size)
    pixels = np.asarray(seen)
    views = [View(title, pixels, grid, kept) for title, kept in panels]
    return draw(views, question=question, answer=answer, path=path, order=order)


@dataclasses.dataclass(frozen=True)
class View:
    """One panel: a picture, or a part of one, and what was kept of it.

    Attributes:
        title: written above it.
        pixels: (H, W, 3) uint8.
        grid: rows and columns of visual tokens that lie on it.
        kept: those that were kept, by number in raster order, in order of choice; None for all.
        seed: whether the first of them is the seed token.
    """

    title: str
    pixels: np.ndarray
    grid: tuple[int, int]
    kept: Sequence[int] | np.ndarray | None
    seed: bool = True


def draw(
    panels: Sequence[View],
    *,
    question: str | None,
    answer: str | None = None,
    path: str | Path,
    order: bool = False,
) -> Path:
    """Draw panels side by side into a file; arguments as for `overlay`.

    Raises:
        CallError: no panel, or a patch outside its grid.
    """
    target = Path(path)
    figure = figure_of(panels, question=question, answer=answer, order=order)
    figure.savefig(target, facecolor=PAPER)
    return target


def figure_of(
    panels: Sequence[View], *, question: str | None, answer: str | None = None, order: bool = False
) -> "Figure":
    """Panels side by side as a figure; arguments as for `overlay`.

    Raises:
        CallError: no panel, or a patch outside its grid.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise CallError("no panel was given: give one a budget")
    masks = [patch_mask(panel.kept, panel.grid) for panel in panels]
    columns = min(len(panels), 4)
    lines = math.ceil(len(panels) / columns)
    heading = [(words, INK) for words in _lines(question, 4, 30 * columns)]
    if answer is not None:
        said = _lines(f"Answer: {answer}" if answer.strip() else "Answer: (empty)", 4, 30 * columns)
        heading += [(words, ANSWER) for words in said]
    each, gap, title, margin = 3.0, 0.16, 0.36, 0.22  # inches
    head = 0.29 * len(heading) + (0.04 if heading else 0.0)
    seeded = any(p.seed and p.kept is not None and len(p.kept) for p in panels)
    foot = 0.34 if seeded else 0.0
    width = columns * each + (columns - 1) * gap + 2 * margin
    height = lines * (each + title) + head + foot + margin
    figure = Figure(figsize=(width, height), dpi=160, facecolor=PAPER)
    for i, (words, ink) in enumerate(heading):
        at = 1 - (margin + 0.29 * i) / height
        figure.text(0.5, at, words, ha="center", va="top", size=15, color=ink, parse_math=False)
    for number, (panel, mask) in enumerate(zip(panels, masks, strict=True)):
        line, column = divmod(number, columns)
        left = margin + column * (each + gap)
        top = margin + head + line * (each + title) + title
        axes = figure.add_axes(
            (left / width, 1 - (top + each) / height, each / width, each / height)
        )
        _panel(axes, dim(panel.pixels, mask), panel, order)
    if seeded:
        figure.text(
            0.5, 0.11 / height, "clear: kept    hatched: dropped    ring: the seed token",
            ha="center", va="bottom", size=9.5, color=FAINT,
        )  # fmt: skip
    return figure


def _lines(text: str | None, most: int, width: int) -> list[str]:
    """A text in lines; what does not fit is left out with an ellipsis."""
    found = textwrap.wrap(text or "", width=width)
    return found if len(found) <= most else [*found[: most - 1], found[most - 1][: width - 1] + "…"]


def _panel(
    axes: "Axes",
    pixels: np.ndarray,
    panel: View,
    order: bool,
) -> None:
    """One panel: the dimmed image, its title, the seed token's ring."""
    from matplotlib import colormaps
    from matplotlib.patches import Circle, Rectangle

    (rows, columns), kept = panel.grid, panel.kept
    axes.imshow(pixels, extent=(0, columns, rows, 0), interpolation="lanczos")
    axes.set_title(panel.title, size=12.5, color=INK, pad=6, parse_math=False)
    axes.set_axis_off()
    if kept is None or not len(kept):
        return
    if order:
        colours = colormaps["plasma"](np.linspace(0.95, 0.05, len(kept)))
        for index, colour in zip(kept, colours, strict=True):
            row, column = divmod(int(index), columns)
            axes.add_patch(
                Rectangle(
                    (column + 0.06, row + 0.06), 0.88, 0.88,
                    fill=False, edgecolor=colour, linewidth=1.1,
                )
            )  # fmt: skip
    if not panel.seed:
        return
    row, column = divmod(int(kept[0]), columns)
    centre = (column + 0.5, row + 0.5)
    for edge, line in (("white", 3.4), (ACCENT, 1.9)):
        axes.add_patch(
            Circle(centre, 0.85, fill=False, edgecolor=edge, linewidth=line, clip_on=False)
        )
