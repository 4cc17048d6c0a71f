"""This machine's own device as a target, for what no described device is needed for."""

from typing import Any

import jax

from resprune_jax.experiments.compile_check.target import Target


class Here(Target):
    """The first device that JAX has."""

    platform = "cpu"
    engines = ("gram",)
    limit = 2**40
    name = "here"

    def facts(self) -> dict[str, Any]:
        """See `Target.facts`."""
        return {}

    def devices(self) -> list[Any]:
        """See `Target.devices`."""
        return jax.devices()[:1]
