"""Pages without a model: pictures of coordinates, selections drawn at random, answers as given."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from resprune_jax.experiments.explore.data import Answer, Card, Page, Picture, Run, View, rounded
from resprune_jax.experiments.explore.places import embedded

GRID = (6, 8)
TOKENS = GRID[0] * GRID[1]


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red says where a pixel lies from left to right, whose green from the top.

    Blue is full everywhere, so that padding shows.
    """
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(
        np.round(255 * np.stack([x, y, np.ones_like(x)], axis=-1)).astype(np.uint8)
    )


def pixels_of(picture: Picture) -> np.ndarray:
    """A picture of a page as an array (H, W, 3)."""
    head, _, content = picture.src.partition("base64,")
    assert head in ("data:image/png;", "data:image/jpeg;")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def made_run(
    answers: Sequence[tuple[int, str]],
    *,
    prompt: str = "What is it?",
    method: str = "resprune",
    rng_seed: int = 0,
    nested: bool = True,
    tokens: int = TOKENS,
) -> Run:
    """A run with a random order and falling energies; each budget its own where not nested."""
    rng = np.random.default_rng(rng_seed)
    energy = np.sort(rng.uniform(0, 100, tokens))[::-1]
    energy = [100.0, *energy[1:].tolist(), 0.0]
    given = []
    for keep, text in answers:
        own = None if nested else tuple(rng.permutation(tokens)[:keep].tolist())
        left = None if nested else rounded(energy[keep])
        given.append(Answer(keep, text, own, left))
    return Run(
        prompt=prompt,
        method=method,
        nouns=("cup", "table"),
        noun_backend="a lexicon",
        nested=nested,
        order=tuple(rng.permutation(tokens).tolist()) if nested else (),
        energy=tuple(map(rounded, energy)) if nested else (),
        relevance=tuple(map(rounded, rng.uniform(0, 1, tokens).tolist())),
        answers=tuple(given),
    )


ANSWERS = ((TOKENS, "red"), (24, "Red."), (12, "blue"), (6, "blue"), (2, "red"))


def made_page(runs: Sequence[Run] = (), *, name: str = "cup.png", cards: int = 1) -> Page:
    """A page of one picture in a grid of 6 x 8 tokens, or of several such."""
    rng = np.random.default_rng(1)
    energies = rng.uniform(0, 1, TOKENS)
    energies = tuple(rounded(value) for value in 100 * energies / energies.sum())
    numbers = tuple(range(TOKENS))
    view = View("", 0, *GRID, numbers, numbers)
    picture = embedded(coordinates(320, 240), 10**9)
    chosen = tuple(runs) or (made_run(ANSWERS),)
    names = [name] if cards == 1 else [f"{number} {name}" for number in range(cards)]
    return Page(
        "pocket",
        "resprune-jax 0",
        tuple(Card(own, TOKENS, energies, (picture,), (view,), chosen) for own in names),
    )
