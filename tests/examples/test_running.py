"""Every notebook runs from the installed package in an empty folder, and says what is committed."""

from pathlib import Path

import pytest

from tests.examples.notebooks import NOTEBOOKS, clean, differences, read, said
from tests.examples.running import execute

pytestmark = pytest.mark.examples

MOST_S = 120
"""Of CPU: two minutes on a core, one on two."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = read(path)
    run = execute(committed, tmp_path)
    print(f"\n{path.name}: {run.wall:.0f} s, {run.cpu:.0f} s of CPU")
    found = differences(committed, run.notebook)
    assert not found, "\n".join([*found, "make examples writes what is said now"])
    assert run.cpu < MOST_S


def made(*sources: str) -> dict:
    cells = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": []} for source in sources
    ]
    return clean({"cells": cells})


def test_a_notebook_runs_outside_of_the_repository(tmp_path: Path) -> None:
    where = made(
        "from pathlib import Path\nprint(list(Path().iterdir()))",
        "import resprune_jax\nprint(Path(resprune_jax.__file__).parts[-3])",
        "%%sh\nresprune --version | cut -d' ' -f1",
    )
    run = execute(where, tmp_path)
    texts = [text for cell in run.notebook["cells"] for _, text in said(cell)]
    assert texts == ["[]\n", "site-packages\n", "resprune-jax\n"]


@pytest.mark.parametrize("source", ["1 / 0", "%%sh\nresprune answer --model 2>/dev/null"])
def test_a_cell_that_fails_ends_the_run(source: str, tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    with pytest.raises(CellExecutionError):
        execute(made(source), tmp_path)
