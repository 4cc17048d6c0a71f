"""How long a compiled TPU program takes, by what its compiler says of each operation.

libtpu writes behind every operation the cycles that it expects of it, its launch and its trips to
HBM among them; it decides by these figures what to fuse and when to start a copy. Nothing ran: they
compare programs of one compiler with one another and are no times.

A loop's body stands in the program once. A loop that counts to a constant runs so often. How
often a loop runs that waits for a pick that was not foreseen, only the tokens know: such figures
are for the fewest trips, every block full (`Shape`). Loops that only doubts start are left out.
"""

import dataclasses
import re
from collections.abc import Iterator

from resprune_jax.experiments.compile_check.hlo import Instruction, Program, read_program

CLOCK = {"v5e": 1.5e9, "v6e": 1.75e9}
"""Cycles a second: what the published rates of the chips come to."""

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """What bounds the loops of which the compiler knows no trips.

    Attributes:
        block: most picks of a block; 0: there are none, and one turn makes all picks of a part.
        rows: rows of the Gram matrix that are made together; 0: none are.
    """

    block: int = 0
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class Cycles:
    """What a program, or a part of it, takes.

    Attributes:
        cycles: that the compiler expects, of the fewest trips.
        operations: that are executed one after the other, likewise.
        least: whether loops are among it whose trips depend on the tokens.
    """

    cycles: int = 0
    operations: int = 0
    least: bool = False

    def __add__(self, other: "Cycles") -> "Cycles":
        return Cycles(
            self.cycles + other.cycles,
            self.operations + other.operations,
            self.least or other.least,
        )

    def times(self, trips: int) -> "Cycles":
        """That often."""
        return Cycles(self.cycles * trips, self.operations * trips, self.least)


def read_cycles(text: str, shape: Shape = Shape()) -> Cycles:
    """What a compiled program takes.

    Args:
        text: of the program.
        shape: of the loops whose trips depend on the tokens.
    """
    program = read_program(text)
    return _computation(program, program.entry, shape, picks=None)


def _computation(program: Program, name: str, shape: Shape, picks: int | None) -> Cycles:
    """One computation; `picks`: how many its loops of unknown trips make, None: it is no block."""
    made, before = Cycles(), 0
    unknown = [
        each for each in _loops(program, name)
        if counted(program, each) is None and bound(program, each) is None
    ]  # fmt: skip
    for each in program.computations[name]:
        if each.opcode == "while":
            body = each.attribute("body")
            trips, stop = counted(program, each), bound(program, each)
            if trips is not None:
                made += _computation(program, body, shape, None).times(trips)
            elif stop is not None:  # blocks, up to a pick that is known
                part, before = stop - before, stop
                block = min(part, shape.block or part)
                turn = _computation(program, body, shape, block)
                made += dataclasses.replace(turn.times(-(-part // block)), least=True)
            elif picks is not None:
                # The last one makes the picks; the others make rows until all are there.
                needed = -(-picks // shape.rows) if shape.rows else 0
                trips = picks if each is unknown[-1] else needed
                made += _computation(program, body, shape, None).times(trips)
        elif each.opcode == "call":
            made += _computation(program, each.attribute("to_apply"), shape, picks)
        elif each.opcode == "conditional":
            branches = each.attributes("branch_computations") or (
                each.attribute("true_computation"), each.attribute("false_computation")
            )  # fmt: skip
            parts = [_computation(program, branch, shape, picks) for branch in branches]
            made += max(parts, key=lambda part: part.cycles)
        elif found := _CYCLES.search(each.rest):
            made += Cycles(int(found[1]), 1)
        elif each.target == "tpu_custom_call":  # of a kernel it says nothing: `kernel`
            made += Cycles(0, 1)
    return made


def _loops(program: Program, name: str) -> Iterator[Instruction]:
    return (each for each in program.computations[name] if each.opcode == "while")


def bound(program: Program, loop: Instruction) -> int | None:
    """The constant below which a loop's condition keeps a number, or None."""
    found = _compared(program, loop)
    return found[1] if found else None


def counted(program: Program, loop: Instruction) -> int | None:
    """How often a loop runs that counts from 0 to a constant, or None."""
    found = _compared(program, loop)
    if found is None:
        return None
    place, stop = found
    body = loop.attribute("body")
    own = {each.name: each for each in program.computations[body]}
    root = program.roots[body]
    if root.opcode != "tuple":
        return None
    next_one = own.get(root.operands[place])
    while next_one is not None and next_one.opcode in ("copy", "bitcast"):
        next_one = own.get(next_one.operands[0])
    if next_one is None or next_one.opcode != "add":
        return None
    read = [own[operand] for operand in next_one.operands if operand in own]
    steps = [_constant(each) for each in read]
    by = [step for step in steps if step is not None]
    from_itself = any(_reads(own, each, place) for each in read)
    return -(-stop // by[0]) if len(by) == 1 and from_itself else None


def _reads(own: dict[str, Instruction], value: Instruction, place: int) -> bool:
    """Whether a value is what the loop carries at this place."""
    while value.opcode in ("copy", "bitcast") and value.operands[0] in own:
        value = own[value.operands[0]]
    return value.opcode == "get-tuple-element" and _index(value) == place


def _compared(program: Program, loop: Instruction) -> tuple[int, int] | None:
    """(which number the loop's condition reads, the constant that it must be below)."""
    condition = loop.attribute("condition")
    own = {each.name: each for each in program.computations[condition]}
    root = program.roots[condition]
    if root.opcode != "compare" or root.attribute("direction") != "LT":
        return None
    left, right = (own.get(operand) for operand in root.operands)
    if left is None or right is None or left.opcode != "get-tuple-element":
        return None
    stop = _constant(right)
    return None if stop is None else (_index(left), stop)


def _constant(instruction: Instruction) -> int | None:
    """The value of a whole constant."""
    if instruction.opcode != "constant" or instruction.value is None:
        return None
    return int(instruction.value) if re.fullmatch(r"-?\d+", instruction.value) else None


def _index(instruction: Instruction) -> int:
    found = re.search(r"index=(\d+)", instruction.rest)
    return int(found[1]) if found else -1
