"""Keeping tokens in an order that the evaluation made: random ones, or the generator's own."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.labels import question_patches
from resprune_jax.experiments.pocket.scenes.parts import Scene
from resprune_jax.experiments.pocket.scenes.questions import Question
from resprune_jax.experiments.pocket.scenes.words import Draw
from resprune_jax.methods import Method, PromptContext, VisualTokens

_RANDOM = 211  # a stream of random draws of its own


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GivenOrder(Method):
    """A method that keeps the first tokens of an order made beforehand; see `given_order`.

    Attributes:
        tokens: (B, N) int32, each row's visual tokens, N from where a row has no more to keep.
    """

    tokens: jax.Array | np.ndarray = field(metadata={"per_row": True})

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        return jnp.asarray(self.tokens)[:keep]


def given_order(orders: list[np.ndarray], tokens: int) -> GivenOrder:
    """The method that keeps these tokens of a batch's rows, the first ones first.

    Args:
        orders: B arrays of distinct token numbers, each at least one.
        tokens: N, visual tokens of an image.

    Raises:
        CallError: an order that is empty, repeats itself or leaves the image.
    """
    table = np.full((len(orders), tokens), tokens, np.int32)
    for row, order in enumerate(orders):
        inside = len(order) and order.min() >= 0 and order.max() < tokens
        if not inside or len(set(order.tolist())) < len(order):
            raise CallError(f"row {row}: an order is 1 to {tokens} distinct token numbers")
        table[row, : len(order)] = order
    return GivenOrder(table)


def random_order(scene: Scene, number: int, rng_seed: int) -> np.ndarray:
    """All patches of a scene in random order, another one for each question.

    Args:
        scene: the scene.
        number: of the question among the scene's.
        rng_seed: of the random generator.

    Returns:
        (N,) int32; it depends on nothing but the arguments, so not on batches.
    """
    order = list(range(scene.config.grid**2))
    Draw(rng_seed, scene.rng_seed, number, _RANDOM).shuffle(order)
    return np.array(order, np.int32)


def oracle_order(scene: Scene, question: Question, number: int, rng_seed: int) -> np.ndarray:
    """The patches that a question is about, and no others.

    A budget below their number keeps something of every part, one above it is not used up. Where
    there is nothing to see (an absent object that shares neither shape nor colour with any, a count
    of 0) the order is random, so that the budget is kept: any part of the image tells as much.

    Args:
        scene: the scene.
        question: about it.
        number: of the question among the scene's.
        rng_seed: of the random generator.

    Returns:
        (P,) int32, at least one.
    """
    patches = question_patches(scene, question)
    return patches if len(patches) else random_order(scene, number, rng_seed)
