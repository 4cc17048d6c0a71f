"""How the greedy loop runs fast: one file an engine, and the one place that chooses."""

from collections.abc import Callable

import jax

from resprune_jax.errors import one_of

from . import feature, gram

Engine = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]
"""(tokens (N, d) scaled, gate (N,), first (), valid (N,), keep) -> (indices, energy totals)."""

ENGINES: dict[str, Engine] = {"feature": feature.run, "gram": gram.run}


def resolve(name: str) -> str:
    """The engine that `name` stands for; "auto" is "gram", the faster one at every size here.

    Raises:
        CallError: no engine has that name.
    """
    if name == "auto":
        return "gram"
    one_of("engine", name, ("auto", *ENGINES))
    return name
