"""Scenes: objects, clutter and printed words on a textured ground, each a function of its seed.

`make_scene` decides what is where, `render` paints it, `coverage` says which patches show what.
"""

import functools

import numpy as np
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.grounds import GROUNDS, Ground, paint_ground
from resprune_jax.experiments.pocket.scenes.layout import NoRoomError, clutter, layout, snap
from resprune_jax.experiments.pocket.scenes.parts import LEVELS, PATCH, Scene, SceneConfig, Thing
from resprune_jax.experiments.pocket.scenes.shapes import Box, polygon_mask, stroke_mask, text_mask
from resprune_jax.experiments.pocket.scenes.words import Draw


def make_scene(config: SceneConfig, rng_seed: int) -> Scene:
    """Decide what a scene shows.

    Args:
        config: the kind of scene.
        rng_seed: non-negative; with `config` it determines the scene on every platform.

    Returns:
        The scene; objects come in no particular order.

    Raises:
        CallError: a negative seed, or a configuration whose objects do not fit the grid.
    """
    if rng_seed < 0:
        raise CallError(f"rng_seed={rng_seed}: it must not be negative")
    draw = Draw(rng_seed, config.level, config.grid)
    base = draw.below(len(GROUNDS))
    ground = Ground(
        texture=draw.pick(LEVELS[config.level].textures),
        base=base,
        strength=snap(draw.uniform(4.0, 9.0)),
        period=snap(draw.uniform(9.0, 26.0)),
        angle=draw.below(180),
        rng_seed=draw.below(2**31),
    )
    for _ in range(50):
        try:
            things, texts = layout(draw, config, base)
            break
        except NoRoomError:
            continue
    else:
        raise CallError(f"{config} leaves no room for its objects: use a larger grid or fewer")
    taken = [thing.box for thing in things] + [text.box for text in texts]
    strokes = tuple(clutter(draw, config, base, taken))
    return Scene(config, rng_seed, ground, things, texts, strokes)


@functools.lru_cache(maxsize=256)
def _thing_mask(thing: Thing) -> tuple[Image.Image, int, int]:
    return polygon_mask(thing.points)


def render(scene: Scene) -> np.ndarray:
    """Paint a scene.

    Returns:
        (side, side, 3) uint8, RGB.
    """
    image = Image.fromarray(paint_ground(scene.ground, scene.config.side))
    for stroke in scene.clutter:
        mask, left, top = stroke_mask(stroke.points, stroke.width)
        image.paste(stroke.rgb, (left, top), mask)
    for thing in scene.things:
        mask, left, top = _thing_mask(thing)
        image.paste(thing.rgb, (left, top), mask)
    for text in scene.texts:
        mask, left, top = text_mask(text.printed, text.font, text.em, text.x, text.y)
        image.paste(text.rgb, (left, top), mask)
    return np.asarray(image)


def _cover(grid: int, left: int, top: int, alpha: np.ndarray) -> np.ndarray:
    """Share of each patch under a mask whose first pixel is at (left, top): (grid, grid)."""
    height, width = alpha.shape
    first, row = left // PATCH, top // PATCH
    columns = (left + width - 1) // PATCH + 1 - first
    rows = (top + height - 1) // PATCH + 1 - row
    local = np.zeros((rows * PATCH, columns * PATCH), np.float32)
    y, x = top - row * PATCH, left - first * PATCH
    local[y : y + height, x : x + width] = alpha
    share = local.reshape(rows, PATCH, columns, PATCH).sum((1, 3)) / (255.0 * PATCH * PATCH)
    out = np.zeros((grid, grid), np.float32)
    out[row : row + rows, first : first + columns] = share
    return out


def box_cover(grid: int, box: Box) -> np.ndarray:
    """Share of each patch under a rectangle.

    Args:
        grid: patches a side.
        box: in pixels.

    Returns:
        (grid, grid) float32.
    """
    edges = np.arange(grid + 1) * PATCH
    along = [
        np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) / PATCH
        for low, high in ((box[1], box[3]), (box[0], box[2]))
    ]
    return np.outer(along[0], along[1]).astype(np.float32)


def coverage(scene: Scene) -> np.ndarray:
    """How much of each patch each part of a scene covers.

    Objects count by their own pixels, texts by the box around their ink.

    Returns:
        (objects + texts, grid * grid) float32 in [0, 1], objects first; patches row by row.
    """
    grid = scene.config.grid
    out = np.zeros((len(scene.things) + len(scene.texts), grid * grid), np.float32)
    for i, thing in enumerate(scene.things):
        mask, left, top = _thing_mask(thing)
        out[i] = _cover(grid, left, top, np.asarray(mask)).reshape(-1)
    for i, text in enumerate(scene.texts, start=len(scene.things)):
        out[i] = box_cover(grid, text.box).reshape(-1)
    return out
