"""`resprune doctor`: looks at what is installed here, tries it, and says what to do.

Nothing is imported here beyond the standard library, so that a fault of any package can be told.
"""

import contextlib
import dataclasses
import json as as_text
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence

from resprune_jax.experiments.doctor import folders, hardware, packages, printed, trial
from resprune_jax.experiments.doctor.findings import Finding, Look, look

logger = logging.getLogger("resprune_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Look whether all works here: packages, devices, caches, a selection and an answer."""

    quick: bool = False
    """Leave the answer of the pocket model out."""
    json: bool = False
    """Print JSON in place of lines."""
    debug: bool = False
    """Show the traceback of what fails."""


COMPUTING = ("numpy", "jax", "flax", "backend")
FILES = ("tyro", "numpy")

SECTIONS: dict[str, dict[str, tuple[Look, tuple[str, ...]]]] = {
    "Packages": {"package": (packages.own, ()), "packages": (packages.needed, ())},
    "Devices": {
        "backend": (hardware.devices, ("jax",)),
        "accelerator": (hardware.accelerators, ("jax",)),
        "float32": (hardware.precision, ("jax", "backend")),
        "machine": (hardware.memory, ()),
    },
    "Caches and files": {
        "programs": (folders.programs, FILES),
        "hub": (folders.hub, ("huggingface_hub",)),
        "pictures": (folders.pictures, ("numpy", "pillow", "matplotlib")),
        "tagger": (folders.nouns, ("spacy", "textblob")),
    },
    "Extras": {"extras": (packages.optional, ())},
    "Trial": {
        "selection": (trial.selection, (*FILES, *COMPUTING)),
        "answer": (trial.answer, (*FILES, *COMPUTING, *packages.GROUPS["models"],
                                  *packages.GROUPS["nouns"])),
    },
}  # fmt: skip
"""What is looked at, in this order, and what must be usable for that: packages, the backend."""


def run(options: DoctorOptions) -> int:
    """Carry out `resprune doctor`.

    Args:
        options: the command's options.

    Returns:
        0 where all that is needed works, 1 where something is broken.
    """
    say = None if options.json else printed.printer()
    found: dict[str, list[Finding]] = {}
    with _quiet():
        for section in SECTIONS:
            if say:
                printed.heading(say, section)
            found[section] = []
            for finding in _findings(section, found, options):
                found[section].append(finding)
                if say:
                    printed.line(say, finding)
    report = printed.as_json(found)
    if say:
        printed.verdict(say, [each for group in found.values() for each in group])
    else:
        print(as_text.dumps(report, indent=2), flush=True)
    return 0 if report["usable"] else 1


def _findings(
    section: str, before: dict[str, list[Finding]], options: DoctorOptions
) -> Iterator[Finding]:
    """One section's, given those before, which grow meanwhile by its own."""
    for name, (about, needs) in SECTIONS[section].items():
        every = [each for group in before.values() for each in group]
        unusable = {each.name for each in every if each.facts.get("usable") is False}
        if name == "answer" and options.quick:
            yield Finding(name, "not tried", "left out by --quick")
            continue
        if wanting := [each for each in needs if each in unusable]:
            yield Finding(name, "not tried", f"it needs {wanting[0]}")
            continue
        if section == "Trial":
            about = _keeping_programs(about, every)
        yield from look(name, _shown(about) if options.debug else about)


def _shown(about: Look) -> Look:
    """The same look, which prints the traceback of what stops it."""

    def looking() -> Iterator[Finding]:
        try:
            yield from about()
        except Exception:
            traceback.print_exc()
            raise

    return looking


def _keeping_programs(about: Look, before: list[Finding]) -> Look:
    """The same look, with the cache of compiled programs where that was found to work."""

    def looking() -> Iterator[Finding]:
        if any(each.name == "programs" and each.status == "ok" for each in before):
            from resprune_jax.experiments.common import use_compilation_cache

            use_compilation_cache()
        yield from about()

    return looking


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the library: what they tell is among the findings."""
    level = logger.level
    if level != logging.DEBUG:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def bare(words: Sequence[str]) -> int:
    """Run it where the command line itself cannot be imported, from the words behind its name.

    Returns:
        The exit status: 2 for words that are no option of it.
    """
    known = {f"--{field.name}" for field in dataclasses.fields(DoctorOptions)}
    wrong = [word for word in words if word not in known]
    if wrong:
        print(f"resprune: doctor takes {', '.join(sorted(known))} here", file=sys.stderr)
        return 2
    return run(DoctorOptions(**{word[2:]: True for word in words}))
