"""The machine that the pages' blocks run on."""

from collections.abc import Iterator

import pytest

from tests.docs.running import Machine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One for all pages."""
    made = Machine(tmp_path_factory.mktemp("machine"))
    yield made
    made.stop()
