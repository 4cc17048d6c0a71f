"""What every fuzzer is, and how one case of it is judged.

A fuzzer turns a seed into an input, gives it to the library, and lets out whatever that raises. A
clean end is a normal return or an error of the library whose message a person can read. Everything
else is a fault: a foreign exception, a message of many lines, time or memory without end.

To attack something new, add a file to `fuzzers/` that holds a list `FUZZERS`; nothing else lists
them. `make test` runs the first `quick` seeds of each, `make test-attacks` all `cases`. What
several fuzzers make their inputs of is in `inputs/`; `planted/` shows what each of them finds.
"""

import importlib
import inspect
import pkgutil
import re
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from resprune_jax.errors import CallError, RunError

LONGEST_MESSAGE = 500
OK, REFUSED = "ok", "refused"
TRACEBACK, HANG, MEMORY, DIED = "traceback", "hang", "memory", "died"
BAD_MESSAGE, WRONG = "bad message", "wrong"
GOOD = frozenset({OK, REFUSED})
FUZZERS = "tests.attacks.fuzzers"
_INPUTS = re.compile(r"^from (tests\.attacks\.inputs\.\w+) import", re.MULTILINE)


@dataclass(frozen=True)
class Fuzzer:
    """A kind of attack.

    Attributes:
        name: short and unique, for records and for picking it on the command line.
        run: makes the input of a seed, feeds it, and raises what the library raises. It is called
            in a process of its own that serves one case after another, so it must leave nothing
            behind. The same seed must make the same input; see `draw`.
        cases: how many seeds there are in full.
        quick: how many of them `make test` runs.
        prepare: loads what all cases need; its time and memory are not counted.
        cpu_s: CPU seconds that a case may take.
        wait_s: seconds that it may take on the clock, waiting included.
        memory: bytes by which the process may grow.
    """

    name: str
    run: Callable[[int], None]
    cases: int
    quick: int = 100
    prepare: Callable[[], object] | None = None
    cpu_s: float = 10.0
    wait_s: float = 60.0
    memory: int = 2 << 30


class Fault(Exception):  # noqa: N818 (what it is called in a report)
    """Raised by a fuzzer that sees a fault itself: a wrong answer, a bad exit status.

    Args:
        kind: one of the kinds above, mostly `WRONG`.
        detail: what was seen.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Outcome:
    """How one case ended: its kind, what was seen, and the CPU seconds that it took."""

    fuzzer: str
    seed: int
    kind: str
    detail: str = ""
    cpu_s: float = 0.0

    @property
    def good(self) -> bool:
        return self.kind in GOOD

    def row(self) -> dict[str, object]:
        return asdict(self)


def draw(name: str, seed: int) -> np.random.Generator:
    """The random generator of a case: fuzzers of other names draw other numbers."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def message_fault(message: str) -> str:
    """Why a message is not fit to be read, or "" where it is: one line of printable characters."""
    if not message.strip():
        return "empty"
    if len(message) > LONGEST_MESSAGE:
        return f"{len(message)} characters"
    odd = [char for char in message if not char.isprintable()]
    return f"unprintable {odd[0]!r}" if odd else ""


def attempt(fuzzer: Fuzzer, seed: int) -> Outcome:
    """Run one case in this process, without limits, and say how it ended."""
    begin = time.process_time()

    def end(kind: str, detail: str = "") -> Outcome:
        shown = detail.encode("ascii", "backslashreplace").decode()[:2000]
        return Outcome(fuzzer.name, seed, kind, shown, round(time.process_time() - begin, 3))

    try:
        fuzzer.run(seed)
    except (CallError, RunError) as error:
        if _ran_out(error):
            return end(MEMORY, f"MemoryError behind: {error}")
        fault = message_fault(str(error))
        return end(BAD_MESSAGE, f"{fault}: {error}") if fault else end(REFUSED, str(error))
    except Fault as fault:
        return end(fault.kind, fault.detail)
    except MemoryError:
        return end(MEMORY, "MemoryError")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust code and SystemExit are none of Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        return end(
            TRACEBACK,
            f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {error}",
        )
    return end(OK)


def _ran_out(error: BaseException | None) -> bool:
    """Whether a lack of memory is what an error was made from."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    return error is not None


def load(module: str) -> list[Fuzzer]:
    """The fuzzers of one module."""
    return list(getattr(importlib.import_module(module), "FUZZERS", ()))


def modules() -> list[str]:
    """The modules that hold fuzzers, by name."""
    here = Path(__file__).parent / "fuzzers"
    return [
        f"{FUZZERS}.{name}" for name in sorted(i.name for i in pkgutil.iter_modules([str(here)]))
    ]


def everything() -> list[tuple[str, Fuzzer]]:
    """(module, fuzzer) of all fuzzers there are.

    Raises:
        ValueError: two of one name.
    """
    found = [(module, fuzzer) for module in modules() for fuzzer in load(module)]
    names = [fuzzer.name for _, fuzzer in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two fuzzers have one name: {sorted(names)}")
    return found


def revision(module: str) -> str:
    """Changes when the source of a fuzzer, or of what it makes inputs of, does.

    Its seeds then make other inputs.
    """
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in sources:
            sources[name] = inspect.getsource(importlib.import_module(name))
            waiting += _INPUTS.findall(sources[name])
    return f"{zlib.crc32(''.join(sources[name] for name in sorted(sources)).encode()):08x}"


def report(outcomes: Sequence[Outcome]) -> str:
    """Counts by kind, and the first faults."""
    kinds: dict[str, int] = {}
    for outcome in outcomes:
        kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
    lines = [", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "no case"]
    faults = [outcome for outcome in outcomes if not outcome.good]
    lines += [f"  {o.fuzzer}, seed {o.seed}: {o.kind}: {o.detail}" for o in faults[:20]]
    return "\n".join(lines)
