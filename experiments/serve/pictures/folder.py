"""Local pictures below one folder, and nothing outside of it: neither by dots nor by links."""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from resprune_jax.errors import printable
from resprune_jax.experiments.serve.telling.errors import too_large, wrong


class Folder:
    """The folder that requests may name pictures of.

    A path is resolved first, links included, and must then lie below the folder; it is opened part
    by part without following any link, so that a link that is put there meanwhile is not followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve(strict=True)

    def read(self, url: str, where: str, most: int) -> bytes:
        """A file's content.

        Args:
            url: file:///..., or a path that starts at the folder.
            where: what messages call it.
            most: bytes.

        Raises:
            RequestError: no such file there; whether there is one elsewhere is not told.
        """
        said = printable(url, 100)
        missing = wrong(
            f"{where}: {said!r} is no image file below the image folder", where, "invalid_image"
        )
        try:
            relative = self._below(url)
            handle = self._open(relative)
        except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
            raise missing from None
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):  # a folder, a device, a pipe
            os.close(handle)
            raise missing
        with os.fdopen(handle, "rb") as file:
            if status.st_size > most:
                raise too_large(f"{where}: {said!r} is larger than {most} bytes")
            content = file.read(most + 1)
        if len(content) > most:
            raise too_large(f"{where}: {said!r} is larger than {most} bytes")
        return content

    def _below(self, url: str) -> Path:
        """The resolved path, relative to the folder.

        Raises:
            ValueError: it is outside, or no path.
            OSError: it is not there.
        """
        if url[:5].lower() == "file:":
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
                raise ValueError(url)
            path = unquote(parts.path, errors="strict")
        else:
            path = url
        if "\0" in path or not path:
            raise ValueError(url)
        return (self.path / path).resolve(strict=True).relative_to(self.path)

    def _open(self, relative: Path) -> int:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
            return os.open(self.path / relative, flags | getattr(os, "O_BINARY", 0))
        flags |= os.O_NOFOLLOW
        handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in relative.parts[:-1]:
                inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=handle)
                os.close(handle)
                handle = inner
            return os.open(relative.name or ".", flags, dir_fd=handle)
        finally:
            os.close(handle)
