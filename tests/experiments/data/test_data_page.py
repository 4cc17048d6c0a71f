"""docs/how_to/data.md: its program runs, its rows can be read, its tables name what there is."""

import re
from pathlib import Path
from typing import Any

from resprune_jax.experiments.data.columns import COLUMNS
from resprune_jax.experiments.data.examples import open_dataset
from resprune_jax.experiments.data.metrics import METRICS
from tests.experiments.data.writing import png

PAGE = (Path(__file__).parents[3] / "docs" / "how_to" / "data.md").read_text("utf-8")


def test_the_program_of_the_page() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    known: dict[str, Any] = {}
    exec(compile(code, "docs/how_to/data.md", "exec"), known)
    assert known["right"] in (0.0, 1.0) and len(known["pictures"]) == 1


def test_the_rows_of_the_page(tmp_path: Path) -> None:
    (rows,) = re.findall(r"```jsonl\n(\{.*?)```", PAGE, re.DOTALL)
    (tmp_path / "images").mkdir()
    for name in ("images/1.jpg", "a.png", "b.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "rows.jsonl").write_text(rows)
    data = open_dataset(str(tmp_path / "rows.jsonl"))
    assert [each.key for each in data.examples] == ["0", "1", "q7"]
    assert [len(data.pictures(each)) for each in data.examples] == [1, 1, 2]
    assert [each.metric for each in data.examples] == ["exact", "yesno", "choice"]
    assert [each.cluster for each in data.examples] == ["images/1.jpg"] * 2 + ["a.png b.png"]


def test_the_tables_name_every_column_and_metric() -> None:
    columns, metrics = PAGE.split("## Columns")[1].split("## Metrics")
    named = [
        re.findall(r"`(\w+)`", line.split("|")[1]) for line in columns.splitlines() if "|" in line
    ]
    assert {name for names in named for name in names} == set(COLUMNS)
    assert re.findall(r"^\| `(\w+)` \|", metrics, re.MULTILINE) == list(METRICS)
