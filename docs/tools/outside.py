"""A hook of mkdocs: files beside docs/ that pages link to become a part of the site.

In the repository a page links to CHANGELOG.md, to a notebook or to a module where it lies. Such a
file is taken into the site under its own path, Markdown and notebooks as pages, and the links to
and from it are written anew. What leads to no file is left as it is, for mkdocs to complain of.
"""

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(\]\(<?)([^)#\s>:]+)((?:#[^)\s>]*)?>?\))")
_FENCE = re.compile(r"^ {0,3}(```+).*?^ {0,3}\1[ \t]*$", re.MULTILINE | re.DOTALL)


def _places(config: MkDocsConfig) -> tuple[Path, Path]:
    """The root of the tree and docs/."""
    return Path(config.config_file_path).parent, Path(config.docs_dir)


def _uri(path: Path, root: Path, docs: Path) -> str:
    """Where a file of the tree stands in the site's sources."""
    return path.relative_to(docs if path.is_relative_to(docs) else root).as_posix()


def _home(file: File, root: Path, docs: Path) -> Path:
    """The folder of the tree that a page's links start at."""
    return (root if (root / file.src_uri) == Path(file.abs_src_path or "") else docs) / Path(
        file.src_uri
    ).parent


def _links(text: str, home: Path) -> list[Path]:
    """The files that a page links to, notebooks left out: their text is JSON."""
    found = _LINK.finditer(_FENCE.sub("", text))
    return [Path(os.path.normpath(home / each[2])) for each in found]


@event_priority(100)  # before the plug-in that makes pages of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in what pages link to, and what these link to in turn."""
    root, docs = _places(config)
    waiting = [file for file in files if file.src_uri.endswith(".md")]
    while waiting:
        page = waiting.pop()
        for path in _links(page.content_string, _home(page, root, docs)):
            inside = path.is_relative_to(docs)
            if inside or not path.is_relative_to(root) or not path.is_file():
                continue
            uri = _uri(path, root, docs)
            if files.get_file_from_path(uri) is None:
                made = File(uri, str(root), config.site_dir, config.use_directory_urls)
                files.append(made)
                if uri.endswith(".md"):
                    waiting.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are between the places of the site's sources."""
    root, docs = _places(config)
    home = _home(page.file, root, docs)
    here = PurePosixPath(page.file.src_uri).parent

    def anew(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(home / link[2]))
        if not path.is_relative_to(root) or not path.is_file():
            return link[0]
        uri = _uri(path, root, docs)
        return f"{link[1]}{PurePosixPath(os.path.relpath(uri, here))}{link[3]}"

    pieces, at = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_LINK.sub(anew, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*pieces, _LINK.sub(anew, markdown[at:])])
