"""An interpreter of the PTX that the `mosaic_gpu` engine writes: a cluster of blocks on a CPU.

It knows the instructions of that program and refuses every other. Warps run in a random order, a
random number of instructions at a time, and what `st.async` sends arrives later in a random order:
a result that depends on the order of things, a message that is lost or a wait that never ends shows
as such. It is no model of the memory of a GPU: what one thread of a block writes to shared memory
the others see at once. Global memory is told apart: what is written there is for the launch after
this one. A read of it is refused, and so is a write to a place that was read or written before.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LANES = 32
_BASE = 1024  # where a block's shared memory begins in its window
_WINDOW = 1 << 24
_READ, _WRITTEN = 1, 2  # what a launch has done to a word of global memory
_KINDS = {"u32": np.uint32, "b32": np.uint32, "f32": np.float32, "u64": np.uint64, "b64": np.uint64}
_COMPARE = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip


class StuckError(Exception):
    """No warp can go on and no message is on its way."""


@dataclass(frozen=True)
class Instruction:
    guard: str | None
    name: tuple[str, ...]
    given: list[Any]


@dataclass
class Barrier:
    """An mbarrier: arrivals and bytes that this phase still waits for."""

    count: int
    pending: int
    bytes: int = 0
    phase: int = 0

    def settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase, self.pending = self.phase + 1, self.count


@dataclass
class Block:
    shared: np.ndarray
    barriers: dict[int, Barrier] = field(default_factory=dict)


class Warp:
    def __init__(self, machine: "Machine", rank: int, index: int) -> None:
        self.machine, self.rank, self.index = machine, rank, index
        self.places = np.zeros(LANES, np.int64)  # of the next instruction, a lane
        self.values: dict[str, np.ndarray] = {}
        self.arrivals = 0  # at barriers of the cluster
        self.done = False

    def read(self, operand: Any, kind: Any) -> np.ndarray:
        if isinstance(operand, str):
            if operand in self.values:
                value = self.values[operand]
                return value if value.dtype == kind else value.view(kind)
            special = {
                "%tid.x": np.arange(LANES) + LANES * self.index,
                "%cluster_ctarank": np.full(LANES, self.rank),
                "%clock": np.zeros(LANES),
            }
            return special[operand].astype(kind)
        if kind == np.float32 and isinstance(operand, int):
            raise TypeError(f"{operand} is no float")
        return np.full(LANES, operand, kind)

    def write(self, name: str, value: np.ndarray, lanes: np.ndarray) -> None:
        old = self.values.get(name)
        if old is None or lanes.all():
            self.values[name] = np.array(np.broadcast_to(value, LANES))
        else:
            self.values[name] = np.where(lanes, value, old.view(value.dtype))

    def run(self) -> bool:
        """One instruction; False where nothing came of it but asking again."""
        machine = self.machine
        place = int(self.places.min())
        if place == len(machine.code):
            self.done = True
            return True
        here = self.places == place
        step = machine.code[place]
        lanes = here
        if step.guard is not None:
            holds = self.values[step.guard.lstrip("!")]
            lanes = here & (~holds if step.guard.startswith("!") else holds)
        if step.name[0] == "bra":
            self.places[here] += 1
            self.places[lanes] = machine.labels[step.given[0]]
            return True
        if step.name[:2] == ("barrier", "cluster"):
            assert here.all(), "a barrier of the cluster in a warp that has parted"
            if step.name[2] == "arrive":
                self.arrivals += 1
            elif any(other.arrivals < self.arrivals for other in machine.warps):
                return False
            self.places[here] += 1
            return True
        self.places[here] += 1
        if "sync" in step.name:
            assert here.all(), f"{step.name} in a warp that has parted"
        if lanes.any():
            with np.errstate(all="ignore"):
                getattr(self, "do_" + step.name[0])(step.name[1:], step.given, lanes)
        return step.name[:2] != ("mbarrier", "try_wait")

    # Arithmetic.

    def kind(self, how: tuple[str, ...]) -> Any:
        return _KINDS[how[-1]]

    def math(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray, of: Callable) -> None:
        kind = self.kind(how)
        self.write(given[0], np.asarray(of(*(self.read(x, kind) for x in given[1:])), kind), lanes)

    def do_mov(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, lambda a: a)

    def do_and(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.bitwise_and)

    def do_or(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        assert how == ("pred",)
        self.write(given[0], self.values[given[1]] | self.values[given[2]], lanes)

    def do_shl(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.left_shift)

    def do_shr(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.right_shift)

    def do_add(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.add)

    def do_sub(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.subtract)

    def do_min(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.minimum)

    def do_max(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.fmax)

    def do_mul(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        assert how[0] in ("lo", "rn")
        self.math(how, given, lanes, np.multiply)

    def do_rcp(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, lambda a: np.float32(1) / a)

    def do_sqrt(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        self.math(how, given, lanes, np.sqrt)

    def do_fma(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        wide = np.float64
        self.math(how, given, lanes, lambda a, b, c: a.astype(wide) * b.astype(wide) + c)

    def do_mad(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        if how == ("lo", "u32"):
            return self.math(how, given, lanes, lambda a, b, c: a * b + c)
        assert how == ("wide", "u32")
        a, b = (self.read(x, np.uint32).astype(np.uint64) for x in given[1:3])
        return self.write(given[0], a * b + self.read(given[3], np.uint64), lanes)

    def do_brev(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        turned = [int(f"{x:032b}"[::-1], 2) for x in self.read(given[1], np.uint32)]
        self.write(given[0], np.array(turned, np.uint32), lanes)

    def do_clz(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        zeros = [32 - int(x).bit_length() for x in self.read(given[1], np.uint32)]
        self.write(given[0], np.array(zeros, np.uint32), lanes)

    def do_setp(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        a, b = (self.read(x, self.kind(how)) for x in given[1:3])
        holds = _COMPARE[how[0]](a, b)
        if "and" in how:
            holds = holds & self.values[given[3]]
        self.write(given[0], holds, lanes)

    def do_selp(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        a, b = (self.read(x, self.kind(how)) for x in given[1:3])
        self.write(given[0], np.where(self.values[given[3]], a, b), lanes)

    # Between the lanes.

    def do_redux(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        assert how == ("sync", "max", "u32")
        self.write(given[0], np.full(LANES, self.read(given[1], np.uint32).max()), lanes)

    def do_vote(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        assert how == ("sync", "ballot", "b32")
        bits = sum(1 << i for i, holds in enumerate(self.values[given[1]]) if holds)
        self.write(given[0], np.full(LANES, bits, np.uint32), lanes)

    def do_shfl(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        source = self.read(given[2], np.uint32).astype(int)
        if how[1] == "bfly":
            source = np.arange(LANES) ^ source
        self.write(given[0], self.read(given[1], np.uint32)[source % LANES], lanes)

    def do_bar(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        assert how == ("warp", "sync")

    def do_fence(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        pass

    # Memory.

    def address(self, place: list[Any], wide: bool = False) -> np.ndarray:
        kind = np.uint64 if wide else np.uint32
        return (self.read(place[0], kind) + kind(place[1] if len(place) > 1 else 0)).astype(int)

    def do_mapa(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        address, rank = (self.read(x, np.uint32) for x in given[1:])
        assert (rank < len(self.machine.blocks)).all()
        self.write(given[0], address + (rank + np.uint32(1)) * np.uint32(_WINDOW), lanes)

    def do_ld(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        kind = self.kind(how)
        to = given[0] if isinstance(given[0], list) else [given[0]]
        if how[0] == "global":
            assert len(to) == 1
            memory, used, places = self.machine.lookup(self.address(given[1], True), lanes)
            wide, where = 1, places[lanes] // 4
            assert (used[where] != _WRITTEN).all(), "read in the launch that wrote it"
            used[where] = _READ
        else:
            assert "cluster" not in how, "only stores reach other blocks"
            memory, places = self.machine.blocks[self.rank].shared, self.address(given[1]) - _BASE
            wide = len(to)
        assert (places[lanes] % (4 * wide) == 0).all(), "an address out of line"
        words = memory.view(np.uint32)
        for i, name in enumerate(to):
            places_ = np.where(lanes, places // 4 + i, 0)
            assert (places_ >= 0).all() and (places_ < words.size).all(), "outside of the memory"
            self.write(name, words[places_].view(kind), lanes)

    def do_st(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        values = given[1] if isinstance(given[1], list) else [given[1]]
        data = np.stack([self.read(x, np.uint32) for x in values], -1)  # [lanes, words]
        if how[0] == "async":
            to, barrier = self.address(given[0]), self.address(given[2])
            for lane in np.flatnonzero(lanes):
                self.machine.send(int(to[lane]), int(barrier[lane]), data[lane])
            return
        if how[0] == "global":
            assert len(values) == 1
            memory, used, places = self.machine.lookup(self.address(given[0], True), lanes)
            where = places[lanes] // 4
            assert len(set(where.tolist())) == len(where), "written by two lanes"
            assert not used[where].any(), "written where this launch has read or written"
            used[where] = _WRITTEN
        else:
            memory, places = self.machine.blocks[self.rank].shared, self.address(given[0]) - _BASE
        assert (places[lanes] % (4 * len(values)) == 0).all(), "an address out of line"
        words = memory.view(np.uint32)
        for lane in np.flatnonzero(lanes):
            at = int(places[lane]) // 4
            assert at >= 0 and at + len(values) <= words.size, "outside of the memory"
            words[at : at + len(values)] = data[lane]

    def do_mbarrier(self, how: tuple[str, ...], given: list[Any], lanes: np.ndarray) -> None:
        barriers = self.machine.blocks[self.rank].barriers
        if how[0] == "init":
            count = given[1]
            barriers[int(self.address(given[0])[lanes][0])] = Barrier(count, count)
        elif how[:2] == ("arrive", "expect_tx"):
            assert lanes.sum() == 1
            barrier = barriers[int(self.address(given[1])[lanes][0])]
            barrier.bytes += int(self.read(given[2], np.uint32)[lanes][0])
            barrier.pending -= 1
            assert barrier.pending >= 0
            barrier.settle()
        else:
            assert how[:2] == ("try_wait", "parity")
            barrier = barriers[int(self.address(given[1])[lanes][0])]
            parity = self.read(given[2], np.uint32)
            self.write(given[0], (barrier.phase & 1) != parity, lanes)


class Machine:
    """One cluster.

    Args:
        text: the program.
        memories: what `$1`, `$2` ... point to, each a contiguous array that is changed in place.
        blocks: of the cluster.
        warps: of a block.
        shared_bytes: of a block.
        rng_seed: of the order in which things happen.
    """

    def __init__(
        self, text: str, memories: list[np.ndarray], blocks: int, warps: int, shared_bytes: int,
        rng_seed: int = 0,
    ) -> None:  # fmt: skip
        self.random = random.Random(rng_seed)
        self.memories = {(i + 1) << 32: memory for i, memory in enumerate(memories)}
        self.used = {at: np.zeros(memory.size, np.int8) for at, memory in self.memories.items()}
        for operand, value in [(0, _BASE), *((i + 1, (i + 1) << 32) for i in range(len(memories)))]:
            text = text.replace(f"${operand}", str(value))
        self.code, self.labels = parse(text)
        noise = np.random.default_rng(rng_seed)
        self.blocks = [Block(noise.integers(0, 256, shared_bytes, np.uint8)) for _ in range(blocks)]
        self.warps = [Warp(self, rank, i) for rank in range(blocks) for i in range(warps)]
        self.messages: list[tuple[int, int, np.ndarray]] = []
        self.steps = 0

    def lookup(
        self, addresses: np.ndarray, lanes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """An array in global memory, what was done to its words, and the places in bytes."""
        (region,) = set((addresses[lanes] >> 32).tolist())
        memory, places = self.memories[region << 32], addresses - (region << 32)
        assert (places[lanes] >= 0).all() and (places[lanes] < memory.nbytes).all(), "outside"
        return memory.reshape(-1).view(np.uint8), self.used[region << 32], places

    def send(self, to: int, barrier: int, data: np.ndarray) -> None:
        assert to // _WINDOW == barrier // _WINDOW >= 1, "data and barrier of different blocks"
        self.messages.append((to, barrier, data))

    def deliver(self) -> None:
        to, where, data = self.messages.pop(self.random.randrange(len(self.messages)))
        block = self.blocks[to // _WINDOW - 1]
        barrier, words = block.barriers[where % _WINDOW], block.shared.view(np.uint32)
        place = (to % _WINDOW - _BASE) // 4
        assert to % (4 * len(data)) == 0 and place >= 0 and place + len(data) <= words.size
        words[place : place + len(data)] = data
        barrier.bytes -= 4 * len(data)
        barrier.settle()

    def run(self) -> None:
        """To the end.

        Raises:
            StuckError: it never comes.
        """
        idle = 0
        busy = list(self.warps)
        while busy:
            if self.messages and self.random.random() < 0.5:
                for _ in range(self.random.randrange(1, 1 + len(self.messages))):
                    self.deliver()
                idle = 0
            warp = self.random.choice(busy)
            for _ in range(self.random.choice((1, 10, 100, 1000))):
                went = warp.run()
                self.steps += 1
                idle = 0 if went and not self.waiting(warp) else idle + 1
                if warp.done:
                    busy.remove(warp)
                    break
                if idle:
                    break
            if idle > 200 * len(self.warps) and not self.messages:
                raise StuckError(f"{len(busy)} warps wait for ever")
        assert not self.messages, "a message after the end"

    def waiting(self, warp: Warp) -> bool:
        """Whether its last instruction was the jump back to asking again."""
        place = int(warp.places.min())
        return place < len(self.code) and self.code[place].name[:2] == ("mbarrier", "try_wait")


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        line = line.strip()
        if line in ("{", "}", "") or line.startswith(".reg"):
            continue
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
            continue
        assert line.endswith(";") and line.count(";") == 1, line
        found = re.match(r"(?:@(!?\w+) )?(\S+?)(?: (.*))?;$", line)
        assert found, line
        guard, name, rest = found.groups()
        code.append(Instruction(guard, tuple(re.split(r"\.|::", name)), operands(rest or "")))
    return code, labels


def operands(text: str) -> list[Any]:
    found = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", text)
    return [operand(x) for x in found]


def operand(text: str) -> Any:
    if text[0] == "{":
        return [operand(x.strip()) for x in text[1:-1].split(",")]
    if text[0] == "[":
        return [operand(x.strip()) for x in text[1:-1].split("+")]
    if text.startswith("0f"):
        return np.uint32(int(text[2:], 16)).view(np.float32)
    if text.startswith("0x"):
        return int(text, 16)
    return int(text) if text.isdigit() else text
