"""The wheel holds the tree, under the names that the code is imported by, and has one version."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import resprune_jax
from resprune_jax.experiments import words

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_the_tree(tmp_path: Path) -> None:
    # From a copy without links, as a source distribution is, or a checkout on a system without.
    source = tmp_path / "source"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    want = set()
    for folder, package in [
        ("resprune_jax", "resprune_jax"),
        ("models", "resprune_jax/models"),
        ("experiments", "resprune_jax/experiments"),
    ]:
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "resprune_jax" and inside.parts[0] in ("models", "experiments")
            if path.is_dir() or linked or "__pycache__" in inside.parts:
                continue
            (source / folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (source / folder / inside).write_bytes(path.read_bytes())
            want.add(f"{package}/{inside.as_posix()}")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    got = {name for name in names if ".dist-info/" not in name}
    assert got == want
    assert "resprune_jax/models/api.py" in got and "resprune_jax/data/tables.json" in got
    assert wheel.name.startswith(f"resprune_jax-{resprune_jax.__version__}-")
    print(f"{len(got)} files in the wheel")


def test_both_import_names_are_one_module() -> None:
    import resprune_jax.models

    assert resprune_jax.models.__name__ == "resprune_jax.models"
    assert "models" not in sys.modules and "experiments" not in sys.modules


def test_the_version_stands_in_one_place() -> None:
    version = resprune_jax.__version__
    assert words.version_of(words.OWN) == version and re.fullmatch(r"\d+\.\d+\.\d+", version)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "resprune_jax.__version__"
    # setuptools reads a literal without importing the package, which a build could not.
    tree = ast.parse((ROOT / "resprune_jax" / "__init__.py").read_text("utf-8"))
    (value,) = [
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]  # fmt: skip
    assert ast.literal_eval(value) == version
    # What others read, and no tool derives: the citation, and the changelog's newest heading.
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    cited = re.findall(r"^(?:version|date-released): (.+)$", citation, re.MULTILINE)
    headings = re.findall(
        r"^## \[(\S+)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    released = [(name, date) for name, date in headings if name != "Unreleased"]
    assert list(released[0]) == cited and cited[0] == version
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d", date) for _, date in released)
