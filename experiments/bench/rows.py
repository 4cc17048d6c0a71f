"""One row of the selection benchmark: a trial of every side, then the sides in turn."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from resprune_jax.choices import TokenDType
from resprune_jax.errors import RunError
from resprune_jax.experiments.bench import engines as bench_engines
from resprune_jax.experiments.bench import foretell
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.engines import (
    AUTO,
    LOOP,
    PREPARE,
    PRODUCT,
    Compiled,
    Refused,
)
from resprune_jax.experiments.bench.problems import Problem, Size, make_problem, parted
from resprune_jax.experiments.bench.timing import (
    SHORT,
    Side,
    Timing,
    free_memory,
    interleave,
    no_compiles,
    peak_growth,
    taken,
)

ROW_SECONDS = 30.0
"""No round of a row begins after so many; one is always made."""

SLOWER = 1.5
"""Of the ways of an algorithm in torch, those this much slower than its fastest stop at a trial."""

LONG = 8.0
"""Seconds; a call that takes longer is made once: what came before it cannot matter any more."""

FIRST_TRUSTED = 3.0
"""Seconds; a first call that took longer is not repeated to know how long a call takes."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the plan: what is measured together.

    Attributes:
        size: N, d and K.
        batch: images.
        dtype: of the tokens.
        questions: about one image, in place of a batch; 0: a batch.
    """

    size: Size
    batch: int
    dtype: TokenDType
    questions: int = 0

    @property
    def name(self) -> str:
        """What the row is called in the JSON file."""
        many = f"{self.questions} questions" if self.questions else f"batch {self.batch}"
        return f"{self.size}, {many}, {self.dtype}"

    @property
    def itemsize(self) -> int:
        """Bytes of a token's number."""
        return 4 if self.dtype == "float32" else 2

    @property
    def selections(self) -> int:
        """How many selections a call makes."""
        return self.questions or self.batch

    @property
    def held(self) -> int:
        """Bytes of the tokens: those of one row, twice where torch has its own copy."""
        images = 1 if self.questions else self.batch
        return images * self.size.n * self.size.d * (self.itemsize + 4)


def measure(
    row: Row,
    *,
    names: tuple[str, ...],
    repeats: int,
    limit: float,
    speed: dict[str, float],
    torch_missing: str | None,
    torch_compile: bool,
    torch_limit: float = float("inf"),
) -> dict[str, Any]:
    """Measure one row.

    Args:
        row: what to measure.
        names: engines.
        repeats: rounds.
        limit: seconds; what would take longer a call is left out.
        speed: of the machine, see `timing.speeds`.
        torch_missing: why torch does not take part, or None.
        torch_compile: whether torch.compile does.
        torch_limit: seconds; of a large size torch is left out where its calls would take longer
            in all, by estimate.

    Returns:
        The row as the JSON file holds it: "sides" by name, "left_out" with a reason each, and
        "estimates" of torch's algorithms that were left out by them; no ratio has any of these.

    Raises:
        RunError: something was compiled while sides were timed, or the choice by size failed.
    """
    begun = time.perf_counter()
    facts: dict[str, Any] = {
        "n": row.size.n, "d": row.size.d, "keep": row.size.keep, "batch": row.batch,
        "questions": row.questions, "dtype": row.dtype, "sides": {}, "left_out": {},
    }  # fmt: skip
    free = int(0.9 * free_memory())
    if row.held > free:
        facts["left_out"]["all"] = f"the tokens alone take {row.held:,} bytes, {free:,} are free"
        return facts
    problem = make_problem(row.size, row.batch, row.dtype, questions=row.questions)
    trial = Trial(row, problem, limit, speed)
    if torch_missing:
        trial.left_out["torch"] = torch_missing
    elif trial.torch_is_worth_it(torch_compile, torch_limit):
        trial.torch(torch_compile)
    trial.engines(names)
    times = {side.name: Timing((side.usual,)) for side in trial.sides if side.usual}
    short = [side for side in trial.sides if not side.usual or side.usual < LONG]
    times |= interleave(short, repeats, ROW_SECONDS) if short else {}
    for side in trial.sides:
        many = 1 if row.questions and side.name == PRODUCT else row.selections
        trial.facts[side.name]["ms"] = times[side.name].facts(1 / many)
    facts |= {"sides": trial.facts, "left_out": trial.left_out, "estimates": trial.estimates}
    facts["agreement"] = trial.agreement()
    compare(row, facts, speed["bandwidth"])
    return facts | {"seconds": time.perf_counter() - begun}


class Trial:
    """First calls of a row's sides: what runs at all, how long it takes, what it picks and needs.

    Attributes:
        sides: what is worth timing.
        facts: what the trial showed, by side.
        left_out: why a side is not timed, by side.
        estimates: of torch's algorithms that are left out by them.
    """

    def __init__(self, row: Row, problem: Problem, limit: float, speed: dict[str, float]) -> None:
        self.row, self.problem, self.limit, self.speed = row, problem, limit, speed
        self.sides: list[Side] = []
        self.facts: dict[str, dict[str, Any]] = {}
        self.left_out: dict[str, str] = {}
        self.estimates: dict[str, dict[str, Any]] = {}
        self._picks: dict[str, Any] = {}

    def torch_is_worth_it(self, compile_steps: bool, limit: float) -> bool:
        """Whether torch's calls would end in time; at a large size that is foretold from smaller
        ones, not waited for.

        Args:
            compile_steps: whether every way is tried through torch.compile too.
            limit: seconds that torch's calls of this row may take in all.
        """
        size = self.row.size
        if size.n * size.d * size.keep < foretell.WORTH or limit == float("inf"):
            return True
        ways = (1 + (self.row.selections > 1)) * (1 + compile_steps)
        total, found = 0.0, {}
        for group, samples in self._smaller().items():
            one = foretell.foretell(group, size, self.row.itemsize, samples)
            call = one * self.row.selections
            total += ways * call * foretell.calls(call, FIRST_TRUSTED, LONG)
            found[group] = call, foretell.facts(one, samples)
        if total <= limit:
            return True
        for group, (call, estimate) in found.items():
            self.estimates[group] = estimate
            self.left_out[group] = (
                f"about {call:,.1f} s a call by estimate, {total:,.0f} s for all of torch's in this"
                f" row (--torch-limit {limit:g})"
            )
        return False

    def _smaller(self) -> dict[str, list[foretell.Sample]]:
        """What torch's algorithms take for one image at smaller sizes, eager."""
        import jax

        device = bench_torch.device_of(jax.default_backend())
        samples: dict[str, list[foretell.Sample]] = {}
        for size in foretell.smaller_sizes(self.row.size):
            problem = make_problem(size, 1, self.row.dtype)
            for side in bench_torch.sides(problem, device, compiled=False):
                side.call()
                seconds = min(taken(side.call) for _ in range(2))
                samples.setdefault(side.group, []).append(foretell.Sample(size, seconds))
        return samples

    def torch(self, compile_steps: bool) -> None:
        """Try torch's sides; of the ways of one algorithm the fast ones stay."""
        import jax

        device = bench_torch.device_of(jax.default_backend())
        found: dict[str, list[tuple[bench_torch.TorchSide, float]]] = {}
        for side in bench_torch.sides(self.problem, device, compiled=compile_steps):
            if self._too_long(side.name, side.group):
                continue
            grown = bench_torch.peak_memory if device == "cuda" else peak_growth
            try:
                picks, usual, needed = tried(side.call, grown, again="compiled" in side.way)
            except Exception as error:  # no compiler, no memory: a reason, not an end
                self.left_out[side.name] = bench_engines.one_line(error)
                continue
            self._picks[side.name] = picks.cpu().numpy()
            self.facts[side.name] = {"group": side.group, "memory": {"measured": needed}}
            found.setdefault(side.group, []).append((side, usual))
        for ways in found.values():
            fastest = min(usual for _, usual in ways)
            for way, usual in ways:
                if usual <= SLOWER * fastest:
                    self.sides.append(Side(way.name, way.call, usual))
                    continue
                self.left_out[way.name] = (
                    f"{1e3 * usual:.3g} ms a call when it was tried, {usual / fastest:.1f} times"
                    " the fastest way of the same algorithm"
                )
                del self.facts[way.name]

    def engines(self, names: tuple[str, ...]) -> None:
        """Try the Gram product and the engines."""
        import jax
        import numpy as np

        on_cpu = jax.default_backend() == "cpu"
        for side in bench_engines.sides(self.problem, names, self._too_long):
            if isinstance(side, Refused) and side.name in (AUTO, PREPARE, LOOP):
                raise RunError(f"{self.row.name}: {side.name} must run everywhere: {side.why}")
            if isinstance(side, Refused):
                self.left_out[side.name] = f"does not run here: {side.why}"
                continue
            if self._too_large(side):
                continue
            result, usual, needed = tried(side, peak_growth if on_cpu else None)
            if side.name not in (PRODUCT, PREPARE):
                self._picks[side.name] = np.asarray(result).reshape(self.row.selections, -1)
            memory = {"planned": side.planned, "measured": needed}
            self.facts[side.name] = {"group": side.name, "memory": memory}
            self.sides.append(Side(side.name, side, usual))

    def _too_long(self, name: str, group: str | None = None) -> bool:
        """Leave out what the machine cannot do in time at its best."""
        group = group or name
        size, many = self.row.size, self.row.selections
        moved = bench_engines.bytes_moved(group, size, self.row.itemsize)
        seconds = bench_engines.flops(group, size) / self.speed["matmul_float32"]
        seconds = many * max(seconds, (moved or 0.0) / self.speed["bandwidth"])
        if seconds <= self.limit:
            return False
        self.left_out[name] = f"would take about {seconds:.0f} s a call (limit {self.limit:g} s)"
        return True

    def _too_large(self, side: Compiled) -> bool:
        """Leave out what the compiler planned more memory for than there is."""
        plan, free = side.planned, int(0.9 * free_memory())
        if plan is None or (need := plan["temporaries"] + plan["outputs"]) <= free:
            return False
        self.left_out[side.name] = f"needs {need:,} bytes more, {free:,} are free"
        return True

    def agreement(self) -> dict[str, Any]:
        """Pick for pick, every side against one of them: torch's Algorithm 1 where it ran."""
        import numpy as np

        if not self._picks:
            return {}
        order = sorted(self._picks, key=lambda name: not name.startswith(bench_torch.ALGORITHM_1))
        against = order[0]
        reference = self._picks[against]
        found: dict[str, Any] = {"against": against, "sides": {}}
        known: dict[tuple[int, bytes], Any] = {}  # most sides part at one and the same tie
        for name in order[1:]:
            picks = self._picks[name]
            differing = [row for row in range(len(picks)) if (picks[row] != reference[row]).any()]
            entry: dict[str, Any] = {"equal": len(picks) - len(differing), "of": len(picks)}
            if differing:
                row = differing[0]
                key = row, np.asarray(picks[row], np.int32).tobytes()
                if key not in known:
                    known[key] = parted(self.problem, row, picks[row], reference[row])
                entry["parted"] = known[key]
            found["sides"][name] = entry
        return found


def tried(
    call: Callable[[], Any], grown: Callable[[Callable[[], Any]], int | None] | None,
    *, again: bool = False,
) -> tuple[Any, float, int | None]:  # fmt: skip
    """Call something for the first time.

    Args:
        call: what is tried.
        grown: makes a call and tells the memory that it took, or None.
        again: the first call is no measure of the others, however long it takes.

    Returns:
        What it gave; the seconds that a call takes; the bytes that it takes, None if unknown.
    """
    kept: list[Any] = []

    def once() -> None:
        with no_compiles("a side that is tried"):
            kept[:] = [call()]

    seconds = taken(once)
    needed = None
    if seconds < FIRST_TRUSTED or again:
        kept.clear()
        seconds = taken(once)
        for _ in range(2 if seconds < SHORT else 0):
            seconds = min(seconds, taken(once))
    if grown is not None and seconds < FIRST_TRUSTED:
        kept.clear()
        needed = grown(once)
    return kept[0], seconds, needed


def compare(row: Row, facts: dict[str, Any], bandwidth: float) -> None:
    """Add to each side of a row what follows from the times.

    Args:
        row: what was measured.
        facts: its figures; "counted" is added, the fastest way of torch's Algorithm 1, and to
            every side "ratio", how many times faster than that it is, "bytes" a selection, and
            "bandwidth_share", the part of its time that moving them takes at full speed.
        bandwidth: of the machine, bytes a second.
    """
    sides = facts["sides"]
    ways = [name for name, side in sides.items() if side["group"] == bench_torch.ALGORITHM_1]
    counted = min(ways, key=lambda name: sides[name]["ms"]["median"], default=None)
    facts["counted"] = counted
    for side in sides.values():
        median = side["ms"]["median"]
        side["ratio"] = None if counted is None else sides[counted]["ms"]["median"] / median
        moved = None  # questions share passes over the image's own data
        if not row.questions:
            moved = bench_engines.bytes_moved(side["group"], row.size, row.itemsize)
        side["bytes"] = moved
        side["bandwidth_share"] = None if moved is None else moved / (bandwidth * median / 1e3)
    product = sides.get(PRODUCT)
    if product is not None and not row.questions:
        for side in sides.values():
            side["of_product"] = side["ms"]["median"] / product["ms"]["median"]
