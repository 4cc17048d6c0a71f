"""Compiling for TPUs that are not there: libtpu, described devices, abstract arguments.

Nothing runs and no weight exists: arguments are shapes with shardings, and the compiler says how
much memory each chip would need. Needs the `tpu` extra (libtpu), but no TPU.

What `resprune tpu-check` can compile comes as rows: `models.model_rows` gives those of models,
`tpu_selection.rows(topology: str) -> Iterator[Row]` those of the selection engines (`--selection`).
A source of rows imports JAX only inside, calls `described_devices` first, lowers under
`traced_for("tpu")`, compiles with `compile_abstract`, and yields each row as soon as it is there;
all rows of one source have the same keys in `setting`, which are the table's columns.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.info import bytes_text

GIB = 2**30

HBM: dict[str, int] = {"v5e": int(15.75 * GIB), "v6e": int(31.25 * GIB)}
"""Bytes of a chip's memory that the compiler gives a program, of 16 and 32 GB: beyond them it
refuses."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler planned for one chip, in bytes.

    Attributes:
        arguments: of the program, those of them it does not read left out.
        outputs: the results, donated ones included.
        temporaries: of the program's own, at their peak.
        aliased: outputs that lie where donated arguments lay.
        code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    def total(self, held: int = 0) -> int:
        """Bytes in use while the program runs.

        Args:
            held: of parameters and arguments that are in memory whether this program reads them or
                not; the compiler pads what it counts, so the larger of the two holds.
        """
        inputs = max(self.arguments, held)
        return inputs + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that was compiled, or the reason why it was not.

    Attributes:
        memory: what it needs, or None where the compiler refused it.
        result: its outputs as shapes with shardings, to be arguments of the next program.
        seconds: the compiler's time.
        problem: why the compiler refused it; "" if it did not.
        text: the compiled program, where it was asked for.
    """

    memory: Memory | None
    result: Any
    seconds: float
    problem: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One compiled program.

    Attributes:
        name: of the model, or the chip for selections.
        program: what was compiled.
        setting: its sizes.
        compiled: the compiler's plan.
        limit: bytes of a chip that programs may use.
        held: bytes of a chip that parameters and arguments take in any case.
        donated: bytes of a chip that must be aliased: what the program updates in place.
    """

    name: str
    program: str
    setting: dict[str, int]
    compiled: Compiled
    limit: int
    held: int = 0
    donated: int = 0

    @property
    def total(self) -> int | None:
        """Bytes of a chip in use while it runs; None where the compiler refused it."""
        memory = self.compiled.memory
        return None if memory is None else memory.total(self.held)

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
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
            "bytes": None if memory is None else dataclasses.asdict(memory),
            "held": self.held,
            "donated": self.donated,
            "total": self.total,
            "limit": self.limit,
            "verdict": self.verdict,
            "seconds": round(self.compiled.seconds, 1),
        }


def require_libtpu() -> str:
    """The version of libtpu.

    Raises:
        CallError: it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise CallError(
            "compiling for TPU needs libtpu (700 MB), which is not installed: "
            "pip install 'resprune-jax[tpu]'"
        )
    return importlib.metadata.version("libtpu")


def chip_of(topology: str) -> str:
    """The kind of chip in a topology such as "v5e:2x2".

    Raises:
        CallError: a kind whose memory is not known here.
    """
    chip = topology.partition(":")[0]
    if chip not in HBM:
        raise CallError(
            f"unknown TPU topology {topology!r}: name a chip ({', '.join(HBM)}) and a grid, as "
            "v5e:2x2"
        )
    return chip


def described_devices(topology: str) -> list[Any]:
    """The devices of a topology, described and not there.

    Args:
        topology: a chip and a grid, as "v5e:2x2".

    Raises:
        CallError: no libtpu, or a topology that does not exist.
        RunError: libtpu cannot start.
    """
    chip = chip_of(topology)
    require_libtpu()
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs: no chip to share
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4" if chip == "v5e" else f"{chip}-4")
    if "jax" not in sys.modules:  # the compiler alone: a TPU of this machine stays free
        os.environ["JAX_PLATFORMS"] = "cpu"
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "INVALID_ARGUMENT" in text:
            raise CallError(f"TPU topology {topology!r}: {text}") from error
        raise RunError(f"libtpu does not start: {text}") from error


@contextlib.contextmanager
def traced_for(platform: str, devices: int = 1) -> Iterator[None]:
    """Tell code that asks JAX for its backend and devices while it is traced that it is these.

    Otherwise the program of the machine that compiles would be compiled, not that of a TPU.

    Args:
        platform: of the described devices: "tpu".
        devices: how many of them the program runs on.
    """
    import jax

    with (
        mock.patch.object(jax, "default_backend", lambda: platform),
        mock.patch.object(jax, "device_count", lambda: devices),
    ):
        yield


def compile_abstract(lower: Callable[..., Any], *args: Any, keep_text: bool = False) -> Compiled:
    """Compile a jitted function for the devices that its arguments are said to lie on.

    Args:
        lower: a jitted function's `lower`, with its static arguments.
        *args: pytrees of `jax.ShapeDtypeStruct` with shardings, and of small host values.
        keep_text: keep the compiled program's text.

    Returns:
        The plan; a program that does not fit the devices' memory has a `problem` instead.
    """
    import jax
    from jax.errors import JaxRuntimeError

    lowered = lower(*args)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        problem = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
        return Compiled(None, None, time.perf_counter() - start, problem)
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    memory = Memory(
        arguments=plan.argument_size_in_bytes,
        outputs=plan.output_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        aliased=plan.alias_size_in_bytes,
        code=plan.generated_code_size_in_bytes,
    )
    result = jax.tree.map(
        lambda out, where: jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=where),
        lowered.out_info,
        compiled.output_shardings,
    )
    return Compiled(memory, result, seconds, text=compiled.as_text() if keep_text else "")


def bytes_per_chip(tree: Any) -> int:
    """Bytes that a pytree of shapes takes on one chip; a shape without sharding lies on each."""
    import jax

    total = 0
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "shape"):  # a Python number
            continue
        where = getattr(leaf, "sharding", None)
        shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        total += size
    return total
