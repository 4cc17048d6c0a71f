"""What transformers advises whoever has no torch: to install it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SWITCH = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def without_advice() -> Iterator[None]:
    """Import from transformers without "PyTorch was not found. Models won't be available ...".

    Its models are not what is used here. It says so where it is imported, and once more behind its
    first lazy import; other advice, before and after, is said as the user has set it.
    """
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before
