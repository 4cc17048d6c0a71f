"""Where the pictures of a data set lie, and what is in them: read only when they are asked for.

A picture is hashable, and two are equal where they show the same: work on one is work on both.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from resprune_jax.errors import RunError
from resprune_jax.experiments.common import reason
from resprune_jax.models.images.files import open_bytes, open_image

WHOLLY = 64 * 2**20
"""Bytes of the largest picture file whose content counts; of a larger one size and time do."""


@runtime_checkable
class Picture(Protocol):
    """A picture that is not loaded yet."""

    def load(self) -> Any:
        """The picture, as `LVLM.generate` takes it: a PIL image or an array."""


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file of its own.

    Attributes:
        path: where it lies; what makes it equal to another.
    """

    path: Path

    def load(self) -> Image.Image:
        """The upright RGB picture."""
        return open_image(self.path)

    def digest(self) -> str:
        """SHA-256 of its content; of a file beyond `WHOLLY` bytes its size and time of change.

        Raises:
            RunError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size > WHOLLY:
                    return f"{status.st_size} bytes of {status.st_mtime_ns}"
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RunError(f"image {str(self.path)!r} cannot be read: {reason(error)}") from error


@dataclass(frozen=True)
class StoredPicture:
    """A picture whose bytes lie in a table of a data set.

    Attributes:
        content: SHA-256 of the bytes; what makes it equal to another.
        name: what messages call it.
        fetch: reads the bytes.
    """

    content: str
    name: str = field(compare=False)
    fetch: Callable[[], bytes] = field(compare=False, repr=False)

    def load(self) -> Image.Image:
        """The upright RGB picture.

        Raises:
            RunError: the bytes are no longer those that the data set was opened with.
        """
        data = self.fetch()
        if digest_of(data) != self.content:
            raise RunError(f"{self.name} has changed since the data set was opened: start again")
        return open_bytes(data, self.name)

    def digest(self) -> str:
        """SHA-256 of the bytes."""
        return self.content


def digest_of(data: bytes) -> str:
    """SHA-256 of a picture's bytes, in hex digits."""
    return hashlib.sha256(data).hexdigest()
