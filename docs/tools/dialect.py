"""A hook of mkdocs: what GitHub shows of a page and Python-Markdown would not.

Formulas become MathML, which browsers draw without a script or a font. In a table GitHub wants a
bar inside of code escaped, where Python-Markdown would show the backslash.
"""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_ROW = re.compile(r"^\|.*\|[ \t]*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Take the backslash from bars inside of code in tables."""

    def plain(row: re.Match[str]) -> str:
        return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])

    return _ROW.sub(plain, markdown)


def on_page_content(content: str, **_: object) -> str:
    """Write the formulas that pymdownx.arithmatex marked anew."""

    def drawn(found: re.Match[str]) -> str:
        display = "inline" if found[2] == "(" else "block"
        return convert(html.unescape(found[3]).strip(), display=display)

    return _FORMULA.sub(drawn, content)
