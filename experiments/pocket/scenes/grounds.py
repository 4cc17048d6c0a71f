"""Backgrounds: muted colours, the object colours that stand out from them, faint textures."""

import math
from dataclasses import dataclass

import numpy as np

from resprune_jax.experiments.pocket.scenes.words import COLOURS

Rgb = tuple[int, int, int]

TEXTURES = ("plain", "gradient", "stripes", "checks", "noise")
GROUNDS: tuple[Rgb, ...] = (
    (238, 232, 216), (224, 226, 229), (208, 220, 230), (212, 224, 208), (226, 210, 206),
    (200, 188, 166), (170, 174, 180), (158, 170, 156), (140, 146, 158), (150, 134, 124),
    (58, 61, 68), (46, 56, 80), (66, 56, 52), (46, 66, 60),
)  # fmt: skip
CONTRAST = 34.0  # least distance between an object and its ground, in CIELAB units
_INK = ((18, 18, 22), (250, 250, 246), (96, 16, 30), (16, 32, 96), (10, 70, 50), (255, 240, 190))
_INK_CONTRAST = 55.0  # least difference of lightness between printed text and its ground, of 100


@dataclass(frozen=True)
class Ground:
    """A background.

    Attributes:
        texture: one of TEXTURES.
        base: index into GROUNDS.
        strength: amplitude of the texture in grey levels of 255.
        period: width of its stripes or checks in pixels.
        angle: its direction in degrees.
        rng_seed: for noise.
    """

    texture: str
    base: int
    strength: float
    period: float
    angle: int
    rng_seed: int


def lab(rgb: Rgb) -> tuple[float, float, float]:
    """CIELAB (D65) of an sRGB colour."""
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
    r, g, b = linear
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    fx, fy, fz = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 4 / 29 for v in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


PALETTES: tuple[tuple[str, ...], ...] = tuple(
    tuple(name for name, rgb in COLOURS.items() if math.dist(lab(rgb), lab(ground)) >= CONTRAST)
    for ground in GROUNDS
)
"""For each ground, the colours that objects on it may have."""

INKS: tuple[tuple[Rgb, ...], ...] = tuple(
    tuple(ink for ink in _INK if abs(lab(ink)[0] - lab(ground)[0]) >= _INK_CONTRAST)
    or (max(_INK, key=lambda ink: abs(lab(ink)[0] - lab(ground)[0])),)
    for ground in GROUNDS
)
"""For each ground, the colours that text on it may have."""


def _field(ground: Ground, side: int) -> np.ndarray:
    """The texture as (side, side) float32 in [-1, 1]."""
    if ground.texture == "noise":
        # The legacy generator's stream is frozen by NumPy's policy.
        random = np.random.RandomState(ground.rng_seed)
        grains = random.randint(0, 256, (side, side)).astype(np.float32) / 127.5 - 1
        coarse = random.randint(0, 256, (side // 7, side // 7)).astype(np.float32) / 127.5 - 1
        return 0.5 * grains + 0.5 * coarse.repeat(7, 0).repeat(7, 1)
    turn = math.radians(ground.angle)
    axis = np.arange(side, dtype=np.float32) - side / 2
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    along = axis * cos + (axis * sin)[:, None]
    if ground.texture == "gradient":
        return along * np.float32(1.41 / side)
    wave = np.float32(math.pi / ground.period)
    if ground.texture == "stripes":
        return np.sin(along * wave)
    across = (axis * cos)[:, None] - axis * sin
    return np.sign(np.sin(along * wave) * np.sin(across * wave)) * np.float32(0.6)


def paint_ground(ground: Ground, side: int) -> np.ndarray:
    """Paint a background.

    Args:
        ground: which.
        side: of the image, in pixels; a multiple of 7.

    Returns:
        (side, side, 3) uint8.
    """
    base = np.array(GROUNDS[ground.base], np.float32)
    if ground.texture == "plain":
        return np.broadcast_to(base.astype(np.uint8), (side, side, 3)).copy()
    strength = ground.strength * (2.0 if ground.texture == "gradient" else 1.0)
    shade = np.rint(_field(ground, side) * np.float32(strength))
    return np.clip(shade[..., None] + base, 0, 255).astype(np.uint8)
