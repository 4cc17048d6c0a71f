"""What a selection may be told beside its tokens: checked, and brought into one structure."""

from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .arguments import LARGEST, array_of
from .choices import SMALLEST_TOLERANCE
from .errors import CallError, shown
from .rules import Rule

PLACES = " places"
"""Stands beside a rule's fields, whose names hold no blank."""


def of_rows(
    rule: Any, places: ArrayLike | None, rows: tuple[int, ...], n: int
) -> dict[str, jax.Array]:
    """What a rule has for each row, and the places, each with the axis of the rows.

    Args:
        rule: see `select`, or None.
        places: likewise.
        rows: (B,) or ().
        n: tokens of an image.

    Raises:
        CallError: no rule, or an array of another shape.
    """
    if rule is None:
        if places is not None:
            raise CallError("places are read by a rule, and none was given: leave them out")
        return {}
    decorated = "__dataclass_fields__" in vars(type(rule))
    if not isinstance(rule, Rule) or not decorated or jax.tree_util.all_leaves([rule]):
        raise CallError(
            "a rule is an instance of a subclass of resprune_jax.rules.Rule that is a frozen"
            f" dataclass and a pytree, got {shown(rule)}"
        )
    if type(rule).score is Rule.score:
        raise CallError(f"the rule {type(rule).__name__} decides nothing: write its score")
    made = {}
    for option in fields(rule):
        axes, value = option.metadata.get("per_row"), getattr(rule, option.name)
        if axes is None or np.ndim(value) == axes:
            continue
        if np.shape(value)[: np.ndim(value) - axes] != rows:
            raise CallError(
                f"{option.name} of the rule has shape {np.shape(value)}: give {axes} axes, or one"
                f" more in front for {rows[0] if rows else 'no'} rows"
            )
        made[option.name] = jnp.asarray(value)
    if places is not None:
        given = array_of("places", places, "number")
        if given.shape not in ((n, 2), (*rows, n, 2)):
            raise CallError(f"places has shape {given.shape}, expected {(*rows, n, 2)}")
        made[PLACES] = jnp.broadcast_to(jnp.asarray(given, jnp.float32), (*rows, n, 2))
    return made


def traced(
    value: ArrayLike | None, default: ArrayLike, dtype: type, shape: tuple[int, ...]
) -> ArrayLike:
    """The argument in one dtype and shape; host values stay NumPy, so nothing eager compiles."""
    value = default if value is None else value
    if isinstance(value, jax.Array):
        return value if value.dtype == dtype else value.astype(dtype)
    host = np.asarray(value)
    if dtype is np.int32 and host.dtype != np.int32:  # a limit beyond int32 is no limit
        host = np.minimum(host, min(np.iinfo(np.int32).max, np.iinfo(host.dtype).max))
    return np.broadcast_to(host.astype(dtype), shape)


def check(name: str, value: ArrayLike | None, *allowed: tuple[int, ...]) -> None:
    """Check the shape always, values only where they lie on the host: no device is waited for."""
    if value is None:
        return
    if np.shape(value) not in allowed:
        expected = " or ".join(str(s) for s in dict.fromkeys(allowed))
        raise CallError(f"{name} has shape {np.shape(value)}, expected {expected}")
    if not isinstance(value, jax.Array):
        host = np.asarray(value)
        if name in ("alpha", "relevance") and not np.all(host >= 0):
            raise CallError(f"{name} must be non-negative and not NaN, got {host.min()}")
        # An infinite relevance is a row that failed; a number that float32 does not hold is a slip.
        if name == "alpha" and not np.all(host.astype(np.float64) <= LARGEST):
            raise CallError(f"alpha must be finite in float32, got {host.max()}")
        wide = host.dtype == np.float64
        if name == "relevance" and wide and np.any((host > LARGEST) & np.isfinite(host)):
            raise CallError(f"relevance must be finite in float32, got {host.max()}")
        if name == "limit" and not np.all(host >= 1):
            raise CallError(f"limit must be at least 1, got {host.min()}")
        if name == "tolerance" and not np.all((host >= SMALLEST_TOLERANCE) & (host < 1)):
            raise CallError(
                f"tolerance must lie in [{SMALLEST_TOLERANCE:g}, 1), the precision of the"
                f" energies and the whole, got {host}"
            )
