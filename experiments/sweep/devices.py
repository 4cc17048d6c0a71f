"""Work of one process divided over its own devices."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from resprune_jax.experiments.sweep.hosts import DATA_AXIS
from resprune_jax.models.prompts import buckets

Shared = TypeVar("Shared")


def over_devices(
    function: Callable[[Shared, Any], Any], mesh: Mesh | None, shared: Shared, rows: Any
) -> Any:
    """`function(shared, rows)` under jit, each device with its share of the rows.

    Args:
        function: of arrays, each row by itself.
        mesh: whose data axis divides the rows; without it they are worked on whole.
        shared: what every device sees of all rows.
        rows: arrays of R rows.

    Returns:
        What the function gives, R rows.
    """
    if mesh is None or DATA_AXIS not in mesh.shape:
        return function(shared, rows)
    count = len(jax.tree.leaves(rows)[0])
    size = buckets.multiple(count, mesh.shape[DATA_AXIS])
    # The last row fills up what the devices do not divide.
    rows = jax.tree.map(lambda x: x[jnp.minimum(jnp.arange(size), count - 1)], rows)
    divided = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(DATA_AXIS)),
        out_specs=PartitionSpec(DATA_AXIS),
    )  # fmt: skip
    return jax.tree.map(lambda x: x[:count], divided(shared, rows))
