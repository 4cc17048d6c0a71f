"""The report as a person reads it, line by line as it is found, and as JSON."""

from collections.abc import Callable
from typing import Any

from resprune_jax.errors import printable
from resprune_jax.experiments.doctor.findings import Finding, Status

STYLES: dict[Status, str] = {
    "ok": "green", "missing": "yellow", "FAULT": "bold red", "not tried": "dim",
}  # fmt: skip

Say = Callable[..., None]


def printer() -> Say:
    """Prints with colours where rich is there, else plainly: it may be what is broken."""
    try:
        from resprune_jax.experiments.common import console

        return console().print
    except ImportError:
        return lambda text="", **_: print(text)


def heading(say: Say, name: str) -> None:
    """Print the name of a section."""
    say(_text((name, "bold")))


def line(say: Say, finding: Finding) -> None:
    """Print a finding."""
    status = f"  {finding.status:<9}"
    say(_text((status, STYLES[finding.status]), (f" {finding.name:<12} {finding.line}", "")))


def verdict(say: Say, findings: list[Finding]) -> None:
    """Print what it all comes to."""
    faults = [each.name for each in findings if each.status == "FAULT"]
    optional = sum(each.status == "missing" for each in findings)
    if faults:
        said = f"{len(faults)} fault{'s' * (len(faults) > 1)}: {', '.join(dict.fromkeys(faults))}"
        say(_text((said, "bold red")))
    else:
        left = f", {optional} optional thing{'s' * (optional > 1)} missing" if optional else ""
        say(_text((f"Everything that was tried works{left}.", "bold green")))


def _text(*parts: tuple[str, str]) -> Any:
    """Words with their styles, or the words alone."""
    try:
        from rich.text import Text
    except ImportError:
        return "".join(word for word, _ in parts)
    return Text.assemble(*((printable_end(word), style) for word, style in parts))


def printable_end(word: str) -> str:
    """A part of a line, what cannot be printed in it escaped; blanks at its ends stay."""
    return word if word.isprintable() else printable(word, 500)


def as_json(findings: dict[str, list[Finding]]) -> dict[str, Any]:
    """The report for machines: usable or not, and every finding by its section."""
    every = [each for group in findings.values() for each in group]
    return {
        "usable": all(each.status != "FAULT" for each in every),
        "faults": [each.line for each in every if each.status == "FAULT"],
        "sections": {
            name: [
                {
                    "name": each.name, "status": each.status, "said": each.said,
                    "remedy": each.remedy, **each.facts,
                }
                for each in group
            ]
            for name, group in findings.items()
        },
    }  # fmt: skip
