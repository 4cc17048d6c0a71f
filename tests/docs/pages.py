"""The pages of the documentation as their readers' machines see them: fenced blocks, inline code.

What a test does otherwise than the page says stands above a block, where no reader sees it:

    <!-- test: command 2: --questions 8 --quick; given: image, question -->

Orders stand one a line, or with semicolons between them:

    command N: --option VALUE ...    these options, in place of the block's own where it has them
    every command: --option ...      the same for all
    command N not run: WHY           left out; counted, see `test_blocks.py`
    not run: WHY                     the whole block, counted likewise
    given: NAME, NAME                Python names of `inputs.NAMES` that the prose introduces
    output differs: WHY              the `text` fence below is not compared
"""

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

RUN = {"sh": "sh", "bash": "sh", "python": "python", "py": "python"}
"""Languages of blocks that are executed, by the name that a fence gives them."""
PARSED = {"json", "jsonl", "toml"}
"""Languages whose blocks are read by their parsers."""
SHOWN = {"text", "bibtex", "mermaid"}
"""Languages of blocks that are looked at, not run."""


class PageError(ValueError):
    """A page that cannot be tested: says where and why."""


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the comment above a block says."""

    not_run: str | None = None
    commands: dict[int, str] = dataclasses.field(default_factory=dict)
    """Options for single commands, counted from 1; 0 stands for every command."""
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    """Commands that are not run, with the reason."""
    given: tuple[str, ...] = ()
    output_differs: str | None = None

    @property
    def marks(self) -> int:
        """How many things are not run."""
        return len(self.left_out) + (self.not_run is not None)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    """Of its first line of content."""
    language: str
    text: str
    orders: Orders
    output: str | None = None
    """What the page shows right below as its output."""

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name that its first line gives it as a file, `# quiet.py`."""
        found = re.match(r"# ([\w-]+\.py)\n", self.text)
        return found[1] if found and self.language == "python" else None


@dataclasses.dataclass(frozen=True)
class Page:
    """One Markdown file."""

    name: str
    blocks: tuple[Block, ...]
    inline: tuple[tuple[int, str], ...]
    """(line, text) of every piece of inline code, those in tables too."""


def names(root: Path = ROOT) -> list[str]:
    """The pages that there are today."""
    found = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return [path.relative_to(root).as_posix() for path in found]


def read(name: str, root: Path = ROOT) -> Page:
    """Read a page of the repository."""
    return parse((root / name).read_text(encoding="utf-8"), name)


def parse(text: str, name: str) -> Page:
    """Read a page.

    Args:
        text: Markdown.
        name: what its blocks say of where they stand.

    Raises:
        PageError: a language that is not known, an indented block, an order that is none or that
            stands above no block, a block of data that does not parse.
    """
    if text.startswith("---\n"):  # the site's own settings: blank, so that lines keep their numbers
        head, rest = text[4:].split("\n---\n", 1)
        text = "\n" * (head.count("\n") + 3) + rest
    blocks: list[Block] = []
    inline: list[tuple[int, str]] = []
    for token, orders, before in _tokens(text, name):
        if token.type == "inline":
            line = before + _line(token)
            inline += [(line, own.content) for own in token.children or () if _is_code(own)]
            continue
        blocks.append(_block(token, orders, before, name))
    return Page(name, tuple(_with_outputs(blocks, text)), tuple(inline))


def _is_code(token: Token) -> bool:
    return token.type == "code_inline"


def _line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


_CONTAINER = re.compile(r"^(!!!|\?\?\?\+?|===\+?) ")


def _tokens(text: str, name: str, before: int = 0) -> Iterator[tuple[Token, Orders, int]]:
    """Fences with their orders, and inline content; those inside of admonitions and tabs too."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    pending: tuple[int, Orders] | None = None
    opened = ""
    for token in tokens:
        if token.type in ("paragraph_open", "paragraph_close") or token.map is None:
            continue
        place = f"{name}:{before + _line(token)}"
        if pending and token.type != "fence":
            raise PageError(f"{name}:{pending[0]}: these orders stand above no block")
        if token.type == "html_block" and (
            said := re.findall(r"<!--\s*test:(.*?)-->", token.content, re.S)
        ):
            pending = before + _line(token), _orders(" ; ".join(said), place)
        elif token.type == "fence":
            yield token, pending[1] if pending else Orders(), before
            pending = None
        elif token.type == "inline":
            yield token, Orders(), before
            opened = token.content.splitlines()[0] if token.content else ""
        elif token.type == "code_block":
            if not _CONTAINER.match(opened):
                raise PageError(f"{place}: an indented block: fence it and name its language")
            yield from _tokens(textwrap.dedent(token.content), name, before + _line(token) - 1)
    if pending:
        raise PageError(f"{name}:{pending[0]}: these orders stand above no block")


def _orders(said: str, place: str) -> Orders:
    """What a comment orders."""
    found = Orders()
    for order in filter(None, map(str.strip, re.split(r"[;\n]", said))):
        what, colon, words = (part.strip() for part in order.partition(":"))
        numbered = re.fullmatch(r"(?:command (\d+)|(every) command)( not run)?", what)
        if not colon or not words:
            raise PageError(f"{place}: no order: {order!r}")
        if what == "not run":
            found = dataclasses.replace(found, not_run=words)
        elif what == "given":
            found = dataclasses.replace(found, given=tuple(re.split(r"[,\s]+", words)))
        elif what == "output differs":
            found = dataclasses.replace(found, output_differs=words)
        elif numbered and numbered[3] and numbered[1]:
            found.left_out[int(numbered[1])] = words
        elif numbered and not numbered[3]:
            found.commands[int(numbered[1] or 0)] = words
        else:
            raise PageError(f"{place}: no order: {order!r}")
    return found


def _block(token: Token, orders: Orders, before: int, name: str) -> Block:
    line = before + _line(token) + 1
    language = re.split(r"[\s{]", token.info.strip().removeprefix("{ ."), maxsplit=1)[0]
    if not language:
        raise PageError(f"{name}:{line - 1}: a block without a language; output is `text`")
    if language not in {*RUN, *PARSED, *SHOWN}:
        raise PageError(f"{name}:{line - 1}: a block of a language that is not known: {language!r}")
    language = RUN.get(language, language)
    block = Block(name, line, language, token.content, orders)
    if language == "sh":
        count = len(commands(block))
        if wrong := [number for number in {*orders.commands, *orders.left_out} if number > count]:
            raise PageError(f"{block.place}: an order for command {wrong[0]} of {count}")
    return block


def _with_outputs(blocks: Sequence[Block], text: str) -> Iterator[Block]:
    """The blocks; those that are run know the `text` fence that follows with nothing between."""
    lines = text.splitlines()
    for block, below in itertools.zip_longest(blocks, blocks[1:]):
        if below is not None and block.language in RUN.values() and below.language == "text":
            end = block.line + block.text.count("\n")  # the line of the closing fence
            if not any(line.strip() for line in lines[end : below.line - 2]):
                block = dataclasses.replace(block, output=below.text)
        yield block


def commands(block: Block) -> list[tuple[int, str]]:
    """The commands of an `sh` block: (line, text), continued lines and open quotes joined.

    Raises:
        PageError: a quote that is never closed.
    """
    found: list[tuple[int, str]] = []
    begun = ""
    start = block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        if not begun and (not line.strip() or line.lstrip().startswith("#")):
            continue
        if not begun:
            start = number
        begun = f"{begun}\n{line}" if begun else line
        if line.endswith("\\") or _open_quote(begun):
            continue
        found.append((start, begun))
        begun = ""
    if begun:
        raise PageError(f"{block.page}:{start}: a command that does not end")
    return found


def _open_quote(text: str) -> bool:
    """Whether a quote of the shell is open at the end; what a `#` begins is a comment."""
    quote = ""
    before = " "
    skip = False
    for sign in text:
        if skip:
            skip = False
        elif quote == "#":
            quote = "" if sign == "\n" else "#"
        elif sign == "\\" and quote != "'":
            skip = True
        elif quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"" or (sign == "#" and before.isspace()):
            quote = sign
        before = sign
    return quote in ("'", '"')
