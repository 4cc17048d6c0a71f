"""A contact sheet: scenes with their questions and answers, for a person to look at."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.labels import question_patches
from resprune_jax.experiments.pocket.scenes.parts import PATCH, Scene
from resprune_jax.experiments.pocket.scenes.questions import Question
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.experiments.pocket.scenes.shapes import load_font

SIDE, MARGIN, LINE = 336, 16, 17  # pixels
_INK, _ACCENT = (27, 30, 35), (196, 60, 10)


def contact_sheet(
    items: Sequence[tuple[Scene, Sequence[Question]]],
    path: str | Path,
    *,
    columns: int = 4,
    outlined: bool = False,
) -> Path:
    """Draw scenes in rows, each with its questions and answers below.

    Args:
        items: scenes and questions about them.
        path: the picture to write; its suffix gives the format.
        columns: scenes a row.
        outlined: frame the patches that the first question of each scene is about.

    Returns:
        The path.

    Raises:
        CallError: no scene.
    """
    if not items:
        raise CallError("no scene was given: give at least one")
    columns = min(columns, len(items))
    blocks = [_lines(questions) for _, questions in items]
    rows = [blocks[i : i + columns] for i in range(0, len(blocks), columns)]
    heights = [SIDE + 8 + LINE * max(len(block) for block in row) + MARGIN for row in rows]
    size = (columns * (SIDE + MARGIN) + MARGIN, sum(heights) + MARGIN)
    sheet = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for number, ((scene, questions), block) in enumerate(zip(items, blocks, strict=True)):
        row, column = divmod(number, columns)
        left = MARGIN + column * (SIDE + MARGIN)
        top = MARGIN + sum(heights[:row])
        sheet.paste(_picture(scene, questions if outlined else ()), (left, top))
        for i, (words, colour, bold) in enumerate(block):
            font = load_font("DejaVuSans-Bold" if bold else "DejaVuSans", 12)
            pen.text((left, top + SIDE + 6 + LINE * i), words, fill=colour, font=font)
    target = Path(path)
    sheet.save(target)
    return target


def _picture(scene: Scene, questions: Sequence[Question]) -> Image.Image:
    """The scene, enlarged; the patches of the first question framed."""
    image = Image.fromarray(render(scene)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    if questions:
        pen = ImageDraw.Draw(image)
        cell = SIDE * PATCH / scene.config.side
        for patch in question_patches(scene, questions[0]):
            row, column = divmod(int(patch), scene.config.grid)
            corners = np.array([column, row, column + 1, row + 1]) * cell - (0, 0, 1, 1)
            pen.rectangle(corners.tolist(), outline=_ACCENT)
    return image


def _lines(questions: Sequence[Question]) -> list[tuple[str, tuple[int, int, int], bool]]:
    """What stands below a picture: words, colour, bold."""
    lines: list[tuple[str, tuple[int, int, int], bool]] = []
    for question in questions:
        wrapped = textwrap.wrap(question.question, 50)
        lines += [(words, _INK, False) for words in wrapped]
        told = f"   {question.answer}   ({question.family}, {question.kind})"
        lines.append((told, _ACCENT, True))
    return lines
