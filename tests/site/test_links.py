"""Every link of the pages leads somewhere, and what leads nowhere is found."""

import json
from pathlib import Path

import pytest

from docs.tools import links

PAGE = """\
# A page

See [the other](other.md), [its part](other.md#two-words-and-code), [again](other.md#again-1),
[here](#a-page), [an id](other.md#mark), [elsewhere](https://example.org/x#y) and `docs/other.md`.
![a picture](../picture.png)

```sh
cat [no](link.md)
```
"""
OTHER = """\
# Other
## Two words, and `code`
## Again
## Again
<a id="mark"></a>

    # no heading in here, nor below

```python
# nor here
```
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text(PAGE)
    (tmp_path / "docs" / "other.md").write_text(OTHER)
    (tmp_path / "picture.png").write_bytes(b"")
    return tmp_path


def found(tree: Path, text: str) -> list[str]:
    page = tree / "docs" / "planted.md"
    page.write_text(text)
    links.anchors.cache_clear()
    return [str(fault) for fault in links.faults(page, tree)]


def test_the_pages_of_this_project() -> None:
    pages = links.pages()
    assert {"README.md", "CONTRIBUTING.md", "index.md"} <= {page.name for page in pages}
    assert [str(fault) for page in pages for fault in links.faults(page)] == []
    asked = sum(len(list(links.links(links.read(page)))) for page in pages)
    assert asked > 150


def test_a_right_page_has_no_fault(tree: Path) -> None:
    assert found(tree, PAGE) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("[x](gone.md)", "docs/planted.md:3: gone.md leads to no file"),
        ("[x](other.md#three)", "docs/planted.md:3: other.md#three: no heading of other.md"),
        ("[x](other.md#nor-here)", "docs/planted.md:3: other.md#nor-here: no heading"),
        ("[x](#nowhere)", "docs/planted.md:3: #nowhere: no heading of docs/planted.md"),
        ("[x](../../outside.md)", "docs/planted.md:3: ../../outside.md leads to no file"),
        ("[x](/docs/other.md)", "docs/planted.md:3: /docs/other.md is not relative"),
        ("![x](gone.png)", "docs/planted.md:3: gone.png leads to no file"),
        ('<img src="gone.png">', "docs/planted.md:3: gone.png leads to no file"),
        ("[x](../picture.png#part)", "docs/planted.md:3: ../picture.png#part: no heading"),
        ("`docs/gone.md`", "docs/planted.md:3: `docs/gone.md` is not in the tree"),
        ("`pytest -s tests/gone.py`", "docs/planted.md:3: `tests/gone.py` is not in the tree"),
    ],
)
def test_what_leads_nowhere_is_found(tree: Path, planted: str, said: str) -> None:
    (fault,) = found(tree, f"# Planted\n\n{planted}\n")
    assert fault.startswith(said)


def test_what_a_notebook_says_is_read_too(tree: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# A notebook\n", "See `docs/gone.md`."]},
        {"cell_type": "code", "source": ["[no](link.md)"], "outputs": []},
    ]
    notebook = tree / "examples" / "one.ipynb"
    notebook.parent.mkdir()
    notebook.write_text(json.dumps({"cells": cells}))
    assert notebook in links.pages(tree)
    (fault,) = links.faults(notebook, tree)
    assert str(fault) == "examples/one.ipynb:2: `docs/gone.md` is not in the tree"
