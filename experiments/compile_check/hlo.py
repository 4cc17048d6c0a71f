"""Reading a compiled program's text: its computations, and what calls what.

The text is HLO as `jax.stages.Compiled.as_text` prints it behind all of XLA's passes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: of the instruction, unique in the program.
        shape: of its result.
        opcode: what it does.
        operands: names of the instructions that it reads.
        rest: its attributes, as text.
        value: of a constant, as it is written.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    value: str = ""

    def attribute(self, key: str) -> str:
        """The computation, or the word, that an attribute names; "" if it is not there."""
        found = re.search(rf"(?:^|[\s,]){key}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""

    def attributes(self, key: str) -> tuple[str, ...]:
        """The computations that an attribute lists."""
        found = re.search(rf"(?:^|[\s,]){key}=\{{([^}}]*)\}}", self.rest)
        return tuple(re.findall(r"[\w.\-]+", found[1])) if found else ()

    @property
    def target(self) -> str:
        """What a custom call calls."""
        found = re.search(r'custom_call_target="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the model it comes from: scopes and the primitive, parted by slashes."""
        found = re.search(r'metadata=\{[^}]*?op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def trips(self) -> int | None:
        """How often a loop's body runs, where XLA knows it."""
        found = re.search(r'"known_trip_count":\{"n":"?(\d+)"?\}', self.rest)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        computations: the instructions of each, by its name.
        entry: the name of the one that runs.
        roots: the name of each computation's result.
    """

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    roots: dict[str, Instruction]


_HEAD = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\(.*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = ")
_NAMES = re.compile(r"%([\w.\-]+)")


def read_program(text: str) -> Program:
    """Read a program.

    Args:
        text: HLO, one instruction a line.

    Raises:
        ValueError: there is no entry computation, or a line that cannot be read.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    roots: dict[str, Instruction] = {}
    lines: list[Instruction] = []
    entry = name = ""
    for line in text.splitlines():
        if not name:
            head = _HEAD.match(line)
            if head and not line.startswith("HloModule"):
                name = head[2]
                entry = name if head[1] else entry
        elif line.startswith("}"):
            computations[name] = tuple(lines)
            name, lines = "", []
        elif found := _LINE.match(line):
            made = _instruction(found[2], line[found.end() :])
            lines.append(made)
            if found[1]:
                roots[name] = made
        elif line.strip():
            raise ValueError(f"not an instruction: {line.strip()[:80]!r}")
    if not entry:
        raise ValueError("a program without an entry computation")
    return Program(computations, entry, roots)


def _instruction(name: str, text: str) -> Instruction:
    """An instruction from what stands behind its equals sign."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    stop = _closing(text, start)
    operands = tuple(_NAMES.findall(text[start:stop]))
    value = text[start + 1 : stop] if text[:start] == "constant" else ""
    return Instruction(name, shape, text[:start], operands, text[stop + 1 :], value)


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in _brackets(text, start):
        depth += 1 if text[place] == "(" else -1
        if not depth:
            return place
    raise ValueError(f"a bracket that does not close: {text[:80]!r}")


def _brackets(text: str, start: int) -> Iterator[int]:
    """Places of round brackets outside of quotes."""
    quoted = False
    for place in range(start, len(text)):
        char = text[place]
        if char == '"' and (not place or text[place - 1] != "\\"):
            quoted = not quoted
        elif char in "()" and not quoted:
            yield place
