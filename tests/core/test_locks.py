"""The locks: they fit pyproject.toml, pin everything with hashes, and are what is installed."""

import re
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# Which extras each lock holds.
LOCKS = {
    "run": ["build"], "test": ["build", "test", "video"], "oldest": ["build", "test", "video"],
    "tpu": ["build", "test", "video"], "gpu": ["build", "test", "video", "gpu-check"],
    "harness": ["build"],
}  # fmt: skip


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """(requirement, hashes) of every entry of a lock."""
    text = (ROOT / "locks" / f"{lock}.txt").read_text(encoding="utf-8")
    text = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = re.split(r" +--hash=", line)
        found.append((Requirement(requirement), hashes))
    return found


def pins(lock: str, python: str) -> dict[str, Version]:
    """Version of each package that a lock gives a Python on Linux."""
    place = {
        "python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux",
        "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
    }  # fmt: skip
    given: dict[str, Version] = {}
    for requirement, _ in entries(lock):
        if requirement.marker is None or requirement.marker.evaluate(
            {**default_environment(), **place}
        ):
            name = canonicalize_name(requirement.name)
            assert name not in given, f"{name} twice for Python {python}"
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            given[name] = Version(pin.version)
    return given


def declared(python: str, extras: list[str]) -> list[Requirement]:
    """What pyproject.toml asks for on a Python."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    every = [Requirement(line) for line in lines]
    return [
        each for each in every
        if each.marker is None or each.marker.evaluate({"python_version": python})
    ]  # fmt: skip


# The one of the documentation holds nothing of the project.
@pytest.mark.parametrize("lock", [*LOCKS, "docs"])
def test_every_entry_is_pinned_and_hashed_and_names_no_place(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert requirement.url is None and hashes
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes)
    text = (ROOT / "locks" / f"{lock}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^-|file:|--index|--find-links", text, re.MULTILINE)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_fits_what_is_declared(lock: str, python: str) -> None:
    given = pins(lock, python)
    assert "torch" not in given and not any(name.startswith("nvidia") for name in given)
    for each in declared(python, LOCKS[lock]):
        name = canonicalize_name(each.name)
        assert each.specifier.contains(given[name]), f"{each} against {given[name]}: make lock"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_installed_to_run_is_what_the_tests_ran_with(python: str) -> None:
    tested = pins("test", python)
    for name, pin in pins("run", python).items():
        assert tested[name] == pin
    for lock in ("tpu", "gpu", "harness"):
        for name, pin in pins(lock, python).items():
            # lmms-eval needs an older one.
            assert tested.get(name, pin) == pin or (lock, name) == ("harness", "filelock")
    # The GPU's compiler is a plug-in of the very same JAX.
    assert pins("gpu", python)["jax-cuda13-plugin"] == tested["jaxlib"]


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_oldest_lock_holds_the_declared_floors(python: str) -> None:
    given = pins("oldest", python)
    for each in declared(python, LOCKS["oldest"]):
        (floor,) = [part.version for part in each.specifier if part.operator in (">=", "==")]
        pin = given[canonicalize_name(each.name)]
        # A floor of 3.8 stands for the first release of 3.8 that there is.
        first = Version(floor).release
        assert pin.release[: len(first)] == first, f"{each} was run with {pin}: write that floor"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("transformers", ["4.57.6", "5.0.0", "5.10.0", "5.12.1", "5.17.3"]),
        ("tyro", ["0.8.14", "0.9.0", "0.9.35", "1.0.3", "1.0.8"]),
        ("orbax-checkpoint", ["0.11.0", "0.11.10", "0.11.16"]),
    ],
)
def test_what_is_known_not_to_work_is_refused(python: str, name: str, broken: list[str]) -> None:
    """By whatever asks for one of these versions beside this project, pip first of all."""
    (own,) = [each for each in declared(python, []) if canonicalize_name(each.name) == name]
    assert [old for old in broken if own.specifier.contains(Version(old))] == []
    assert own.specifier.contains(Version("99"))


def test_what_is_declared_is_installed_and_imports() -> None:
    import importlib

    names = {
        "pillow": "PIL", "orbax-checkpoint": "orbax.checkpoint", "markdown-it-py": "markdown_it",
    }  # fmt: skip
    only_tools = {"ruff", "pytest-xdist"}
    place = default_environment()["python_version"]
    installed = {canonicalize_name(each.metadata["Name"]) for each in distributions()}
    for each in declared(place, ["test", "video"]):
        name = canonicalize_name(each.name)
        assert name in installed and each.specifier.contains(Version(version(name)))
        if name not in only_tools:
            importlib.import_module(names.get(name, name.replace("-", "_")))
