"""Every command and every Python block of the README and of docs/ runs as it is printed."""

import time
from pathlib import Path

import pytest

from tests.docs import pages, running
from tests.docs.running import Machine
from tests.docs.words import check_page

pytestmark = pytest.mark.docs

MOST_MARKS = 9
"""Blocks and commands that are not run, at most."""


def marks(every: list[pages.Page]) -> list[str]:
    """What is not run, with the reasons."""
    return [
        f"{block.place}: {why}"
        for page in every
        for block in page.blocks
        for why in [*filter(None, [block.orders.not_run]), *block.orders.left_out.values()]
    ]


@pytest.mark.parametrize("name", pages.names())
def test_the_blocks_of_a_page_run(name: str, machine: Machine, tmp_path: Path) -> None:
    page = pages.read(name)
    begun = time.monotonic()
    ran = running.run(page, machine, tmp_path)
    print(f"{name}: {ran} commands and blocks in {time.monotonic() - begun:.0f} s")


def test_few_blocks_are_not_run() -> None:
    found = marks([pages.read(name) for name in pages.names()])
    assert len(found) <= MOST_MARKS, "\n".join(found)


@pytest.mark.parametrize("name", pages.names())
def test_inline_commands_and_options_are_there(name: str) -> None:
    _, wrong = check_page(pages.read(name))
    assert not wrong, "\n".join(wrong)


def test_that_there_is_something_to_run() -> None:
    """So that a reader of pages that finds nothing does not pass for one that finds no fault."""
    every = [pages.read(name) for name in pages.names()]
    kinds = [block.language for page in every for block in page.blocks]
    assert kinds.count("python") >= 15 and kinds.count("sh") >= 15
    assert sum(check_page(page)[0] for page in every) >= 100
