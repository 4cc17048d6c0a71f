"""Pictures from other hosts, of those alone that were allowed by name when the server started."""

import contextlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from resprune_jax.errors import CallError, printable, shown
from resprune_jax.experiments.serve.telling.errors import RequestError, too_large, wrong

SECONDS = 15.0
"""For a picture to come, in all."""

_PORTS = {"http": 80, "https": 443}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: where a redirect leads nobody has allowed."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""
        return


class Remote:
    """Hosts that pictures are fetched from.

    Attributes:
        hosts: "example.org" for the usual ports of http and https, "example.org:8080" for this one.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = frozenset(map(_host, hosts))
        # No proxy of the environment, no other scheme, no redirect: what was allowed, or nothing.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            _NoRedirect(),
        ):
            self._opener.add_handler(handler)

    def fetch(self, url: str, where: str, most: int) -> bytes:
        """A picture's file.

        Args:
            url: of it.
            where: what messages call it.
            most: bytes.

        Raises:
            RequestError: a host that was not allowed, or no picture from it.
        """
        self._check(url, where)
        end = time.monotonic() + SECONDS
        said = printable(url, 100)
        request = urllib.request.Request(url, headers={"User-Agent": "resprune-serve"})
        failed = RequestError(400, f"{where}: {said!r} could not be fetched", param=where,
                         code="invalid_image_url")  # fmt: skip
        found = bytearray()
        try:
            with contextlib.closing(self._opener.open(request, timeout=SECONDS / 3)) as response:
                while piece := response.read1(2**16):
                    found += piece
                    if len(found) > most:
                        raise too_large(f"{where}: {said!r} is larger than {most} bytes")
                    if time.monotonic() > end:
                        raise failed
        except (OSError, http.client.HTTPException, ValueError):  # URLError is an OSError
            raise failed from None
        return bytes(found)

    def _check(self, url: str, where: str) -> None:
        try:
            parts = urlsplit(url)
            scheme, name, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise wrong(f"{where}: {printable(url, 60)!r} is no URL", where) from None
        usual = _PORTS.get(scheme)
        own = _written(name, usual if port is None else port)
        known = own in self.hosts or (port in (None, usual) and _written(name) in self.hosts)
        strange = not url.isascii() or not url.isprintable() or " " in url or "\\" in url
        if strange or parts.username is not None or scheme not in _PORTS or not known:
            raise wrong(
                f"{where}: pictures are not fetched from {printable(own, 60)!r}: send a data URL"
                " (--allow-host names the hosts)",
                where, "remote_image_refused",
            )  # fmt: skip


def _host(given: str) -> str:
    """A host as it is compared.

    Raises:
        CallError: a URL, or no name.
    """
    text = given.strip().lower()
    try:
        parts = urlsplit(f"//{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit("//"), None
    plain = parts.hostname and not parts.path and not parts.query and parts.username is None
    if not plain or "*" in text or not text.isprintable() or " " in text:
        raise CallError(
            f"--allow-host {shown(given)} is no host: write a name such as images.example.org, or"
            " with a port images.example.org:8080"
        )
    return _written(str(parts.hostname), port)


def _written(name: str, port: int | None = None) -> str:
    """A host with its port; an IPv6 address in brackets, so that its end is no port."""
    name = f"[{name}]" if ":" in name else name
    return name if port is None else f"{name}:{port}"
