"""The kernels that a compiled program launches, counted as they are executed.

Every instruction that XLA:GPU does not merely rename in memory is one launch: fusions, products,
custom calls, copies (a kernel, or the driver's own), and whatever XLA left unfused. The body of a
loop counts as often as it runs; where XLA does not know how often, its launches are given for one
trip, apart. Of a conditional the larger branch counts. Computations that are called, command
buffers and asynchronous wrappers among them, count where they are called.

What a count cannot know: whether a library takes more than one kernel for one call (a product split
along its sum, a sort in several passes).

A *host read* is a number that the host waits for before it can go on: the condition of a loop
whose trips are not known, the branch of a conditional.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from resprune_jax.experiments.compile_check.hlo import Instruction, Program, read_program
from resprune_jax.experiments.compile_check.target import Figures

FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "add-dependency", "opt-barrier", "optimization-barrier", "domain",
    }
)  # fmt: skip
"""Opcodes for which nothing runs on the device."""

FREE_TARGETS = frozenset({"AllocateBuffer", "Sharding", "LayoutConstraint"})
"""Custom calls for which nothing does."""

LAYER = re.compile(r"(?:^|/)((?:layer|block)(?:_\d+)?)(?=/|$)")
"""The scopes that models give the layers of the decoder and the blocks of a tower."""


@dataclass(frozen=True)
class Launch:
    """One kernel.

    Attributes:
        name: of the instruction.
        kind: "triton gemm", "cublas gemm", "loop fusion", "input fusion", "triton fusion", "copy",
            the target of a custom call, or another opcode.
        does: the primitives that it is made of.
        shape: of its result.
        scope: where in the model it comes from; where XLA lost that, where its result is read.
        lost: whether XLA did.
    """

    name: str
    kind: str
    does: str
    shape: str
    scope: str
    lost: bool = False

    @property
    def layer(self) -> str:
        """The layer or block that it is part of; "" if it lies beside them."""
        found = LAYER.search(self.scope)
        return found[1] if found else ""


@dataclass(frozen=True)
class Block:
    """What runs one after the other.

    Attributes:
        launches: each once.
        reads: host reads.
        loops: what runs repeatedly.
    """

    launches: tuple[Launch, ...] = ()
    reads: int = 0
    loops: "tuple[Loop, ...]" = ()

    def __add__(self, other: "Block") -> "Block":
        return Block(
            self.launches + other.launches, self.reads + other.reads, self.loops + other.loops
        )


@dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes:
        name: of the instruction.
        scope: where in the model it comes from.
        trips: how often it runs; None where XLA does not know it.
        body: of one trip, the condition in front of it where that is looked at.
    """

    name: str
    scope: str
    trips: int | None
    body: Block


@dataclass(frozen=True)
class Count:
    """What a part of a program executes.

    Attributes:
        launches: how often each launch is executed.
        reads: host reads.
        unknown: the loops in it whose trips nobody knows, not counted here.
        times: how often each of these loops is entered.
    """

    launches: Counter[Launch]
    reads: int
    unknown: tuple[Loop, ...]
    times: tuple[int, ...]

    @property
    def total(self) -> int:
        """Launches in all."""
        return self.launches.total()

    @property
    def in_layers(self) -> int:
        """Launches that are part of a layer or a block."""
        return sum(times for launch, times in self.launches.items() if launch.layer)

    @property
    def lost(self) -> int:
        """Launches that XLA does not say where they come from."""
        return sum(times for launch, times in self.launches.items() if launch.lost)

    @property
    def kinds(self) -> dict[str, int]:
        """How many of each kind, the most frequent first."""
        found: Counter[str] = Counter()
        for launch, times in self.launches.items():
            found[launch.kind] += times
        return dict(found.most_common())

    def one_layer(self) -> list[Launch]:
        """The launches of the layer in the middle, in their order."""
        own = list(dict.fromkeys(launch.layer for launch in self.launches if launch.layer))
        middle = own[len(own) // 2] if own else None
        return [launch for launch in self.launches if launch.layer == middle]


def read_launches(text: str, layers: int) -> Figures:
    """What a table and a JSON file say of a program's launches.

    Args:
        text: the compiled program.
        layers: of the decoder, or blocks of the tower, that it runs; 0: neither.
    """
    block = structure(read_program(text))
    once = count(block)
    unknown = list(_unknown(block))
    steps = [count(loop.body) for loop in unknown]
    # The part that the layers run in: the program itself, or a loop that runs until it is told to
    # stop, as decode's.
    main = max((once, *steps), key=lambda part: part.in_layers)
    products = [kind.removesuffix(" gemm") for kind in main.kinds if kind.endswith("gemm")]
    columns = {
        "launches": _with_trips(once.total, [step.total for step in steps]),
        "host reads": _with_trips(once.reads, [step.reads for step in steps]),
    }
    facts = {
        "launches": once.total,
        "launches_a_trip": [step.total for step in steps],
        "host_reads": once.reads,
        "host_reads_a_trip": [step.reads for step in steps],
        "loops": [
            {"trips": loop.trips, "launches": count(loop.body).total, "scope": loop.scope}
            for loop in (*filter(lambda loop: loop.trips is not None, block.loops), *unknown)
        ],
        "kinds": main.kinds,
        "scope_lost": main.lost,
    }
    alike = Counter(
        f"{loop.trips} x {count(loop.body).total}" for loop in block.loops if loop.trips is not None
    )
    columns["in loops"] = ", ".join(
        loop if many == 1 else f"{many} x {loop}" for loop, many in alike.items()
    )
    columns["a layer"] = columns["beside"] = ""
    columns["products"] = ", ".join(sorted(products))
    if layers:
        a_layer, beside = main.in_layers / layers, main.total - main.in_layers
        columns |= {"a layer": f"{a_layer:.4g}", "beside": str(beside)}
        facts |= {
            "layers": layers,
            "launches_a_layer": a_layer,
            "launches_beside": beside,
            "one_layer": [f"{launch.kind}: {launch.does}" for launch in main.one_layer()],
        }
    return Figures(columns, {"kernels": facts})


def _with_trips(once: int, trips: list[int]) -> str:
    """A number, and what each trip of loops adds to it that run nobody knows how often."""
    if len(trips) <= 2:
        return " + ".join([str(once), *(f"{trip} a trip" for trip in trips)])
    return f"{once} + {min(trips)} to {max(trips)} a trip of {len(trips)} loops"


def _unknown(block: Block) -> Iterator[Loop]:
    """All loops whose trips nobody knows, those inside of others behind these."""
    for loop in count(block).unknown:
        yield loop
        yield from _unknown(loop.body)


def count(block: Block) -> Count:
    """What a block executes: loops as often as they run, those of unknown trips left apart."""
    launches: Counter[Launch] = Counter()
    unknown: list[tuple[Loop, int]] = []
    reads = _add(block, 1, launches, unknown)
    return Count(
        launches, reads, tuple(loop for loop, _ in unknown), tuple(times for _, times in unknown)
    )


def _add(
    block: Block, times: int, launches: Counter[Launch], unknown: list[tuple[Loop, int]]
) -> int:
    reads = block.reads * times
    for launch in block.launches:
        launches[launch] += times
    for loop in block.loops:
        if loop.trips is None:
            unknown.append((loop, times))
        else:
            reads += _add(loop.body, times * loop.trips, launches, unknown)
    return reads


def structure(program: Program) -> Block:
    """The launches of a program, loops in their places."""
    return _block(program, program.entry)


def _block(program: Program, name: str, around: str = "") -> Block:
    """A computation, of which `around` is the scope of what calls it."""
    instructions = program.computations[name]
    scopes = {key: scope or around for key, scope in _scopes(program, instructions).items()}
    parts = Block()
    for instruction in instructions:
        parts += _part(program, instruction, scopes)
    return parts


def _scopes(program: Program, instructions: tuple[Instruction, ...]) -> dict[str, str]:
    """Where each instruction of a computation comes from; where that is lost, what reads it."""
    own = {each.name: _scope(program, each) for each in instructions}
    scopes = dict.fromkeys(own, "")
    for each in reversed(instructions):  # what reads a result stands behind it
        # What only renames a result passes on who reads it, and not where it was written.
        if each.opcode not in FREE and own[each.name]:
            scopes[each.name] = own[each.name]
        for operand in each.operands:
            if operand in scopes and scopes[each.name]:
                scopes[operand] = scopes[each.name]
    return {name: own[name] or scope for name, scope in scopes.items()}


def _scope(program: Program, instruction: Instruction) -> str:
    """Where XLA says that an instruction comes from: itself, or what was fused into it."""
    if instruction.op_name or instruction.opcode != "fusion":
        return instruction.op_name
    inside = program.computations.get(instruction.attribute("calls"), ())
    names = [each.op_name for each in inside if each.op_name]
    return next(filter(LAYER.search, names), names[-1] if names else "")


def _part(program: Program, instruction: Instruction, scopes: dict[str, str]) -> Block:
    """What one instruction is executed as."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")) or opcode in FREE:
        return Block()
    opcode, scope = opcode.removesuffix("-start"), scopes[instruction.name]
    if opcode == "async":
        return _block(program, instruction.attribute("calls"), scope)
    if opcode == "call":
        return _block(program, instruction.attribute("to_apply"), scope)
    if opcode == "while":
        return _loop(program, instruction, scope)
    if opcode == "conditional":
        branches = instruction.attributes("branch_computations") or (
            instruction.attribute("true_computation"), instruction.attribute("false_computation")
        )  # fmt: skip
        larger = max((_block(program, each, scope) for each in branches), key=_size)
        return Block(reads=1) + larger
    if opcode == "custom-call" and instruction.target in FREE_TARGETS:
        return Block()
    return Block((_launch(program, instruction, opcode, scope),))


def _loop(program: Program, instruction: Instruction, scope: str) -> Block:
    body = _block(program, instruction.attribute("body"), scope)
    trips = instruction.trips
    if trips is not None:  # the host counts, nothing is asked of the device
        return Block(loops=(Loop(instruction.name, scope, trips, body),))
    asked = _block(program, instruction.attribute("condition"), scope) + Block(reads=1)
    # Asked in front of every trip, and once more at the end.
    return Block(loops=(Loop(instruction.name, scope, None, asked + body),)) + asked


def _size(block: Block) -> tuple[int, int]:
    """Launches and host reads, loops of unknown trips once."""
    made = count(block)
    inside = [_size(loop.body) for loop in made.unknown]
    return (
        made.total + sum(launches for launches, _ in inside),
        made.reads + sum(reads for _, reads in inside),
    )


def _launch(program: Program, instruction: Instruction, opcode: str, scope: str) -> Launch:
    fused = opcode == "fusion"
    inside = program.computations.get(instruction.attribute("calls"), ()) if fused else ()
    parts = [_primitive(each) for each in inside if each.opcode not in FREE]
    does = " ".join(dict.fromkeys(parts or [_primitive(instruction)]))
    lost = not _scope(program, instruction)
    return Launch(
        instruction.name, _kind(instruction, opcode, inside), does, instruction.shape, scope, lost
    )


def _primitive(instruction: Instruction) -> str:
    """JAX's name of what an instruction does; XLA's where that is lost."""
    last = instruction.op_name.rpartition("/")[2]
    return last if last and "(" not in last else instruction.opcode


def _kind(instruction: Instruction, opcode: str, inside: tuple[Instruction, ...]) -> str:
    if opcode == "custom-call":
        return "cublas gemm" if "cublas" in instruction.target else instruction.target
    if opcode != "fusion":
        return opcode
    if any("cublas" in each.target for each in inside):
        return "cublas gemm"
    triton = "__triton" in instruction.rest
    if any(each.opcode == "dot" for each in inside):
        return "triton gemm" if triton else "gemm"
    if triton:
        return "triton fusion"
    words = {"kLoop": "loop fusion", "kInput": "input fusion", "kCustom": "custom fusion"}
    return words.get(instruction.attribute("kind"), "fusion")
