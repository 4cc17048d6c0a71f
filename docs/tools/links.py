"""Every link of pages and notebooks that stays in the repository, and every file that they name.

    python -m docs.tools.links

A link is relative, leads to a file of the repository, and its anchor is a heading of that file, or
an `id` there. Code such as `models/api.py` that looks like a file of the repository is one. Nothing
is asked of the network: of other links nothing is known.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)[^\n]*\n.*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_TAG = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
_ID = re.compile(r"<a\b[^>]*?\b(?:id|name)=\"([^\"]+)\"")
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
# Of a folder at the top of the tree; a place in it may be a pattern or a name of the reader's.
_PATH = re.compile(
    r"(?<![\w/.-])(?:resprune_jax|models|experiments|tests|docs|locks|examples|\.ci)/[\w./-]+"
)


@dataclass(frozen=True)
class Fault:
    """A link or a path that leads nowhere.

    Attributes:
        page: the file, from the root of the tree.
        line: where it stands, from 1; of a notebook in its Markdown alone.
        about: what is wrong.
    """

    page: str
    line: int
    about: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.about}"


def pages(root: Path = ROOT) -> list[Path]:
    """What people read: Markdown at the top of the tree and in docs/, and the notebooks."""
    notebooks = (root / "examples").glob("*.ipynb")
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), *notebooks])


def read(page: Path) -> str:
    """The Markdown of a page; of a notebook the cells that are Markdown."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(own["source"]) for own in cells if own["cell_type"] == "markdown")


def _blank(text: str, pattern: re.Pattern[str]) -> str:
    """`text` without what fits, line numbers kept."""
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub makes it; repeated ones get -1, -2 and so on."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    """What may follow # in a link to a page."""
    text = _blank(read(page), _FENCE)
    found: list[str] = []
    for title in _HEADING.findall(text):
        made = plain = slug(title)
        repeated = 0
        while made in found:
            repeated += 1
            made = f"{plain}-{repeated}"
        found.append(made)
    return frozenset([*found, *_ID.findall(text)])


def links(text: str) -> Iterator[tuple[int, str]]:
    """(offset, target) of every link and picture outside of code."""
    prose = _blank(_blank(text, _FENCE), _CODE)
    for pattern in (_LINK, _TAG):
        for found in pattern.finditer(prose):
            yield found.start(), found[1]


def faults(page: Path, root: Path = ROOT) -> Iterator[Fault]:
    """What is wrong with one page.

    Args:
        page: a Markdown file or a notebook.
        root: of the tree.

    Yields:
        The links and paths that lead nowhere.
    """
    text = read(page)
    name = page.relative_to(root).as_posix()

    def fault(offset: int, about: str) -> Fault:
        return Fault(name, text.count("\n", 0, offset) + 1, about)

    for offset, target in links(text):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        if path.startswith("/"):
            yield fault(offset, f"{target} is not relative")
            continue
        whole = Path(os.path.normpath(page.parent / path)) if path else page
        if not whole.is_relative_to(root) or not whole.is_file():
            yield fault(offset, f"{target} leads to no file")
        elif anchor and (whole.suffix not in (".md", ".ipynb") or anchor not in anchors(whole)):
            yield fault(offset, f"{target}: no heading of {path or name} is called so")
    for found in _CODE.finditer(_blank(text, _FENCE)):
        for named in _PATH.findall(found[2]):
            place = named.rstrip(".")
            if not (root / place).exists():
                yield fault(found.start(), f"`{place}` is not in the tree")


def main() -> int:
    """Check every page; the exit status is 1 if something leads nowhere."""
    every = pages()
    found = [fault for page in every for fault in faults(page)]
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(every)} pages, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
