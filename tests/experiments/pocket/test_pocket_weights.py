"""The pocket model that ships is as good as its card says.

accuracy.json beside the weights holds what `resprune pocket eval` measured; it is written again
with the weights, never by hand.
"""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.experiments.pocket.evaluation.card import card
from resprune_jax.experiments.pocket.evaluation.measure import Measured, measure, settings
from resprune_jax.experiments.pocket.evaluation.summary import SLICE, weights_digest
from resprune_jax.experiments.pocket.evaluation.tables import markdown
from resprune_jax.experiments.pocket.scenes.frozen import digest, frozen_set
from resprune_jax.models import load_model
from resprune_jax.models.checkpoint.shipped import shipped

DROP = 0.03
"""Of the slice's questions: what a change of the code may cost before it counts as a fault."""
LARGEST = 20_000_000
"""Bytes that all shipped models may take together."""


@pytest.fixture(scope="module")
def folder() -> Path:
    return shipped()


@pytest.fixture(scope="module")
def recorded(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "accuracy.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lvlm(folder: Path) -> Any:
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def measured(lvlm: Any) -> Measured:
    return measure(lvlm, frozen_set("cpu", SLICE), settings(("resprune",), (Fraction(2, 9),)))


def test_the_figures_are_of_these_weights_and_of_the_frozen_test_set(
    folder: Path, recorded: dict[str, Any], lvlm: Any
) -> None:
    assert recorded["weights"] == weights_digest(lvlm), "measure again: the weights have changed"
    assert recorded["split"] == "test" and recorded["questions"] >= 2000
    assert recorded["contents"] == digest(frozen_set("cpu")).contents
    assert (folder / "README.md").read_text(encoding="utf-8") == card(recorded)
    document = Path(__file__).parents[3] / "docs" / "explanation" / "pocket.md"
    assert markdown(recorded) in document.read_text(encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
    print(f"{size / 1e6:.1f} MB of shipped models")
    assert size <= LARGEST


@pytest.mark.deep
@pytest.mark.parametrize("name", ["full", "resprune 2/9"])
def test_accuracy_on_the_fixed_slice(
    measured: Measured, recorded: dict[str, Any], name: str
) -> None:
    right = int(measured.right(name).sum())
    expected, asked = recorded["slice"]["right"][name], recorded["slice"]["questions"]
    print(
        f"{name}: {right} of {len(measured.texts[name])} right, {expected} when it was measured;"
        f" {measured.seconds:.0f} s for both settings"
    )
    assert len(measured.texts[name]) == asked == 200
    assert expected - right <= DROP * asked
