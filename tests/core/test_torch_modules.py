"""Which test modules a machine without torch leaves out."""

from pathlib import Path

from tests.torch_modules import modules_that_need_torch

CONFTEST = """
import pytest
@pytest.fixture
def model():
    from tests.made import write
@pytest.fixture
def answer(model): ...
@pytest.fixture
def plain(): ...
"""
# File, its source, and whether it needs torch.
CASES = [
    ("made", "import torch", False),  # no test module
    ("helper", "from tests.made import write", False),
    ("test_direct", "import torch", True),
    ("test_part", "from torch import nn", True),
    ("test_files", "from safetensors.torch import load_file", True),
    ("test_inside", "def test_it():\n    import torch.nn", True),
    ("test_through_two", "from tests import helper", True),
    ("test_fixture", "def test_it(model): ...", True),
    ("test_fixture_of_fixture", "def test_it(answer): ...", True),
    ("test_other_fixture", "def test_it(plain): ...", False),
    ("test_own_fixture", "def model(): ...\ndef test_it(model): ...", False),
    ("test_words_only", "TEXT = 'import torch'  # torch\nimport torchlike", False),
    ("test_numpy", "from safetensors.numpy import load_file", False),
]


def test_modules_are_found_by_what_they_import_and_take(tmp_path: Path) -> None:
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "conftest.py").write_text(CONFTEST)
    for number, (name, source, _) in enumerate(CASES):
        folder = "tests/deep" if name.startswith("test_") and number % 2 else "tests"
        (tmp_path / folder / f"{name}.py").write_text(source)
    found = modules_that_need_torch(tmp_path)
    assert {path.stem for path in found} == {name for name, _, needs in CASES if needs}


def test_parity_and_nothing_of_the_core_needs_torch() -> None:
    root = Path(__file__).parents[2]
    found = {path.relative_to(root).as_posix() for path in modules_that_need_torch(root)}
    parity = {path.relative_to(root).as_posix() for path in (root / "tests/parity").glob("test_*")}
    assert parity <= found
    assert not any(name.startswith("tests/core/") for name in found)
