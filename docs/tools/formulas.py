"""A hook of mkdocs: formulas become MathML, which browsers draw without a script or a font."""

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: object) -> str:
    """Write the formulas that pymdownx.arithmatex marked anew."""

    def drawn(found: re.Match[str]) -> str:
        display = "inline" if found[2] == "(" else "block"
        return convert(html.unescape(found[3]).strip(), display=display)

    return _FORMULA.sub(drawn, content)
