"""The package as users get it: sdist, wheel from it, an empty environment, an empty folder.

Nothing of the repository is on the path there; what README and docs/how_to/explore.md say runs.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import resprune_jax

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
VERSION = resprune_jax.__version__


def tracked() -> list[str]:
    """The files of the commit, and those that are about to be in it; links are left out."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout.decode()  # fmt: skip
    return [name for name in listed.split("\0") if name and not (ROOT / name).is_symlink()]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in tracked():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    for name in ("models", "experiments"):
        (source / "resprune_jax" / name).symlink_to(Path("..") / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return folder


class Installed:
    """An empty environment with the wheel in it, and an empty folder to work in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin = folder / "env" / "bin"
        self.place = folder / "place"
        self.place.mkdir(parents=True)
        # No PYTHONPATH, through which pip too would find the repository.
        kept = {name for name in os.environ if name.startswith("PIP_")} | {"PATH", "LANG", "HOME"}
        self.environment = {
            **{name: os.environ[name] for name in kept & set(os.environ)},
            "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        lock = str(ROOT / "locks" / "run.txt")
        self.pip("install", "--require-hashes", "-r", lock)
        self.pip("install", "--no-deps", "--no-index", str(wheel))
        self.pip("check")

    def pip(self, *words: str) -> None:
        """Run pip in the environment."""
        self.run("python", "-m", "pip", "--quiet", *words, seconds=1800)

    def run(self, *words: str, status: int = 0, seconds: float = 300) -> str:
        """Standard output of a program of the environment, started in the empty folder."""
        done = subprocess.run(
            [str(self.bin / words[0]), *words[1:]], cwd=self.place, env=self.environment,
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    (wheel,) = built.glob("*.whl")
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_of_the_sdist_holds_the_tree(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"resprune_jax-{VERSION}-py3-none-any.whl"
    assert sdist.name == f"resprune_jax-{VERSION}.tar.gz"
    want = set()
    for name in tracked():
        top, _, rest = name.partition("/")
        if rest and top in ("resprune_jax", "models", "experiments"):
            want.add(name if top == "resprune_jax" else f"resprune_jax/{name}")
    got = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert got == want
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.startswith("tests")]
    print(f"{len(got)} files, wheel of {wheel.stat().st_size / 1e6:.1f} MB")


def test_nothing_of_the_repository_is_imported(installed: Installed) -> None:
    code = (
        "import sys, resprune_jax, resprune_jax.models, resprune_jax.experiments as e\n"
        "print(resprune_jax.__version__, *resprune_jax.__path__, *e.__path__, sep='\\n')\n"
        "print(*sys.path, sep='\\n')"
    )
    version, *paths = installed.run("python", "-c", code).splitlines()
    assert version == VERSION
    assert all("site-packages/resprune_jax" in path for path in paths[:2])
    assert not [path for path in paths if path and Path(path).is_relative_to(ROOT)]
    assert f"resprune-jax {VERSION} " in installed.run("resprune", "--version")


def test_the_doctor_finds_nothing_wrong(installed: Installed) -> None:
    said = installed.run("resprune", "doctor")
    print(said)
    assert "FAULT" not in said and "Everything that was tried works" in said
    assert re.search(r"ok +answer .*'play', which is right, from 48 of 144 visual tokens", said)
    assert "pip install 'resprune-jax[serve]'" in said  # not of a checkout
    report = json.loads(installed.run("resprune", "doctor", "--quick", "--json"))
    assert report["usable"] is True and report["faults"] == []
    (programs,) = [one for one in report["sections"]["Caches and files"]
                   if one["name"] == "programs"]  # fmt: skip
    assert Path(programs["folder"]).is_relative_to(installed.environment["XDG_CACHE_HOME"])
    assert programs["files"] > 0


def test_the_demo_draws_its_pictures(installed: Installed) -> None:
    said = installed.run("resprune", "demo")
    assert "right answers" in said
    for number in (1, 2, 3):
        head = (installed.place / "demo" / f"kept_tokens_{number}.png").read_bytes()[:8]
        assert head == b"\x89PNG\r\n\x1a\n"


def test_the_first_blocks_of_the_page_on_explore(installed: Installed) -> None:
    page = (ROOT / "docs" / "how_to" / "explore.md").read_text("utf-8")
    python = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    shell = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert python and shell
    installed.run("python", "-c", python[1])
    (line,) = shell[1].replace("\\\n", " ").strip().splitlines()
    words = shlex.split(line)
    assert words[:2] == ["resprune", "explore"]
    installed.run(*words)
    out = words[words.index("--out") + 1]
    assert (installed.place / out).stat().st_size > 10_000
    code = (
        "import sys; from resprune_jax.experiments.explore import load\n"
        "print(sum(len(run.answers) for card in load(sys.argv[1]).cards for run in card.runs))"
    )
    assert int(installed.run("python", "-c", code, out)) >= 4


def test_the_doctor_of_a_broken_environment(installed: Installed) -> None:
    """The last one: it takes away what the command line itself stands on."""
    installed.pip("uninstall", "--yes", "tyro")
    said = installed.run("resprune", "doctor", "--quick", status=1)
    assert "tyro         it is needed and not installed → pip install 'tyro>=1.0.9'" in said
    assert said.splitlines()[-1] == "1 fault: tyro"
    installed.run("resprune", "info", status=1)
