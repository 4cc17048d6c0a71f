"""The HTML file: one template, its style, script and data inlined; nothing is fetched at view time.

A Content-Security-Policy forbids all else: no request, and no script but the page's own, by its
hash. What users wrote (prompts, file names) stands in the data alone, and the script shows it as
text.
"""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.explore.data import Page, element, escaped

LARGEST = 3_000_000
"""Bytes of a page: what a mail takes."""

FOR_PICTURES = 2_200_000
"""Of these, what pictures share."""


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def render(page: Page) -> str:
    """The page as HTML.

    Raises:
        CallError: it would be larger than `LARGEST`.
    """
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'"
    )
    title = page.cards[0].name if len(page.cards) == 1 else f"{len(page.cards)} prompts"
    parts = {
        "policy": policy,
        "title": escaped(title),
        "style": style,
        "data": element(page.to_json()),
        "script": script,
    }
    # Cut at the marks once: what is put in is never looked at for marks.
    pieces = _asset("page.html").split("%%")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    text = "".join(pieces)
    size = len(text.encode())
    if size > LARGEST:
        raise CallError(
            f"the page would have {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: ask fewer"
            " questions, by fewer methods, about fewer images"
        )
    return text


def write(page: Page, path: Path) -> int:
    """Write the page.

    Returns:
        Its size in bytes.

    Raises:
        CallError: see `render`.
        RunError: the file cannot be written.
    """
    content = render(page).encode()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error
    return len(content)
