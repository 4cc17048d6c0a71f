"""The bytes behind an image URL of a request, wherever it leads, within what was allowed."""

import binascii
from dataclasses import dataclass

from resprune_jax.errors import printable
from resprune_jax.experiments.serve.pictures.folder import Folder
from resprune_jax.experiments.serve.pictures.remote import Remote
from resprune_jax.experiments.serve.telling.errors import too_large, wrong


@dataclass(frozen=True)
class Sources:
    """Where pictures may come from.

    Attributes:
        most_bytes: of a picture's file.
        folder: local files below it are read; None: none are.
        remote: hosts that are asked for pictures; None: none is.
    """

    most_bytes: int
    folder: Folder | None = None
    remote: Remote | None = None

    def fetch(self, url: str, where: str) -> bytes:
        """The file's content.

        Args:
            url: as the request has it.
            where: what messages call it.

        Raises:
            RequestError: a URL that is none, or leads to what was not allowed.
        """
        scheme = url[:6].lower()
        if scheme.startswith("data:"):
            return self._data(url, where)
        if scheme.startswith(("http:", "https:")):
            if self.remote is None:
                raise wrong(
                    f"{where}: pictures are not fetched from other hosts here: send a data URL"
                    " (or start the server with --allow-host)",
                    where, "remote_image_refused",
                )  # fmt: skip
            return self.remote.fetch(url, where, self.most_bytes)
        if self.folder is None:
            raise wrong(
                f"{where}: an image is a data URL, data:image/png;base64,..., got"
                f" {printable(url, 60)!r} (local files need --image-folder)",
                where, "local_image_refused",
            )  # fmt: skip
        return self.folder.read(url, where, self.most_bytes)

    def _data(self, url: str, where: str) -> bytes:
        head, comma, content = url.partition(",")
        if not comma or len(head) > 200 or not head.lower().endswith(";base64"):
            raise wrong(
                f"{where}: an image's data URL is data:image/...;base64,..., got"
                f" {printable(url[:60], 60)!r}",
                where, "invalid_image",
            )  # fmt: skip
        if len(content) > 4 * self.most_bytes // 3 + 4:
            raise too_large(f"{where} is larger than {self.most_bytes} bytes")
        try:
            return binascii.a2b_base64(content, strict_mode=True)
        except ValueError as error:  # binascii.Error is one; text that is not ASCII another
            raise wrong(
                f"{where}: the data URL is not base64: {error}", where, "invalid_image"
            ) from None
