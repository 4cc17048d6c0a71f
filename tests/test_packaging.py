"""The wheel holds the tree, under the names that the code is imported by."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_file_of_the_tree(tmp_path):
    # From a copy without links, as a checkout on a system without symlinks would give it.
    source = tmp_path / "source"
    tracked = ["pyproject.toml", "README.md", "LICENSE"]
    for name in tracked:
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
    for folder in ("models", "experiments"):
        (source / "resprune_jax" / folder).symlink_to(Path("..") / folder)
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
    print(f"{len(got)} files in the wheel")


def test_both_import_names_are_one_module():
    import resprune_jax.models

    assert resprune_jax.models.__name__ == "resprune_jax.models"
    assert "models" not in sys.modules and "experiments" not in sys.modules
