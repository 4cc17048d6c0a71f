"""The rooms: no import runs up, none in a circle, none is too full; and the check notices."""

from pathlib import Path

import pytest

from tests import house


def test_no_import_runs_up() -> None:
    assert house.upward() == []


def test_rooms_beside_one_another_import_one_way() -> None:
    assert house.circles() == []


def test_no_room_is_too_full() -> None:
    assert {name: count for name, count in house.fullness().items() if count > house.MOST} == {}


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("models/decoder/bad.py", "from resprune_jax.models.families import base", "families.base"),
        ("models/towers/bad.py", "import resprune_jax.experiments.common", "experiments.common"),
        ("resprune_jax/bad.py", "def f():\n    from .methods import base", "methods.base"),
        ("models/families/bad/x.py", "from resprune_jax.models.families.registry import a", "regi"),
        ("models/running/bad.py", "from resprune_jax.models.api import LVLM", "models.api"),
    ],
)
def test_a_planted_arrow_is_noticed(
    file: str, line: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = house.modules()
    path = tmp_path / Path(file).name
    path.write_text(line + "\n")
    name = file.removesuffix(".py").replace("/", ".")
    monkeypatch.setattr(house, "modules", lambda: {**known, name: path})
    assert [each for each in house.upward() if found in each], house.upward()


def test_types_alone_are_no_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = house.modules()
    path = tmp_path / "bad.py"
    path.write_text("if TYPE_CHECKING:\n    from resprune_jax.models.api import LVLM\n")
    monkeypatch.setattr(house, "modules", lambda: {**known, "models.decoder.bad": path})
    assert house.upward() == []


def test_what_counts_as_outside_a_family() -> None:
    counted = ["models/api.py", "models/families/registry.py", "experiments/verify/theirs.py"]
    free = ["models/families/x/config.py", "models/towers/y.py", "tests/z.py", "docs/families.md",
            "models/decoder/rope_scaling.py"]  # fmt: skip
    assert all(map(house.outside, counted)) and not any(map(house.outside, free))
