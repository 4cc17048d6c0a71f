"""Rows in turn: the same results as `vmap`, whatever has the batch axis."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.engines.visits import one_by_one, visit


class Pair(NamedTuple):
    """A pytree argument, of which either part may have the batch axis."""

    left: jax.Array
    right: jax.Array


def work(pair: Pair, shift: jax.Array) -> dict[str, jax.Array]:
    return {"sum": pair.left @ pair.right + shift, "most": jnp.max(pair.left * shift)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("left", "right", "shift"), [(0, 0, 0), (0, None, None), (None, 0, 0), (1, 0, None)]
)
def test_one_by_one_is_vmap(
    left: int | None, right: int | None, shift: int | None, dtype: jnp.dtype
) -> None:
    rng = np.random.default_rng(0)

    def made(axis: int | None, *shape: int) -> jax.Array:
        whole = shape if axis is None else (*shape[:axis], 5, *shape[axis:])
        # Whole numbers: exact in either dtype, however they are summed.
        return jnp.asarray(rng.integers(-4, 5, whole), dtype)

    given = Pair(made(left, 3, 4), made(right, 4, 2)), made(shift)
    axes = Pair(left, right), shift
    together = jax.vmap(work, in_axes=axes)(*given)
    in_turn = jax.jit(jax.vmap(one_by_one(work), in_axes=axes))(*given)
    jax.tree.map(np.testing.assert_array_equal, together, in_turn)


def test_two_axes_of_a_batch() -> None:
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    calls: list[tuple[int, ...]] = []

    @one_by_one
    def seen(tokens: jax.Array, weights: jax.Array) -> jax.Array:
        calls.append(tokens.shape)
        return jnp.sum(tokens * weights, axis=-1)

    rows = jax.vmap(seen)
    found = jax.jit(jax.vmap(rows, in_axes=(0, None)))(tokens, weights)
    np.testing.assert_allclose(found, np.einsum("abnd,bd->abn", tokens, weights), rtol=1e-5)
    assert set(calls) == {(4, 5)}  # never a batch


def test_visits_come_in_the_order_of_the_places() -> None:
    batch = jnp.arange(10.0)
    places = jnp.array([7, 7, 0, 3])
    found = visit(lambda batch, place: batch[place] * 2, batch, places)
    np.testing.assert_array_equal(found, [14, 14, 0, 6])
