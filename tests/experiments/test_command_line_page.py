"""docs/reference/command_line.md is what the commands' help says."""

from pathlib import Path

from docs.tools import command_line
from resprune_jax.experiments import cli

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "command_line.md"


def test_the_page_is_what_the_commands_say() -> None:
    made = command_line.page()
    assert made == PAGE.read_text("utf-8"), (
        f"write it again: python -m docs.tools.command_line > docs/reference/{PAGE.name}"
    )
    # Not empty by a help that is drawn in another way.
    for name in cli.COMMANDS:
        options = made.split(f"## resprune {name}\n")[1].split("\n## ")[0].count("\n| `--")
        assert options == command_line.asked(name.split()).count("\n│ --"), name
