"""TPUs as a target: libtpu, and topologies of described chips. Needs no TPU."""

import importlib.metadata
import importlib.util
import os
import re
from typing import Any, ClassVar

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.compile_check.target import GIB, Figures, Target
from resprune_jax.experiments.compile_check.tpu.cycles import CLOCK, Cycles, Shape, read_cycles
from resprune_jax.experiments.compile_check.tpu.kernel import kernel_cycles

HBM: dict[str, int] = {"v5e": int(15.75 * GIB), "v6e": int(31.25 * GIB)}
"""Bytes of a chip's memory that the compiler gives a program, of 16 and 32 GB: beyond them it
refuses."""

_SCOPED = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1",[^}]*"size":"(\d+)"')


class TpuTarget(Target):
    """A topology of TPU chips."""

    platform: ClassVar[str] = "tpu"
    engines = ("gram", "blocked", "lazy", "feature", "pallas_tpu")
    batches = (1, 32)

    def __init__(
        self, topology: str, chips: int | None = None, dtypes: tuple[str, ...] = ("bfloat16",)
    ) -> None:
        """Name the chips.

        Args:
            topology: a kind of chip and a grid, as "v5e:2x2".
            chips: how many of them a model is sharded over; default: all.
            dtypes: of the tokens that the selection engines are compiled for.

        Raises:
            CallError: a kind whose memory is not known here.
        """
        self.name, self.count, self.dtypes = topology, chips, dtypes
        self.chip = topology.partition(":")[0]
        if self.chip not in HBM:
            raise CallError(
                f"unknown TPU topology {topology!r}: name a chip ({', '.join(HBM)}) and a grid, as "
                "v5e:2x2"
            )

    @property
    def limit(self) -> int:
        """Bytes of a chip's memory that the compiler gives a program."""
        return HBM[self.chip]

    def facts(self) -> dict[str, Any]:
        """See `Target.facts`."""
        return {"libtpu": require_libtpu(), "topology": self.name, "chips": self.count}

    def figures(self, text: str, layers: int = 0) -> Figures:
        """The most VMEM, in KiB, that any one operation of the program asks for.

        A kernel's blocks and scratch are among it, what XLA itself leaves in VMEM between
        operations (the Gram matrix of a single image) is not.
        """
        most = vmem(text) // 1024
        return Figures({"VMEM KiB": str(most)}, {"VMEM_KiB": most})

    def selection_figures(
        self, text: str, engine: str, size: tuple[int, int, int], batch: int
    ) -> Figures:
        """VMEM as `figures`, and the cycles that the compiler expects (`cycles`, `kernel`)."""
        count, _, keep = size
        made = read_cycles(text, shape_of(engine, count, keep))
        if engine == "pallas_tpu":
            inside = kernel_cycles(self.name, count, keep)
            made += Cycles(inside).times(batch)
        each = 1e6 * made.cycles / CLOCK[self.chip] / batch
        least = "at least " if made.least else ""
        memory = self.figures(text)
        columns = {"cycles": f"{least}{made.cycles:,}", "us an image": f"{least}{each:,.0f}"}
        facts = {"cycles": made.cycles, "operations": made.operations, "least": made.least}
        return Figures({**memory.columns, **columns}, {**memory.facts, **facts})

    def devices(self) -> list[Any]:
        """The topology's chips.

        Raises:
            CallError: no libtpu, or a topology that does not exist.
            RunError: libtpu cannot start.
        """
        require_libtpu()
        kind = "v5litepod-4" if self.chip == "v5e" else f"{self.chip}-4"
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing runs: no chip to share
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", kind)
        from jax.errors import JaxRuntimeError
        from jax.experimental import topologies

        try:
            return list(topologies.get_topology_desc(self.name, "tpu").devices)
        except JaxRuntimeError as error:
            text = " ".join(str(error).split())
            if "INVALID_ARGUMENT" in text:
                raise CallError(f"TPU topology {self.name!r}: {text}") from error
            raise RunError(f"libtpu does not start: {text}") from error


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


def vmem(text: str) -> int:
    """The most bytes of VMEM that one operation of a compiled program asks for."""
    return max((int(size) for size in _SCOPED.findall(text)), default=0)


def shape_of(engine: str, n: int, keep: int) -> Shape:
    """What bounds the loops of an engine at a size."""
    from resprune_jax.engines import blocked, lazy

    if engine == "blocked":
        return Shape(min(keep, blocked.block_size(n)))
    if engine == "lazy":
        return Shape(min(keep, lazy.block_of(n, keep)), min(n, lazy.ROWS))
    return Shape()
