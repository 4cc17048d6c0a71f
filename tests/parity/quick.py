"""Compile without optimisations: what is compiled here runs once, and the bounds hold all the same.

Needs torch. `from tests.parity.quick import quick` in a module is enough: the fixture is automatic.
"""

from collections.abc import Iterator

import jax
import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """XLA without optimisations, and torch without threads that wait for those of others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    torch.set_num_threads(threads)
