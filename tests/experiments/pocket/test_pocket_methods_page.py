"""docs/explanation/pocket_methods.md holds the tables of the figures beside it."""

import json
from pathlib import Path

from resprune_jax.choices import METHODS
from resprune_jax.experiments.pocket.evaluation.tables import markdown

DOCS = Path(__file__).parents[3] / "docs" / "explanation"


def test_the_page_holds_the_tables_of_its_figures() -> None:
    figures = json.loads((DOCS / "pocket_methods.json").read_text("utf-8"))
    page = (DOCS / "pocket_methods.md").read_text("utf-8")
    assert markdown(figures, level=2) in page
    asked = {row["method"].partition(":")[0] for row in figures["settings"]}
    assert asked | set(figures["left_out"]) >= set(METHODS), "a method is missing"
    draws = {row["draws"] for row in figures["settings"] if row["method"] == "random"}
    assert draws == {5} and figures["split"] == "test"


def test_what_loses_to_random_tokens_has_its_reason() -> None:
    figures = json.loads((DOCS / "pocket_methods.json").read_text("utf-8"))
    reasons = (DOCS / "pocket_methods.md").read_text("utf-8").split("\n## ")[0]
    for one in figures["comparisons"]:
        if one["over"] == "random" and one["gain"]["high"] < 0:
            assert f"`{one['method']}`" in reasons, one
