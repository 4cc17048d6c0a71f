"""What the doctor finds: a line each. Nothing here imports more than the standard library."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from resprune_jax.errors import ResPruneError, printable

Status = Literal["ok", "missing", "FAULT", "not tried"]
"""`missing`: optional, and not there. `not tried`: left out, or a fault above is in its way."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: how it is.
        said: what was found.
        remedy: what to do, a command where one does it; empty where nothing is to be done.
        facts: the same for machines.
    """

    name: str
    status: Status
    said: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """What is found, and what to do about it."""
        said = f"optional: {self.said}" if self.status == "missing" else self.said
        return printable(f"{said} → {self.remedy}" if self.remedy else said, 500)


Look = Callable[[], Iterable[Finding]]


def look(name: str, about: Look) -> Iterator[Finding]:
    """All that one look gives; what stops it becomes a finding, so that the others go on.

    Args:
        name: what it looks at.
        about: makes the findings.
    """
    try:
        yield from about()
    except ImportError as error:
        yield Finding(name, "FAULT", f"cannot be imported: {told(error)}", AGAIN)
    except ResPruneError as error:  # it says what to do
        yield Finding(name, "FAULT", str(error))
    except Exception as error:  # of whatever library
        yield Finding(name, "FAULT", f"fails: {told(error)}", "resprune doctor --debug shows where")


AGAIN = "install resprune-jax again, with its dependencies, into a new environment"


def told(error: BaseException) -> str:
    """What another package's error says, shortly."""
    said = str(error).strip()
    if not said:
        return type(error).__name__
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return printable(f"{kind}{said}", 200)
