"""The rows of a batch one after the other, without a copy of the batch.

On a CPU XLA slices bfloat16 by way of float32, and computes before a loop what does not change in
it: a loop that only reads a batch of bfloat16 tokens begins with a float32 copy of all of them,
twice their size. Here the batch goes through the loop behind a barrier, so that XLA cannot know
that it stays the same, and each turn converts what it cuts out.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from .loop import row

Batch = TypeVar("Batch")
Made = TypeVar("Made")


def visit(function: Callable[[Batch, jax.Array], Made], batch: Batch, places: jax.Array) -> Made:
    """function(batch, place) for one place after the other, like `lax.map`.

    Args:
        function: reads the batch at a place.
        batch: a pytree of arrays.
        places: (V,), or any array with one entry a visit.

    Returns:
        What the visits gave, (V, ...) each.
    """

    def turn(batch: Batch, place: jax.Array) -> tuple[Batch, Made]:
        # Each on its own: under shard_map a common barrier would make all vary as any of them does.
        batch = jax.tree.map(lax.optimization_barrier, batch)
        return batch, function(batch, place)

    made: Made = lax.scan(turn, batch, places)[1]
    return made


def one_by_one(function: Callable[..., Made]) -> Callable[..., Made]:
    """Let `function` see the rows of a batch in turn under `jax.vmap`.

    For what keeps all cores busy with one row, or what only some rows need: under plain `vmap` the
    memory of all rows would be held together, and a condition evaluated for all of them.
    """
    alone = custom_vmap(function)

    @alone.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple[Made, Any]:
        leaves, structure = jax.tree.flatten(arguments)
        has_rows = jax.tree.leaves(batched)

        def turn(rows: list[jax.Array], place: jax.Array) -> Made:
            left = iter(rows)
            given = [
                row(next(left), place) if own else leaf
                for leaf, own in zip(leaves, has_rows, strict=True)
            ]
            return alone(*jax.tree.unflatten(structure, given))

        rows = [leaf for leaf, own in zip(leaves, has_rows, strict=True) if own]
        made = visit(turn, rows, lax.iota("int32", size))
        return made, jax.tree.map(lambda _: True, made)

    return alone


def goes_alone(count: int) -> bool:
    """Whether these rows are a single one that goes without an axis.

    Under vmap an accelerator reads by an index what checks it first, in operations of their own: on
    a TPU `gram` takes 25 a pick with an axis of one, and 11 without.
    """
    return count == 1 and jax.default_backend() in ("gpu", "tpu")


def by_chunks(one: Callable[[Any], Made], rows: Any, count: int, chunk: int) -> Made:
    """One function on every row: together, one after the other, or some at a time.

    Args:
        one: of a row.
        rows: a pytree of arrays with an axis of `count` rows.
        count: of rows.
        chunk: how many at a time.
    """
    if goes_alone(count):
        made = one(jax.tree.map(lambda x: x.reshape(x.shape[1:]), rows))
        return jax.tree.map(lambda x: x[None], made)
    if chunk >= count:
        return jax.vmap(one)(rows)
    if chunk == 1:

        def alone(rows: Any, place: jax.Array) -> Made:
            return one(jax.tree.map(lambda x: row(x, place), rows))

        return visit(alone, rows, jnp.arange(count))
    chunks = -(-count // chunk)
    chunk = -(-count // chunks)
    # The last chunk reaches back into the one before it: a shorter one would be a second program.
    starts = np.minimum(np.arange(chunks) * chunk, count - chunk)

    def some(rows: Any, start: jax.Array) -> Made:
        cut = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, chunk), rows)
        return jax.vmap(one)(cut)

    made = visit(some, rows, jnp.asarray(starts))  # [chunks, chunk, ...]
    own = np.arange(count) // chunk  # the chunk of each row
    return jax.tree.map(lambda x: x[own, np.arange(count) - starts[own]], made)
