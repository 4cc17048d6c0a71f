"""A compiled program as a row of a table: whether it fits, and what else was read in it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from resprune_jax.experiments.compile_check.compiler import Compiled
from resprune_jax.experiments.compile_check.target import Figures
from resprune_jax.experiments.info import bytes_text


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled program.

    Attributes:
        name: of the model, or "selection".
        program: what was compiled.
        setting: its sizes, and the ways of its attention; all rows of one table have the same keys,
            which are its columns.
        compiled: the compiler's plan.
        limit: bytes of a device that programs may use.
        held: bytes of a device that parameters and arguments take in any case.
        donated: bytes of a device that must be aliased: what the program updates in place.
        figures: what the target reads in such programs.
    """

    name: str
    program: str
    setting: Mapping[str, int | str]
    compiled: Compiled
    limit: int
    held: int = 0
    donated: int = 0
    figures: Figures = dataclasses.field(default_factory=Figures)

    @property
    def total(self) -> int | None:
        """Bytes of a device in use while it runs; None where the compiler refused it."""
        memory = self.compiled.memory
        return None if memory is None else memory.total(self.held)

    @property
    def fits(self) -> bool:
        """Whether a device's memory holds it."""
        return self.total is not None and self.total <= self.limit

    @property
    def verdict(self) -> str:
        """What to say of it, in a few words."""
        memory = self.compiled.memory
        if memory is None:
            return f"does not fit: {self.compiled.problem}"
        if not self.fits:
            return f"does not fit {bytes_text(self.limit)}"
        if memory.aliased < self.donated:
            return "fits, but copies its cache"
        return "fits"

    @property
    def passed(self) -> bool:
        """Whether it fits and updates in place what it was given for that."""
        return self.verdict == "fits"

    def facts(self) -> dict[str, Any]:
        """The row for a JSON file."""
        memory = self.compiled.memory
        return {
            "name": self.name,
            "program": self.program,
            **self.setting,
            **self.figures.facts,
            "bytes": None if memory is None else dataclasses.asdict(memory),
            "held": self.held,
            "donated": self.donated,
            "total": self.total,
            "limit": self.limit,
            "verdict": self.verdict,
            "seconds": round(self.compiled.seconds, 1),
        }
