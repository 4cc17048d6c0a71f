"""Python, the packages that are needed, and those of the extras: versions, and whether they import.

`requirements` needs packaging, which is declared; where that is not there, this says so.
"""

import importlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resprune_jax import __version__
from resprune_jax.experiments import stopping
from resprune_jax.experiments.doctor.findings import Finding, told
from resprune_jax.experiments.words import OWN
from resprune_jax.experiments.words import version_of as shown_version

GROUPS = {
    "commands": ("tyro", "rich", "packaging"),
    "computing": ("numpy", "ml_dtypes", "jax", "jaxlib", "flax", "chex"),
    "models": (
        "transformers", "tokenizers", "huggingface_hub", "safetensors", "jinja2", "pillow",
    ),
    "nouns": ("spacy", "textblob"),
    "reports": ("pyarrow", "matplotlib"),
    "training": ("optax", "orbax-checkpoint"),
}  # fmt: skip
"""What is needed, by what for, each behind those that it stands on. jaxlib and tokenizers are not
declared: they come with others, and say much in a report of a fault."""

HEAVY = ("lmms-eval",)
"""Not imported: it brings torch and takes long."""

PURPOSES = {
    "cuda": "JAX on NVIDIA GPUs", "tpu": "JAX on TPUs, and resprune tpu-check",
    "gpu-check": "resprune gpu-check", "video": "videos", "serve": "resprune serve",
    "lmms-eval": "lmms-eval eval --model resprune",
}  # fmt: skip
"""What each extra is for."""

_EDITABLE = "pip install -e"


def own() -> Iterator[Finding]:
    """Python and this package."""
    system = f"{platform.system()} {platform.machine()}"
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": system,
        "prefix": sys.prefix,
    }
    yield Finding("Python", "ok", f"{platform.python_version()}, {system}, {sys.prefix}", "", facts)
    from resprune_jax.experiments.doctor import requirements

    folder = requirements.own_folder()
    place = folder or Path(__file__).resolve().parents[2]
    facts = {"version": __version__, "folder": str(place), "checkout": folder is not None}
    installed = requirements.version_of(OWN)
    if installed not in (__version__, None):
        yield Finding(
            OWN, "FAULT", f"the code in {place} is {__version__}, what is installed {installed}",
            f"{_EDITABLE} '{place}'" if folder else f"pip install --force-reinstall {OWN}", facts,
        )  # fmt: skip
    elif installed is None and folder is not None:
        yield Finding(
            OWN, "missing", f"{__version__} in {place}, not installed: lmms-eval does not find it",
            f"{_EDITABLE} '{place}'", facts,
        )  # fmt: skip
    else:
        yield Finding(OWN, "ok", f"{__version__} in {place}", "", facts)


def needed() -> Iterator[Finding]:
    """Every declared dependency: there, of a version that works, and it imports."""
    from packaging.utils import canonicalize_name

    from resprune_jax.experiments.doctor import requirements

    declared = {canonicalize_name(each.name): each for each in requirements.declared()}
    groups = {group: [*names] for group, names in GROUPS.items()}
    named = {canonicalize_name(name) for names in groups.values() for name in names}
    groups["others"] = [each.name for name, each in declared.items() if name not in named]
    faulty: set[str] = set()
    for group, names in groups.items():
        fine: dict[str, str] = {}
        for name in names:
            own = declared.get(canonicalize_name(name))
            fault = _fault(name, str(own.specifier) if own else "", faulty)
            if fault is None:
                fine[name] = shown_version(name)
            else:
                if fault.facts.get("usable") is False:
                    faulty.add(canonicalize_name(name))
                yield fault
        if fine:
            said = ", ".join(f"{name} {version}" for name, version in fine.items())
            yield Finding(group, "ok", said, "", {"versions": fine})


def _fault(name: str, specifier: str, faulty: set[str]) -> Finding | None:
    """What is wrong with one package that is needed: the first thing that is.

    Args:
        name: of the package.
        specifier: the versions that are declared.
        faulty: packages that do not import: those that stand on one are not tried.
    """
    from packaging.requirements import Requirement

    from resprune_jax.experiments.doctor import requirements

    wanted = Requirement(f"{name}{specifier}")
    command = f"pip install '{requirements.without_marker(wanted)}'"
    version = requirements.version_of(name)
    facts = {"version": version, "needed": specifier}
    if version is None:
        said = "it is needed and not installed"
        return Finding(name, "FAULT", said, command, {**facts, "usable": False})
    if bad := requirements.unfit(wanted):
        return Finding(name, "FAULT", bad, command, facts)
    if name == "flax" and (pair := _bad_pair(version, requirements.version_of("jax"))):
        return Finding(name, "FAULT", *pair, facts)
    if below := requirements.stands_on(name, faulty):
        said = f"{version}, which needs {below}"
        return Finding(name, "not tried", said, "", {**facts, "usable": False})
    module = requirements.module_of(name)
    try:
        _import(module)
    except Exception as error:  # whatever a broken package raises
        again = command.replace("install", "install --force-reinstall --no-deps", 1)
        said = f"{version} is installed, and importing {module} fails: {told(error)}"
        return Finding(name, "FAULT", said, again, {**facts, "usable": False})
    return None


def _import(module: str) -> None:
    """Import a module; an interrupt inside an extension that starts up could crash Python."""
    with stopping.whole():
        importlib.import_module(module)


def _bad_pair(flax: str, jax: str | None) -> tuple[str, str] | None:
    """flax up to 0.12.8 cannot import nnx with jax 0.11.1 or later: what to say, what to do."""
    from packaging.version import Version

    if jax is None or Version(flax) > Version("0.12.8") or Version(jax) < Version("0.11.1"):
        return None
    return f"flax {flax} does not work with jax {jax}", "pip install 'flax>=0.12.9'"


def optional() -> Iterator[Finding]:
    """Every extra that a user may want: installed or not, and the command that brings it."""
    from resprune_jax.experiments.doctor import requirements

    for extra in requirements.extras():
        if extra not in requirements.FOR_DEVELOPERS:
            yield _extra(extra)


def _extra(extra: str) -> Finding:
    from resprune_jax.experiments.doctor import requirements

    wanted = requirements.declared(extra)
    absent = sorted({name for each in wanted for name in requirements.lacking(each)})
    command = requirements.install(extra)
    facts = {"extra": extra, "absent": absent, "command": command}
    if absent:
        several = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
        said = f"{PURPOSES.get(extra, extra)} (needs {', '.join(absent[:4])}{several})"
        if extra == "lmms-eval":
            command += " (docs/how_to/lmms_eval.md says how without another torch)"
        return Finding(extra, "missing", said, command, facts)
    for each in wanted:
        if bad := requirements.unfit(each):
            return Finding(extra, "FAULT", bad, command, facts)
        if each.name in (*HEAVY, "jax"):  # that is among the packages that are needed
            continue
        module = requirements.module_of(each.name)
        try:
            _import(module)
        except Exception as error:
            said = f"{each.name} is installed, and importing {module} fails: {told(error)}"
            return Finding(
                extra, "FAULT", said, f"pip install --force-reinstall {each.name}", facts
            )
    if bad := _unlike_jaxlib(extra):
        return Finding(extra, "FAULT", bad, command, facts)
    versions = {each.name: shown_version(each.name) for each in wanted}
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    said = f"{PURPOSES.get(extra, extra)} ({said})"
    return Finding(extra, "ok", said, "", {**facts, "versions": versions})


def _unlike_jaxlib(extra: str) -> str | None:
    """A plug-in for GPUs works with the jaxlib of its own version alone."""
    from resprune_jax.experiments.doctor.requirements import version_of

    jaxlib = version_of("jaxlib")
    for name in ("jax-cuda13-plugin", "jax-cuda12-plugin"):
        version = version_of(name)
        if extra in ("cuda", "gpu-check") and version is not None and version != jaxlib:
            return f"{name} is {version}, jaxlib {jaxlib}: both must be of one version"
    return None
