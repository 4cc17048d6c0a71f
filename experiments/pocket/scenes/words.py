"""What the scenes are made of, by name: shapes, colours, sizes, printed words, places.

Shape words are those that a part-of-speech tagger takes for nouns (a "cross" is an adjective to the
lexicon that the package falls back to), since a selection is conditioned on nouns.
"""

import random
from collections.abc import MutableSequence, Sequence
from typing import TypeVar

T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "heart", "moon", "arrow")
COLOURS = {
    "red": (208, 30, 38),
    "orange": (250, 136, 18),
    "yellow": (250, 222, 42),
    "green": (34, 150, 58),
    "blue": (36, 92, 222),
    "purple": (134, 54, 186),
    "pink": (252, 138, 196),
    "black": (20, 20, 24),
    "white": (250, 250, 248),
}
SIZES = ("small", "large")

POPULAR = tuple(
    (shape, colour)
    for row, shape in enumerate(SHAPES)
    for column, colour in enumerate(COLOURS)
    if (column - row) % 9 in (0, 1, 3)
)
"""The pairs that scenes show more often than others: three colours a shape, three shapes a colour.

POPE's "popular" negatives are drawn from them."""

WORDS = (
    "stop", "open", "exit", "taxi", "bus", "cafe", "bank", "park", "sale", "hotel", "shop",
    "farm", "milk", "bread", "tea", "salt", "rice", "soup", "fish", "cake", "apple", "lemon",
    "book", "news", "mail", "road", "east", "west", "north", "south", "king", "club", "team",
    "home", "room", "door", "gate", "lake", "river", "beach", "hill", "wood", "tree", "rain",
    "snow", "wind", "sun", "fire", "zoo", "gym", "bar", "pub", "jazz", "rock", "drum", "game",
    "play", "go", "ok", "hi", "tv", "art", "ice", "van",
)  # fmt: skip
"""What is printed, beside numbers of two and three digits; none is an answer of another family."""

CHARACTERS = tuple("0123456789abcdefghijklmnopqrstuvwxyz")


class Draw:
    """Random draws that are the same with every version of Python and NumPy.

    Only `random.Random.random` of an integer key is promised to stay as it is, so everything is
    made of it.

    Args:
        key: non-negative integers below 2**64; different keys give independent streams.
    """

    def __init__(self, *key: int) -> None:
        self.unit = random.Random(sum((k + 1) << (72 * i) for i, k in enumerate(key))).random

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self.unit() * count)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.unit()

    def pick(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        """One of (option, weight)."""
        left = self.unit() * sum(weight for _, weight in options)
        for option, weight in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][0]

    def shuffle(self, items: MutableSequence[T]) -> None:
        """Put the items in a random order, in place."""
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
